"""The report of a pipeline: gathered from the run folders of its steps, written as Markdown, JSON and a page."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpexp.config.schema import PARTS
from vpexp.console import format_count
from vpexp.files import write_json, write_text
from vpexp.reporting.comparison import (
    COLUMNS,
    ROWS,
    Comparison,
    Section,
    TextTable,
    compute_changes,
    describe_changes,
    format_markdown,
    read_column,
)
from vpexp.reporting.instances import AUTO, COMPARED, GRID, list_cells
from vpexp.reporting.page import build_page, read_pictures
from vpexp.runfolder import RunFolder
from vpexp.visuals import build_legend

REPORTED_SECTIONS = ("model", "adapter", "data", "prompt", "loss", "optimizer", "scheduler", "trainer", "export", "ptq")
Columns = Mapping[str, Mapping[str, float]]
Metrics = Mapping[str, float | None]
"""Numbers by name as ``metrics.json`` holds them: null where there is none."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step that finished.

    Attributes:
        folder: its run's folder.
        tested: the column of the report that it measured, if it is a test.
        exported: the column whose model it wrote, if it is an export.
        found: the column whose model it asked without prompts, if it is such a test.
    """

    folder: RunFolder
    tested: str | None = None
    exported: str | None = None
    found: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What a pipeline found.

    Attributes:
        comparison: the table and the text.
        details: everything else that was measured, for ``report_details.json``.
        overlays: folder of pictures by column.
        split: the split that was tested.
        found: what was found without prompts, by column: by a grid where the model has no prompter.
    """

    comparison: Comparison
    details: dict[str, Any]
    overlays: dict[str, Path]
    split: str
    found: Columns

    @property
    def metrics(self) -> dict[str, float]:
        """All numbers of the tables by name: ``int8/f1-score``, ``int8/auto/map``, ``before/grid/map``."""
        numbers = list(self.comparison.columns.items())
        numbers += [(f"{column}/{find_way(column)}", values) for column, values in self.found.items()]
        return {f"{place}/{name}": value for place, values in numbers for name, value in values.items()}


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
    timed = read_times_in_turns(quantization) if {"ir", "int8"} <= columns.keys() else {}
    for column, times in timed.items():
        columns[column] |= times
    counts = next(iter(measured.values()))["details"][split]
    title = f"{cfg['model']['name']} on {data_name}/{split}: {_describe_counts(counts)}"
    sections = (
        describe_verdict(records.get("train", {})),
        describe_differences(columns, exports, quantization),
        describe_control(control, blind_drop),
        describe_training(cfg, records),
        describe_steps(steps),
    )
    found_by = _order({step.found: step.folder for step in finished.values() if step.found})
    found = {column: read_found(_read_metrics(folder)["metrics"], split, column) for column, folder in found_by.items()}
    classes = max(len((record.get("data") or {}).get("categories", ())) for record in records.values())
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
        "config": {name: cfg[name] for name in REPORTED_SECTIONS if name in cfg},
        "without_prompts": {column: _read_metrics(folder)["metrics"] for column, folder in found_by.items()},
    }
    tables = (build_found_table(found, classes),) if found else ()
    comparison = Comparison(title, columns, tuple(section for section in sections if section), tuple(timed), tables)
    return Report(comparison, details, {column: folder.overlays for column, folder in tests.items()}, split, found)


def _order(folders: Mapping[str, RunFolder]) -> dict[str, RunFolder]:
    return {column: folders[column] for column in COLUMNS if column in folders}


def write_report(report: Report, folder: Path) -> dict[str, Path]:
    """Write ``report.json``, ``report_details.json``, ``report.md`` and ``report.html``; return them by name."""
    files = {name: folder / name for name in ("report.json", "report_details.json", "report.md", "report.html")}
    found = {"without_prompts": report.found} if report.found else {}
    write_json(files["report.json"], {**report.comparison.columns, **found})
    write_json(files["report_details.json"], report.details)
    write_text(files["report.md"], format_markdown(report.comparison))
    pictures = read_pictures(report.overlays, f"{report.split}_", folder)
    data: Any = next((record["data"] for record in report.details["data"].values() if record.get("data")), {})
    legend = build_legend(data.get("categories") or ())
    write_text(files["report.html"], build_page(report.comparison, pictures, legend))
    return files


