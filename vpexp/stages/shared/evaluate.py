"""Evaluate a model on a split of a data set, and report it: tables of metrics side by side, overlays, records."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table

from vpexp import visuals
from vpexp.console import PlainTable, console, format_count, log_line
from vpexp.data.annotations import AnnotatedDataset, spread_places, with_objects
from vpexp.data.batch import EvaluationSet
from vpexp.data.image_files import IMAGE_SUFFIXES
from vpexp.data.images import read_image
from vpexp.data.loaders import build_evaluation_loader
from vpexp.data.masks import decode_rle
from vpexp.embeddings.cache import EmbeddingCache
from vpexp.errors import DataError
from vpexp.evaluation.average_precision import SUMMARY_NAMES
from vpexp.evaluation.click_protocol import build_interaction
from vpexp.evaluation.evaluator import EvaluationResult, KeptPrediction, Metric, evaluate
from vpexp.files import replacing
from vpexp.inference.predictor import Predictor
from vpexp.registry import build_target
from vpexp.stages.shared.context import IMAGES_OF, RunContext

BLIND_DROP = 0.05  # an F1 drop below it means that another image's embedding does nearly as well
ROWS = ("f1-score", "iou", "mean_iou", *SUMMARY_NAMES, "iter_time", "encoder_time", "decoder_time", "data_time")
SAME_AS_F1 = "dice"
SECONDS = ("iter_time", "encoder_time", "decoder_time", "data_time")
BY_CLICK = ("mean_iou_clicks_", "f1-score_clicks_")
NOC, FAILED = "noc_", "_failed"
NO_NUMBER = "-"


def build_metrics(section: Mapping[str, Any]) -> list[Metric]:
    """Build the metrics of the section ``metrics``; an entry that is null is switched off."""
    return [build_target(f"metrics.{name}", options, Metric) for name, options in section.items() if options]


def assess(
    context: RunContext,
    predictor: Predictor,
    dataset: AnnotatedDataset,
    split: str,
    *,
    description: str,
    baselines: bool = False,
    overlays: int = 0,
    cache: EmbeddingCache | None = None,
    timed_images: int = 0,
) -> EvaluationResult:
    """Evaluate a predictor on a split.

    Args:
        context: the run.
        predictor: any backend.
        dataset: holds the split.
        split: train, val or test.
        description: for the progress bar.
        baselines: also score the filled box and the wrong-image control.
        overlays: how many images, spread evenly over the split, are kept for pictures.
        cache: of the predictor's encoder; None encodes all images.
        timed_images: so many are encoded all the same, for the time it takes.

    Raises:
        DataError: the split has no object to evaluate, or none of its images can be read.
    """
    cfg = context.cfg
    settings = context.settings
    recipe = settings.prompt
    images = EvaluationSet(
        with_objects(dataset.splits[split].images),
        recipe,
        embeddings=cache.stored if cache else None,
        read_first=timed_images,
    )
    if not len(images):
        raise DataError(f"the {split} split of {dataset.root} has no object with a mask: nothing to evaluate")
    keep = spread_places(len(images), overlays)
    result = evaluate(
        predictor,
        build_evaluation_loader(images, cfg.data.num_workers),
        dataset.categories,
        total=len(images),
        description=description,
        baselines=baselines,
        keep=keep,
        remember=cache.remember if cache else None,
        interaction=build_interaction(recipe),
        metrics=build_metrics(settings.metrics),
    )
    if not result.images:
        raise DataError(
            f"none of the {len(images)} images of the {split} split can be read: {result.unreadable[0].reason}"
        )
    return result


def print_unreadable(split: str, unreadable: Mapping[str, str]) -> None:
    """Describe how many images of a split could not be read, and why the first of them."""
    if unreadable:
        what = "image was" if len(unreadable) == 1 else "images were"
        first = next(iter(unreadable.values()))
        log_line(f"{len(unreadable)} {what} passed over in {split}, damaged inside; the first: {first}", style="yellow")


def record_unreadable(context: RunContext, details: Mapping[str, Mapping[str, Any]]) -> None:
    """Count the images whose pixels could not be read beside what was skipped of each split, in ``run.json``."""
    splits = context.folder.read_run_json().get("splits", {})
    for split, about in details.items():
        if split in splits and about["unreadable"]:
            splits[split]["skipped"]["image cannot be decoded"] = len(about["unreadable"])
    context.folder.update_run_json(splits=splits)


def print_result(title: str, column: str, result: EvaluationResult, before: Mapping[str, float] | None = None) -> None:
    """Print the metrics of a model on a split, what it had before and its baselines beside them, and the classes."""
    print_unreadable(title, _list_unreadable(result))
    names = {"box_filled": "box filled", "wrong_image": "wrong image"}
    shown: dict[str, Mapping[str, float]] = {"before": before} if before else {}
    shown[column] = result.metrics
    shown |= {names[name]: metrics for name, metrics in result.baselines.items()}
    console.print(
        build_metrics_table(
            f"{title}: {format_count(result.images, 'image')}, {format_count(result.objects, 'object')}", shown
        )
    )
    if counts_clicks(result.metrics):
        console.print(
            build_click_table("by clicks", {name: shown[name] for name in shown if counts_clicks(shown[name])})
        )
    if len(result.per_class.get("map_per_class", {})) > 1:
        console.print(build_class_table(result.per_class, "by class"))
    if result.baselines:
        first, *warnings = judge_baselines(result)
        log_line(first)
        for warning in warnings:
            log_line(warning, style="yellow")


def judge_baselines(result: EvaluationResult) -> list[str]:
    """Describe how a model compares with its baselines, F1 and mean IoU alike; what is wrong comes last."""
    drop, filled = result.wrong_image_drop, result.baselines["box_filled"]
    if not np.isfinite(drop):
        return ["wrong image: needs at least two images"]
    gains = {name: result.metrics[name] - filled[name] for name in ("f1-score", "mean_iou")}
    against = ", ".join(f"{name} {gain:+z.4f}" for name, gain in gains.items())
    lines = [f"against the filled box: {against}; with another image's embedding: f1-score {-drop:+z.4f}"]
    if gains["mean_iou"] < 0:
        lines.append(
            "the typical object is masked worse than by its filled box (mean_iou counts each object alike, f1-score by "
            "its area): small ones are; data.tile, a larger model.image_size or more epochs help them"
            if gains["f1-score"] > 0
            else "the masks are worse than filled boxes"
        )
    if drop < BLIND_DROP:
        lines.append(
            "the masks hardly depend on the image: the model answers from the prompt alone (looser boxes, points or an "
            "unfrozen encoder make it look)"
        )
    return lines


def save_overlays(context: RunContext, result: EvaluationResult, split: str) -> None:
    """Write the kept predictions as pictures and log them."""
    taken: set[str] = set()
    classes = len(list_categories(context))
    for kept in result.kept:
        try:
            picture = draw_kept(kept, classes)
        except DataError as error:  # its embedding was stored, and its file is gone by now
            log_line(f"no picture: {error}", style="yellow")
            continue
        name = name_overlay(kept.sample.annotations.image_id, taken)
        visuals.save_picture(picture, context.folder.overlays / f"{split}_{name}.png")
    if result.kept:
        context.tracker.log_artifact(context.folder.overlays)


def name_overlay(image_id: str, taken: set[str]) -> str:
    """Name the picture of an image, without the suffix of its file; see ``name_picture``."""
    suffix = PurePath(image_id).suffix
    return visuals.name_picture(image_id.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else image_id, taken)


def save_image_table(context: RunContext, result: EvaluationResult, split: str) -> dict[str, Path]:
    """Write F1 and IoU of each image of a split, pixels summed over its objects; the file by its artifact's name."""
    path = context.folder.images_of(split)
    with replacing(path) as draft, draft.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("split", "image", "f1-score", "iou", "overlap", "predicted", "annotated"))
        for image, (overlap, predicted, annotated) in result.image_sums.items():
            both = predicted + annotated
            scores = (f"{2 * overlap / both:.4f}", f"{overlap / (both - overlap):.4f}")
            writer.writerow((split, image, *scores, overlap, predicted, annotated))
    context.tracker.log_artifact(path)
    return {f"{IMAGES_OF}{split}": path}


