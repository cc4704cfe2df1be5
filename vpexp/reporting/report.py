"""The report of a pipeline: gathered from the run folders of its steps, written as Markdown, JSON and a page."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpexp.files import write_json, write_text
from vpexp.reporting.comparison import (
    COLUMNS,
    ROWS,
    Comparison,
    compute_changes,
    format_markdown,
    read_column,
)
from vpexp.reporting.notes import (
    describe_control,
    describe_differences,
    describe_steps,
    describe_training,
    describe_verdict,
    read_control,
)
from vpexp.reporting.page import build_page
from vpexp.reporting.pictures import read_pictures
from vpexp.runfolder import RunFolder

REPORTED_SECTIONS = ("model", "data", "prompt", "loss", "optimizer", "scheduler", "trainer", "export", "ptq")


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step that finished.

    Attributes:
        folder: its run's folder.
        tested: the column of the report that it measured, if it is a test.
        exported: the column whose model it wrote, if it is an export.
    """

    folder: RunFolder
    tested: str | None = None
    exported: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What a pipeline found.

    Attributes:
        comparison: the table and the text.
        details: everything else that was measured, for ``report_details.json``.
        overlays: folder of pictures by column.
        split: the split that was tested.
    """

    comparison: Comparison
    details: dict[str, Any]
    overlays: dict[str, Path]
    split: str

    @property
    def metrics(self) -> dict[str, float]:
        """All numbers of the table by name: ``int8/f1-score``."""
        columns = self.comparison.columns
        return {f"{column}/{name}": value for column, values in columns.items() for name, value in values.items()}


def gather_report(
    cfg: Mapping[str, Any],
    data_name: str,
    finished: Mapping[str, StepRecord],
    steps: Mapping[str, Mapping[str, Any]],
    *,
    blind_drop: float,
) -> Report | None:
    """Gather what the steps measured; None where no test has finished.

    Args:
        cfg: the pipeline's configuration, as plain containers.
        data_name: what people call the data set.
        finished: the steps that finished, by name.
        steps: how each step that was begun ended, by name: ``status`` and ``seconds``.
        blind_drop: a smaller loss of F1 with another image's embedding means that the image is hardly looked at.
    """
    split = str(cfg["stage"]["split"])
    tests = _order({step.tested: step.folder for step in finished.values() if step.tested})
    if not tests:
        return None
    measured = {column: _read_metrics(folder) for column, folder in tests.items()}
    exported = _order({step.exported: step.folder for step in finished.values() if step.exported})
    exports = {column: _read_metrics(folder)["metrics"] for column, folder in exported.items()}
    quantization = _read_metrics(finished["ptq"].folder)["metrics"] if "ptq" in finished else {}
    control = read_control(measured["torch"]["metrics"], split) if "torch" in measured else {}
    records = {name: step.folder.read_run_json() for name, step in finished.items()}
    columns = {column: read_column(content["metrics"], split) for column, content in measured.items()}
    counts = next(iter(measured.values()))["details"][split]
    title = f"{cfg['model']['name']} on {data_name}/{split}: {counts['images']} images, {counts['objects']} objects"
    sections = (
        describe_verdict(records.get("train", {})),
        describe_differences(columns, exports, quantization),
        describe_control(control, blind_drop),
        describe_training(cfg, records),
        describe_steps(steps),
    )
    details = {
        "title": title,
        "images": counts["images"],
        "objects": counts["objects"],
        "changes": compute_changes(columns, [row.name for row in ROWS]),
        "control": control,
        "exports": exports,
        "quantization": quantization,
        "steps": steps,
        "data": {name: {key: record.get(key) for key in ("data", "splits")} for name, record in records.items()},
        "config": {name: cfg[name] for name in REPORTED_SECTIONS},
    }
    comparison = Comparison(title, columns, tuple(section for section in sections if section))
    return Report(comparison, details, {column: folder.overlays for column, folder in tests.items()}, split)


def _order(folders: Mapping[str, RunFolder]) -> dict[str, RunFolder]:
    return {column: folders[column] for column in COLUMNS if column in folders}


def write_report(report: Report, folder: Path) -> dict[str, Path]:
    """Write ``report.json``, ``report_details.json``, ``report.md`` and ``report.html``; return them by name."""
    files = {name: folder / name for name in ("report.json", "report_details.json", "report.md", "report.html")}
    write_json(files["report.json"], report.comparison.columns)
    write_json(files["report_details.json"], report.details)
    write_text(files["report.md"], format_markdown(report.comparison))
    pictures = read_pictures(report.overlays, f"{report.split}_")
    write_text(files["report.html"], build_page(report.comparison, pictures))
    return files


def _read_metrics(folder: RunFolder) -> dict[str, Any]:
    return folder.read_metrics_json()
