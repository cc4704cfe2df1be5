"""Evaluate a model on a split of a data set, and tell: tables, overlays, records."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from vpexp import visuals
from vpexp.console import console, say
from vpexp.data.masks import decode_rle
from vpexp.data.samples import EvaluationSet
from vpexp.data.types import AnnotatedDataset
from vpexp.errors import DataError
from vpexp.evaluation.evaluator import EvaluationResult, KeptPrediction, evaluate
from vpexp.evaluation.report import build_class_table, build_metrics_table
from vpexp.inference.predictor import Predictor
from vpexp.stages.context import RunContext
from vpexp.stages.data import build_prompt_recipe
from vpexp.training.datamodule import build_evaluation_loader, with_objects

BLIND_DROP = 0.05  # an F1 drop below it means that another image's embedding does nearly as well


def choose_device(cfg: DictConfig) -> torch.device:
    """Choose where evaluation runs, as Lightning's ``accelerator`` would."""
    wanted = str(cfg.trainer.accelerator)
    if wanted in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu")


def assess(
    context: RunContext,
    predictor: Predictor,
    dataset: AnnotatedDataset,
    split: str,
    *,
    description: str,
    baselines: bool = False,
    overlays: int = 0,
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

    Raises:
        DataError: the split has no object to evaluate, or none of its images can be read.
    """
    cfg = context.cfg
    images = EvaluationSet(with_objects(dataset.splits[split].images), build_prompt_recipe(cfg.prompt))
    if not len(images):
        raise DataError(f"the {split} split of {dataset.root} has no object with a mask: nothing to evaluate")
    keep = np.linspace(0, len(images) - 1, min(overlays, len(images))).round().astype(int).tolist()
    result = evaluate(
        predictor,
        build_evaluation_loader(images, cfg.data.num_workers),
        dataset.categories,
        total=len(images),
        description=description,
        baselines=baselines,
        keep=keep,
    )
    if not result.images:
        raise DataError(
            f"none of the {len(images)} images of the {split} split can be read: {result.unreadable[0].reason}"
        )
    if result.unreadable:
        first = result.unreadable[0]
        say(
            f"{len(result.unreadable)} images of {split} could not be read and were skipped; the first: {first.reason}",
            style="yellow",
        )
    return result


def tell_result(title: str, columns: Mapping[str, EvaluationResult]) -> None:
    """Print the metrics of one or two models on one split, the last one's baselines beside them, and the classes."""
    last = list(columns.values())[-1]
    shown = {name: result.metrics for name, result in columns.items()}
    names = {"box_filled": "box filled", "wrong_image": "wrong image"}
    shown |= {names[name]: metrics for name, metrics in last.baselines.items()}
    console.print(build_metrics_table(f"{title}: {last.images} images, {last.objects} objects", shown))
    if len(last.per_class.get("map_per_class", {})) > 1:
        console.print(build_class_table(last.per_class, "by class"))
    if last.baselines:
        _tell_control(last)


def _tell_control(result: EvaluationResult) -> None:
    drop = result.wrong_image_drop
    filled = result.baselines["box_filled"]["f1-score"]
    if not np.isfinite(drop):
        say("wrong image: needs at least two images")
        return
    gain = result.metrics["f1-score"] - filled
    say(f"f1-score: {gain:+.4f} against the filled box; {drop:.4f} lost when the model is given another image")
    if drop < BLIND_DROP:
        say(
            "the masks hardly depend on the image: the model answers from the box alone (looser boxes, points or an "
            "unfrozen encoder make it look)",
            style="yellow",
        )


def save_overlays(context: RunContext, result: EvaluationResult, split: str) -> None:
    """Write the kept predictions as pictures and log them."""
    for kept in result.kept:
        picture = _draw(kept)
        name = Path(kept.sample.annotations.image_id).with_suffix("").as_posix().replace("/", "_")
        visuals.save_picture(picture, context.folder.overlays / f"{split}_{name}.png")
    if result.kept:
        context.tracker.log_artifact(context.folder.overlays)


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
        "unreadable": {image.image_id: image.reason for image in result.unreadable},
    }
    return numbers, {prefix: details}


def _draw(kept: KeptPrediction) -> Any:
    sample = kept.sample
    annotated = [decode_rle(rle) for rle in sample.annotations.masks]
    predicted = [decode_rle(rle) for rle in kept.predicted]
    overlap = sum(int((p & a).sum()) for p, a in zip(predicted, annotated, strict=True))
    total = sum(int(p.sum() + a.sum()) for p, a in zip(predicted, annotated, strict=True))
    prompts = list(zip(sample.prompts.coords_NP2, sample.prompts.labels_NP, strict=True))
    f1 = 2 * overlap / total if total else 0.0
    captions = (f"annotated: {len(annotated)} objects", f"predicted from the prompts: F1 {f1:.3f}")
    return visuals.draw_comparison(sample.image_HW3, annotated, predicted, prompts, captions)
