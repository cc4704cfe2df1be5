"""What came of the jobs of a sweep: a table for people, a CSV for everything else, the best of them, and two pictures."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from vpexp.console import PlainTable, format_count
from vpexp.errors import make_drawable
from vpexp.files import replacing
from vpexp.runfolder import RunFolder
from vpexp.sweeps.job import choose_metric
from vpexp.sweeps.record import SweepFolder, SweepRecord
from vpexp.tracking.description import format_value, shorten

SHOWN = ("f1-score", "mean_iou", "map")
STYLES = {"FINISHED": "", "FAILED": "red", "KILLED": "yellow"}
COLORS = "viridis"
INCHES_A_CELL = 1.1
LIGHT = 0.5  # brightness of a cell above which dark text is readable
BRIGHTNESS = (0.299, 0.587, 0.114)  # of red, green and blue, as eyes see it
WHISKERS = 1.5  # widths of the middle half that colours reach beyond it: one bad job must not make all others alike


@dataclass(frozen=True, slots=True)
class JobResult:
    """One job.

    Attributes:
        number: of the job, from 0; its folder's name.
        name: by what varies.
        values: of what varies.
        status: FINISHED, FAILED, KILLED, or RUNNING.
        objective: the number that names the best job; NaN where there is none.
        metrics: all that were measured.
        seconds: from start to end, of the last time that it ran.
        epochs: that were trained.
        folder: of the job.
        run_id: MLflow's.
        error: why it did not finish.
    """

    number: int
    name: str
    values: dict[str, str]
    status: str
    objective: float
    metrics: dict[str, float | None]
    seconds: float
    epochs: int | None
    folder: RunFolder
    run_id: str | None
    error: str


@dataclass(frozen=True, slots=True)
class SweepSummary:
    """All jobs that have begun.

    Attributes:
        record: what was asked.
        metric: the number that names the best job.
        jobs: in their order.
    """

    record: SweepRecord
    metric: str
    jobs: tuple[JobResult, ...]

    @property
    def best(self) -> JobResult | None:
        """The best finished job; None where none has a number."""
        rated = [job for job in self.jobs if job.status == "FINISHED" and math.isfinite(job.objective)]
        sign = 1 if self.record.direction == "maximize" else -1
        return max(rated, key=lambda job: sign * job.objective, default=None)

    def count(self, *statuses: str) -> int:
        """Count the jobs that ended so."""
        return sum(job.status in statuses for job in self.jobs)


def summarize_sweep(folder: SweepFolder) -> SweepSummary:
    """Read what the jobs have left in their folders."""
    record = folder.read()
    read = [(job, job.read_run_json(), _read_metrics(job)) for job in folder.find_jobs()]
    everything: dict[str, float | None] = {}
    for _, _, metrics in read:
        everything |= metrics
    metric = choose_metric(everything, record.metric)
    return SweepSummary(record, metric, tuple(_summarize(job, run, metrics, metric) for job, run, metrics in read))


def _summarize(folder: RunFolder, run: dict[str, Any], metrics: dict[str, float | None], metric: str) -> JobResult:
    finished = run.get("status") == "FINISHED"
    value = metrics.get(metric) if finished else None
    return JobResult(
        number=int(folder.path.name),
        name=run.get("job_name") or folder.path.name,
        values=run.get("values") or {},
        status=run.get("status") or "FAILED",
        objective=math.nan if value is None else float(value),
        metrics=metrics if finished else {},
        seconds=_measure(run.get("started"), run.get("ended")),
        epochs=run.get("epochs"),
        folder=folder,
        run_id=run.get("mlflow_run_id"),
        error=run.get("error") or "",
    )


def _read_metrics(folder: RunFolder) -> dict[str, float | None]:
    if not folder.metrics_json.is_file():
        return {}
    metrics: dict[str, float | None] = folder.read_metrics_json()["metrics"]
    return metrics


def _measure(started: str | None, ended: str | None) -> float:
    if not started or not ended:
        return math.nan
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()


def build_sweep_table(summary: SweepSummary) -> Table:
    """Build the table that is printed at the end, the best job first among equals in bold."""
    prefix = summary.metric.rpartition("/")[0]
    columns = list(dict.fromkeys([summary.metric, *(f"{prefix}/{name}" for name in SHOWN)]))
    columns = [name for name in columns if any(job.metrics.get(name) is not None for job in summary.jobs)]
    table = PlainTable(title=f"sweep: {prefix}")
    table.add_column("job", justify="right")
    for label in shorten(summary.record.varying):
        table.add_column(label, justify="right")
    for name in ("status", *columns, "epochs", "time"):
        left = name == "status"
        table.add_column(name.removeprefix(f"{prefix}/"), justify="left" if left else "right", no_wrap=left)
    best = summary.best
    for job in summary.jobs:
        numbers = [_format(job.metrics.get(name)) for name in columns]
        values = [format_value(job.values.get(key, "")) for key in summary.record.varying]
        seconds = "-" if math.isnan(job.seconds) else f"{job.seconds:.0f} s"
        style = "bold green" if best is job else STYLES.get(job.status, "yellow")
        row = (str(job.number), *values, job.status, *numbers, str(job.epochs or "-"), seconds)
        table.add_row(*row, style=style)
    return table


def write_results(summary: SweepSummary, folder: SweepFolder) -> None:
    """Write ``sweep_results.csv``: one row a job, with every number that was measured."""
    names = sorted({name for job in summary.jobs for name in job.metrics})
    names = [summary.metric, *(name for name in names if name != summary.metric)]
    head = ["job", "name", *summary.record.varying, "status"]
    tail = ["seconds", "epochs", "folder", "mlflow_run_id", "error"]
    with replacing(folder.results) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*head, *names, *tail])
        for job in summary.jobs:
            values = [job.values.get(key, "") for key in summary.record.varying]
            numbers = ["" if job.metrics.get(name) is None else repr(job.metrics[name]) for name in names]
            seconds = "" if math.isnan(job.seconds) else f"{job.seconds:.1f}"
            end = [seconds, job.epochs or "", job.folder.path, job.run_id or "", job.error]
            writer.writerow([job.number, job.name, *values, job.status, *numbers, *end])


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:z.4f}"


def draw_pictures(summary: SweepSummary, folder: Path) -> list[Path]:
    """Draw ``heat_map.png`` where two keys vary, and ``parallel_coordinates.png``; nothing where no job has a number."""
    rated = [job for job in summary.jobs if job.status == "FINISHED" and math.isfinite(job.objective)]
    if not rated:
        return []
    drawn = [_draw_coordinates(summary, rated, folder / "parallel_coordinates.png")]
    if len(summary.record.varying) == 2:
        drawn.append(_draw_heat_map(summary, rated, folder / "heat_map.png"))
    return drawn


def sort_values(values: Sequence[str]) -> list[str]:
    """Sort what a key was given: numbers by size, words by the alphabet."""
    different = set(values)
    return sorted(different, key=lambda value: (0, float(value), "") if _is_number(value) else (1, 0.0, value))


def _draw_heat_map(summary: SweepSummary, jobs: Sequence[JobResult], path: Path) -> Path:
    import numpy as np
    from matplotlib.figure import Figure

    row_key, column_key = summary.record.varying
    rows = sort_values([job.values[row_key] for job in jobs])
    columns = sort_values([job.values[column_key] for job in jobs])
    grid = np.full((len(rows), len(columns)), np.nan)
    for job in jobs:
        grid[rows.index(job.values[row_key]), columns.index(job.values[column_key])] = job.objective
    lowest, lower, upper, highest = np.nanpercentile(grid, (0, 25, 75, 100))
    reach = WHISKERS * (upper - lower) or highest - lowest
    low, high = max(lowest, lower - reach), min(highest, upper + reach)
    figure = Figure(figsize=(2.2 + INCHES_A_CELL * len(columns), 1.6 + 0.8 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(grid, cmap=COLORS, aspect="auto", vmin=low, vmax=high)
    for row, column in np.ndindex(*grid.shape):
        value = grid[row, column]
        text = "-" if np.isnan(value) else f"{value:z.4f}"
        light = np.isnan(value) or np.dot(image.cmap(image.norm(value))[:3], BRIGHTNESS) > LIGHT
        weight = "bold" if summary.best and value == summary.best.objective else "normal"
        axes.text(column, row, text, ha="center", va="center", color="black" if light else "white", weight=weight)
    row_label, column_label = map(make_drawable, shorten([row_key, column_key]))
    axes.set_xticks(range(len(columns)), [_name(value) for value in columns])
    axes.set_yticks(range(len(rows)), [_name(value) for value in rows])
    before = {job.metrics.get(f"before/{summary.metric}") for job in jobs} - {None}
    title = f"{summary.metric} (before {before.pop():z.4f})" if len(before) == 1 else summary.metric
    axes.set(xlabel=column_label, ylabel=row_label, title=make_drawable(title))
    figure.colorbar(image, extend="neither" if (low, high) == (lowest, highest) else "both")
    figure.savefig(path, dpi=120)
    return path


def _draw_coordinates(summary: SweepSummary, jobs: Sequence[JobResult], path: Path) -> Path:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    keys = summary.record.varying
    scales = [sort_values([job.values.get(key, "") for job in jobs]) for key in keys]
    objectives = [job.objective for job in jobs]
    low, high = min(objectives), max(objectives)
    figure = Figure(figsize=(2.4 + 1.8 * len(keys), 4.2), layout="constrained")
    axes = figure.add_subplot()
    for job in sorted(jobs, key=lambda job: job.objective):
        share = 0.5 if high == low else (job.objective - low) / (high - low)
        heights = [_place(job.values.get(key, ""), scale) for key, scale in zip(keys, scales, strict=True)]
        best = job is summary.best
        axes.plot(
            [*heights, share],
            color=colormaps[COLORS](share),
            linewidth=3 if best else 1.4,
            marker="o",
            alpha=1 if best else 0.75,
        )
    for place, scale in enumerate(scales):
        _label(axes, place, [(_place(value, scale), _name(value)) for value in scale])
    _label(axes, len(keys), [(0.0, f"{low:.4f}"), (1.0, f"{high:.4f}")] if high > low else [(0.5, f"{low:.4f}")])
    axes.set_xticks(range(len(keys) + 1), [make_drawable(name) for name in (*shorten(keys), summary.metric)])
    axes.set_xlim(-0.3, len(keys) + 0.5)
    axes.set_yticks([])
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.set_title(format_count(len(jobs), "job"))
    figure.savefig(path, dpi=120)
    return path


def _name(value: str) -> str:
    return make_drawable(format_value(value))


def _label(axes: Any, place: int, marks: Sequence[tuple[float, str]]) -> None:
    axes.axvline(place, color="0.8", linewidth=1, zorder=0)
    for height, text in marks:
        axes.annotate(text, (place, height), xytext=(5, 4), textcoords="offset points", fontsize=9)


def _place(value: str, scale: Sequence[str]) -> float:
    return 0.5 if len(scale) == 1 else scale.index(value) / (len(scale) - 1)


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False
