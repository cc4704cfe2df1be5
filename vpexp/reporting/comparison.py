"""One model in its several forms, side by side: as a table on the terminal, in Markdown and in JSON."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from vpexp.console import PlainTable

COLUMNS = {
    "before": "the model as the training found it",
    "torch": "fine-tuned, in PyTorch",
    "ir": "exported to OpenVINO IR",
    "onnx": "exported to ONNX, in ONNX Runtime",
    "int8": "the IR, quantized",
}
"""The forms of a model that are compared, in their order, and what they are."""

COMPARED = (("torch", "before"), ("ir", "torch"), ("onnx", "torch"), ("int8", "ir"))
"""Which column is set against which."""

NO_NUMBER = "-"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table.

    Attributes:
        name: the metric's name, in ``report.json`` too.
        title: what the table calls it, with its unit.
        scale: what the number is multiplied by for the table.
        digits: digits after the point in the table.
    """

    name: str
    title: str
    scale: float = 1.0
    digits: int = 4


ROWS = (
    Row("f1-score", "f1-score"),
    Row("iou", "iou"),
    Row("mean_iou", "mean_iou"),
    Row("map", "map"),
    Row("map_50", "map_50"),
    Row("map_75", "map_75"),
    Row("size_mb", "size (MB)", digits=1),
    Row("load_time", "load time (s)", digits=2),
    Row("encoder_time", "encoder time (ms)", scale=1000, digits=1),
    Row("decoder_time", "decoder time (ms)", scale=1000, digits=1),
    Row("iter_time", "time an image (ms)", scale=1000, digits=1),
)
FIRST_COST = "size_mb"  # the rows from here on say what a form costs, those before how good it is


@dataclass(frozen=True, slots=True)
class Section:
    """A few lines of text under a heading.

    Attributes:
        title: the heading.
        lines: plain text, one statement each.
        finding: it says how good the model is, so that the terminal shows it too.
    """

    title: str
    lines: tuple[str, ...]
    finding: bool = False


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table as text.

    Attributes:
        title: the heading.
        columns: their names; that of the rows has none.
        rows: a name and its cells.
        note: what there is to say on it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a report says.

    Attributes:
        title: one line on the model and the data.
        columns: metrics by column (of ``COLUMNS``, those that were measured), each by ``Row.name``.
        sections: what else there is to say, below the table.
        in_turns: columns whose encoder and decoder were timed in turns, on one image.
        tables: others, below that of the columns.
    """

    title: str
    columns: Mapping[str, Mapping[str, float]]
    sections: tuple[Section, ...] = ()
    in_turns: tuple[str, ...] = ()
    tables: tuple[TextTable, ...] = ()


def read_column(metrics: Mapping[str, float | None], split: str) -> dict[str, float]:
    """Take a column's rows from what a test wrote into ``metrics.json``; a null there is NaN here."""
    values = {row.name: metrics.get(f"{split}/{row.name}") for row in ROWS}
    return {name: math.nan if value is None else float(value) for name, value in values.items()}


def format_cell(row: Row, value: float) -> str:
    """Format a number of the table."""
    return f"{value * row.scale:z.{row.digits}f}" if math.isfinite(value) else NO_NUMBER


def list_cells(comparison: Comparison) -> list[tuple[Row, list[str]]]:
    """List the rows of the table as text, a cell for each column."""
    columns = comparison.columns.values()
    return [(row, [format_cell(row, column.get(row.name, math.nan)) for column in columns]) for row in ROWS]


def build_table(comparison: Comparison) -> Table:
    """Build the table for the terminal."""
    table = PlainTable(title=comparison.title)
    table.add_column("")
    for name in comparison.columns:
        table.add_column(name, justify="right", min_width=8)
    for row, cells in list_cells(comparison):
        if row.name == FIRST_COST:
            table.add_section()
        table.add_row(row.title, *cells)
    return table


def build_text_table(table: TextTable) -> Table:
    """Build a table of text for the terminal."""
    shown = PlainTable(title=table.title, min_width=len(table.title))
    shown.add_column("")
    for name in table.columns:
        shown.add_column(name, justify="right", min_width=8)
    for name, cells in table.rows:
        shown.add_row(name, *cells)
    return shown


def describe_columns(comparison: Comparison) -> str:
    """Describe in one line what the columns are, and how the times were taken."""
    named = "; ".join(f"{name}: {COLUMNS[name]}" for name in comparison.columns)
    turns = f"; those of {' and '.join(comparison.in_turns)} in turns, on one image" if comparison.in_turns else ""
    return f"{named}. Times were taken one column after another: other work on the machine shows in them{turns}."


def compute_changes(
    columns: Mapping[str, Mapping[str, float]], names: Iterable[str] = ("f1-score", "map")
) -> dict[str, dict[str, float]]:
    """Compute what each step changed: ``{"ir - torch": {"f1-score": -0.0001, ...}, ...}``."""
    names = list(names)
    return {
        f"{after} - {before}": {
            name: columns[after].get(name, math.nan) - columns[before].get(name, math.nan) for name in names
        }
        for after, before in COMPARED
        if after in columns and before in columns
    }


def describe_changes(columns: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Describe in a line for each step what it changed."""
    return [
        f"{pair}: " + ", ".join(f"{name} {_format_change(value)}" for name, value in changes.items())
        for pair, changes in compute_changes(columns).items()
    ]


def _format_change(value: float) -> str:
    return f"{value:+z.4f}" if math.isfinite(value) else NO_NUMBER


def format_markdown(comparison: Comparison) -> str:
    """Format the whole report as Markdown."""
    lines = [f"# {comparison.title}", ""]
    lines += _format_table(list(comparison.columns), [(row.title, cells) for row, cells in list_cells(comparison)])
    lines += ["", describe_columns(comparison)]
    for table in comparison.tables:
        lines += ["", f"## {table.title}", "", *_format_table(table.columns, table.rows), "", table.note]
    for section in comparison.sections:
        lines += ["", f"## {section.title}", "", *(f"- {line}" for line in section.lines)]
    return "\n".join(lines) + "\n"


def _format_table(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    widths = [max(len(name) for name, _ in rows)]
    widths += [max(len(name), *(len(cells[place]) for _, cells in rows)) for place, name in enumerate(columns)]
    lines = [_format_line(["", *columns], widths)]
    lines.append(f"|{'-' * (widths[0] + 2)}|" + "".join(f"{'-' * (width + 1)}:|" for width in widths[1:]))
    return lines + [_format_line([name, *cells], widths) for name, cells in rows]


def _format_line(cells: list[str], widths: list[int]) -> str:
    first, *numbers = cells
    padded = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))]
    return f"| {' | '.join(padded)} |"
