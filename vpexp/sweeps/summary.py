"""What came of the jobs of a sweep: a table for people, a CSV for everything else, and the best of them."""

import csv
import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.table import Table

from vpexp.console import PlainTable
from vpexp.files import replacing
from vpexp.runfolder import RunFolder
from vpexp.sweeps.job import choose_metric
from vpexp.sweeps.naming import format_value, shorten
from vpexp.sweeps.record import SweepFolder, SweepRecord

SHOWN = ("f1-score", "mean_iou", "map")
STYLES = {"FINISHED": "", "FAILED": "red", "KILLED": "yellow"}


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
    return "-" if value is None else f"{value:.4f}"
