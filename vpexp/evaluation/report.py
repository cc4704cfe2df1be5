"""Tables of metrics, side by side."""

import math
from collections.abc import Mapping

from rich.table import Table

from vpexp.console import PlainTable
from vpexp.evaluation.average_precision import SUMMARY_NAMES

ROWS = ("f1-score", "dice", "iou", "mean_iou", *SUMMARY_NAMES, "iter_time", "encoder_time", "decoder_time", "data_time")
SECONDS = ("iter_time", "encoder_time", "decoder_time", "data_time")
BY_CLICK = ("mean_iou_clicks_", "f1-score_clicks_")
NOC, FAILED = "noc_", "_failed"
NO_NUMBER = "-"


def build_metrics_table(title: str, columns: Mapping[str, Mapping[str, float]]) -> Table:
    """Build a table of metrics, one column for each thing measured; a dash where a number has no meaning.

    Args:
        title: what stands above.
        columns: metrics by the column's name, without ``val/`` or ``test/``.
    """
    table = PlainTable(title=title, min_width=len(title))
    table.add_column("metric")
    for name in columns:
        table.add_column(name, justify="right")
    others = dict.fromkeys(name for metrics in columns.values() for name in metrics if name not in ROWS)
    for row in (*ROWS, *(name for name in others if not name.startswith((*BY_CLICK, NOC)))):
        values = [metrics.get(row, math.nan) for metrics in columns.values()]
        if any(math.isfinite(value) for value in values):
            table.add_row(row, *[format_metric(row, value) for value in values])
    return table


def counts_clicks(metrics: Mapping[str, float]) -> bool:
    """Return whether metrics are of a test by clicks."""
    return any(name.startswith(NOC) for name in metrics)


def build_click_table(title: str, columns: Mapping[str, Mapping[str, float]]) -> Table:
    """Build the table of what each click brought; see ``SimulatedUser.summarize``.

    Args:
        title: what stands above.
        columns: metrics by the column's name.
    """
    table = PlainTable(title=title)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    names = dict.fromkeys(name for metrics in columns.values() for name in metrics)
    for name in [name for start in BY_CLICK for name in names if name.startswith(start)]:
        table.add_row(
            _name_click_row(name), *[format_metric(name, values.get(name, math.nan)) for values in columns.values()]
        )
    for name in [name for name in names if name.startswith(NOC) and not name.endswith(FAILED)]:
        cells = [_format_noc(values, name) for values in columns.values()]
        table.add_row(f"clicks to IoU 0.{name.removeprefix(NOC)} (never)", *cells)
    return table


def _name_click_row(name: str) -> str:
    metric, _, clicks = name.rpartition("_clicks_")
    return f"{metric}, {clicks} click" + ("" if clicks == "1" else "s")


def _format_noc(values: Mapping[str, float], name: str) -> str:
    clicks, failed = values.get(name, math.nan), values.get(f"{name}{FAILED}", math.nan)
    return f"{clicks:.2f} ({failed:.0%})" if math.isfinite(clicks) else NO_NUMBER


def build_class_table(per_class: Mapping[str, Mapping[str, float]], title: str) -> Table:
    """Build the table of AP and AR by class.

    Args:
        per_class: ``map_per_class`` and ``mar_100_per_class`` by class name.
        title: what stands above.
    """
    table = PlainTable(title=title)
    table.add_column("class")
    for name in per_class:
        table.add_column(name, justify="right")
    for label in dict.fromkeys(label for values in per_class.values() for label in values):
        table.add_row(label, *[format_metric(name, values.get(label, math.nan)) for name, values in per_class.items()])
    return table


def format_metric(name: str, value: float) -> str:
    """Format a metric: four digits, seconds with their unit."""
    if not math.isfinite(value):
        return NO_NUMBER
    return f"{value:.3f} s" if name in SECONDS else f"{value:.4f}"