def find_way(column: str) -> str:
    """Return how objects are found in a column: before the training there is no prompter."""
    return GRID if column == "before" else AUTO


def read_found(metrics: Metrics, split: str, column: str) -> dict[str, float]:
    """Take a column of what was found without prompts from what the test wrote; what has no number there is NaN."""
    values = {name: metrics.get(f"{split}/{find_way(column)}/{name}") for name in COMPARED}
    return {name: math.nan if value is None else value for name, value in values.items()}


def build_found_table(found: Columns, classes: int) -> TextTable:
    """Build the table of what was found without prompts, by column; ``classes`` is how many the data set has."""
    grid = [column for column in found if find_way(column) == GRID]
    note = "Found by the prompter, all images of the split; map_any_class and f1 count masks whatever their class."
    if grid:
        note += f" {', '.join(grid)}: by a grid of points, which gives no classes; a model has no prompter before its training."
    title = "Objects found without prompts"
    return TextTable(title, list(found), list_cells(found, COMPARED, classes), note)


def _read_metrics(folder: RunFolder) -> dict[str, Any]:
    return folder.read_metrics_json()


def describe_training(cfg: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> Section:
    """Describe what was trained, and on what.

    Args:
        cfg: the configuration, as plain containers.
        records: ``run.json`` by step.
    """
    lines = []
    data = next((record["data"] for record in records.values() if "data" in record), None)
    splits: dict[str, Any] = {}
    for record in records.values():
        splits = record.get("splits", {}) | splits
    if data is not None:
        named = "; ".join(_describe_split(name, splits[name]) for name in ("train", "val", "test") if name in splits)
        lines.append(f"data: {data['root']} ({data['format']}): {named}")
        if "test" in splits and splits["test"]["source"] == splits.get("val", {}).get("source"):
            lines.append("there is no test split: val was tested, by which the best epoch was chosen too")
    model, prompt, optimizer = cfg["model"], cfg["prompt"], cfg["optimizer"]
    start = cfg["checkpoint"] or f"model.weights={model['weights']}"
    lines.append(f"model: {model['name']} at {model['image_size']} px, from {start}; learns: {_describe_learning(cfg)}")
    lines.append(
        f"prompt: {prompt['type']}, jitter {prompt['jitter']} in training and {prompt['test_jitter']} in the test"
    )
    optimizer_name = str(optimizer["_target_"]).rpartition(".")[2]
    lines.append(
        f"training: {optimizer_name}, lr {optimizer['lr']}, batch size {cfg['data']['batch_size']}, seed {cfg['seed']}"
    )
    train = records.get("train", {})
    if "kept" in train:
        best = f"{train['best_epoch']} of {train['epochs']}"
        lines.append(f"best epoch: {best}; kept: {train['kept']}, train/{train['best_checkpoint']}")
    return Section("What was trained", tuple(lines))


def _describe_learning(cfg: Mapping[str, Any]) -> str:
    """Name the parts that learn, and of the image encoder how much: older runs say nothing of that."""
    model, adapter = cfg["model"], cfg.get("adapter", {"kind": "none"})
    encoder, tune = PARTS[0], model.get("tune", "none")
    parts = [part for part in PARTS if part not in model["freeze"]]
    if (tune, adapter["kind"]) == ("none", "none"):
        return ", ".join(parts)
    how = "all" if tune in {"none", "full"} else tune
    if adapter["kind"] == "lora":
        how += f", by LoRA of rank {adapter['rank']}"
    return ", ".join([f"{encoder} ({how})", *(part for part in parts if part != encoder)])


def describe_verdict(train: Mapping[str, Any]) -> Section | None:
    """Return whether the training helped, as its ``run.json`` does; None where it says nothing."""
    return Section("Did fine-tuning help?", (train["verdict"],), finding=True) if "verdict" in train else None


def _describe_counts(counted: Mapping[str, Any]) -> str:
    return f"{format_count(counted['images'], 'image')}, {format_count(counted['objects'], 'object')}"


def _describe_split(name: str, split: Mapping[str, Any]) -> str:
    skipped = sum(split["skipped"].values())
    source = split["source"]
    words = f"{name if source == name else f'{name} ({source})'} {_describe_counts(split)}"
    return f"{words}, {skipped} skipped" if skipped else words


def describe_control(control: Mapping[str, float], blind_drop: float) -> Section | None:
    """Return whether the masks depend on the image, or the prompt says it all; None where it was not measured.

    Args:
        control: from ``read_control``.
        blind_drop: a smaller loss of F1 with another image's embedding means that the image is hardly looked at.
    """
    lines = []
    drop, gain = control.get("wrong_image_drop", math.nan), control.get("gain_over_box_filled", math.nan)
    if math.isfinite(drop):
        verdict = "masks depend on the image" if drop >= blind_drop else "masks hardly depend on the image"
        lines.append(
            f"{verdict}: wrong-image drop {drop:.2f} (f1-score {control['f1-score']:.4f}, and {control['wrong_image']:.4f} "
            "with the embedding of another image)"
        )
    if math.isfinite(gain):
        lines.append(f"box filled: f1-score {control['box_filled']:.4f}; the model is {_compare(gain)} it")
    return Section("Does the model look at the image? (torch)", tuple(lines), finding=True) if lines else None


def _compare(gain: float) -> str:
    return f"{gain:.4f} above" if gain >= 0 else f"{-gain:.4f} below"


def read_control(metrics: Metrics, split: str) -> dict[str, float]:
    """Take the baselines of a test from its metrics; empty where they were not measured."""
    names = {"f1-score": "f1-score", "wrong_image": "wrong_image/f1-score", "box_filled": "box_filled/f1-score"}
    values = {name: metrics.get(f"{split}/{key}") for name, key in names.items()}
    found = {name: float(value) for name, value in values.items() if value is not None}
    for difference, baseline in (("wrong_image_drop", "wrong_image"), ("gain_over_box_filled", "box_filled")):
        if baseline in found:
            found[difference] = found["f1-score"] - found[baseline]
    return found if len(found) > 1 else {}


def read_times_in_turns(quantization: Metrics) -> dict[str, dict[str, float]]:
    """Take what the quantization measured of both models in turns, in seconds by column; empty where it lacks a number.

    It stands for what their tests measured, one after the other, at other times.
    """
    found = {}
    for column, model in (("ir", "fp32"), ("int8", "int8")):
        encoder, decoder = quantization.get(f"{model}/encoder_ms"), quantization.get(f"{model}/decoder_ms")
        if encoder is None or decoder is None:
            return {}
        times = {"encoder_time": encoder, "decoder_time": decoder, "iter_time": encoder + decoder}
        found[column] = {name: milliseconds / 1000 for name, milliseconds in times.items()}
    return found


def describe_steps(steps: Mapping[str, Mapping[str, Any]]) -> Section:
    """Describe how each step ended and how long it took.

    Args:
        steps: by name, ``status`` and ``seconds``.
    """
    lines = [f"{name}: {step['status'].lower()}, {_format_seconds(step['seconds'])}" for name, step in steps.items()]
    return Section("Steps", tuple(lines))


def _format_seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def describe_differences(
    columns: Columns, exports: Mapping[str, Metrics], quantization: Metrics | None = None
) -> Section | None:
    """Describe what each step changed, how many mask pixels of an exported model differ from torch, what INT8 gained.

    Args:
        columns: the comparison's columns.
        exports: by column, the metrics of the export that made it.
        quantization: the metrics of the quantization, which times both models in turns.
    """
    lines = describe_changes(columns)
    lines += _describe_gain(quantization or {})
    for column, metrics in exports.items():
        flipped = metrics.get("export/flipped_per_10000")
        if flipped is not None:
            lines.append(f"{column} against torch on a trial image: of 10,000 mask pixels {flipped:.2f} flip")
    return Section("What each step changed", tuple(lines), finding=True) if lines else None


def _describe_gain(quantization: Metrics) -> list[str]:
    words = []
    pairs = {
        name: (quantization.get(f"fp32/{name}"), quantization.get(f"int8/{name}"))
        for name in ("size_mb", "encoder_ms", "decoder_ms")
    }
    for name, (ir, int8) in pairs.items():
        if not ir or not int8:
            continue
        if name == "size_mb":
            words.append(f"{int8 / ir:.2f} of the size")
        else:
            part = name.removesuffix("_ms")
            words.append(f"{part} {ir / int8:.2f} times as fast ({ir:.1f} ms, {int8:.1f} ms)")
    return [f"int8 against ir, timed in turns: {', '.join(words)}"] if words else []