def summarize(result: EvaluationResult, prefix: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Turn a result into numbers by name (``test/f1-score``) and details for ``metrics.json``."""
    numbers = {f"{prefix}/{name}": value for name, value in result.metrics.items()}
    for baseline, metrics in result.baselines.items():
        numbers |= {f"{prefix}/{baseline}/{name}": value for name, value in metrics.items()}
    for name, by_class in result.per_class.items():
        numbers |= {f"{prefix}/{name}/{label}": value for label, value in by_class.items()}
    details = {
        "images": result.images,
        "objects": result.objects,
        "unreadable": _list_unreadable(result),
    }
    return numbers, {prefix: details}


def _list_unreadable(result: EvaluationResult) -> dict[str, str]:
    return {image.image_id: image.reason for image in result.unreadable}


def list_categories(context: RunContext) -> list[str]:
    """List the classes of the data set that the run has read."""
    return list(context.folder.read_run_json().get("data", {}).get("categories", ()))


def draw_kept(kept: KeptPrediction, classes: int) -> Image.Image:
    """Draw the annotated and the predicted masks of an image side by side; ``classes`` is how many the data set has.

    Raises:
        DataError: its embedding was stored, and its pixels cannot be read.
    """
    sample = kept.sample
    annotated = [decode_rle(rle) for rle in sample.annotations.masks]
    predicted = [decode_rle(rle) for rle in kept.predicted]
    overlap = sum(int((p & a).sum()) for p, a in zip(predicted, annotated, strict=True))
    total = sum(int(p.sum() + a.sum()) for p, a in zip(predicted, annotated, strict=True))
    f1 = 2 * overlap / total if total else 0.0
    captions = (f"annotated: {format_count(len(annotated), 'object')}", f"predicted from the prompts: F1 {f1:.3f}")
    image_HW3 = sample.image_HW3
    if image_HW3 is None:
        place = sample.annotations.place
        image_HW3 = read_image(place.path, place.exif_transpose, window=place.window)
    colors = visuals.choose_colors(sample.annotations.labels_N, classes)
    return visuals.draw_comparison(image_HW3, annotated, predicted, kept.prompts, captions, colors=colors)


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
    shown_once = (*ROWS, SAME_AS_F1)
    others = dict.fromkeys(name for metrics in columns.values() for name in metrics if name not in shown_once)
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
    digits = 3 if name in SECONDS else 4
    text = f"{value:z.{digits}f}"
    return f"{text} s" if name in SECONDS else text
