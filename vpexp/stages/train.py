"""``stage=train``: measure the model, fine-tune it, measure it again."""

import math
from pathlib import Path
from typing import Any

from vpexp.console import say
from vpexp.data.types import AnnotatedDataset
from vpexp.evaluation.evaluator import EvaluationResult
from vpexp.inference.checkpoint import apply_checkpoint, find_checkpoint, read_checkpoint
from vpexp.inference.embedding_cache import EmbeddingCache
from vpexp.inference.torch_predictor import TorchPredictor
from vpexp.models.sam import Sam
from vpexp.stages.assessment import (
    assess,
    choose_device,
    record_unreadable,
    save_overlays,
    summarize,
    tell_result,
    tell_unreadable,
)
from vpexp.stages.context import RunContext, StageResult, name_data
from vpexp.stages.dataset import load_configured_dataset
from vpexp.stages.embeddings import prepare_embeddings
from vpexp.stages.many_devices import fit_on_devices
from vpexp.stages.registry import log_checkpoint
from vpexp.stages.training_loop import TrainingLoop, build_loop, build_start_model
from vpexp.tracking.metrics_csv import append_metrics

Metrics = dict[str, dict[str, float]]
"""Numbers of each split."""


def run(context: RunContext) -> StageResult:
    """Fine-tune, keep the best epoch, and print before and after."""
    cfg = context.cfg
    sam, brought = build_start_model(context)
    dataset = load_configured_dataset(context, ("train", "val", "test") if cfg.stage.test else ("train", "val"))
    loop = build_loop(context, sam, dataset, brought)
    encoder = prepare_embeddings(context, sam, dataset, list(dataset.splits))
    loop.use_embeddings(encoder.cache)
    try:
        before = _read_before(context) if cfg.resume else _measure_before(context, sam, dataset, encoder.cache)
        fit_on_devices(context, loop, dataset, encoder)
        best = _find_best(context, loop)
        apply_checkpoint(sam, read_checkpoint(best))
        after = _assess_splits(context, sam, dataset, "after", encoder.cache)
    finally:
        encoder.record(context)
    return _conclude(context, before, after, best, loop.module.unreadable)


def _assess_splits(
    context: RunContext, sam: Sam, dataset: AnnotatedDataset, moment: str, cache: EmbeddingCache | None
) -> dict[str, EvaluationResult]:
    """Evaluate val, and test where it is asked for; baselines and overlays only at the end, on the last of them."""
    cfg = context.cfg
    predictor = TorchPredictor(sam.to(choose_device(cfg)).eval())
    splits = ["val", cfg.stage.split] if cfg.stage.test else ["val"]
    results: dict[str, EvaluationResult] = {}
    for split in dict.fromkeys(splits):
        final = moment == "after" and split == splits[-1]
        results[split] = assess(
            context,
            predictor,
            dataset,
            split,
            description=f"{moment}: {split}",
            baselines=final and cfg.stage.controls,
            overlays=cfg.stage.overlays if final else 0,
            cache=cache,
        )
    return results


def _measure_before(context: RunContext, sam: Sam, dataset: AnnotatedDataset, cache: EmbeddingCache | None) -> Metrics:
    """Measure the model as it comes to the training: the row of epoch 0."""
    results = _assess_splits(context, sam, dataset, "before", cache)
    before = {split: result.metrics for split, result in results.items()}
    val = {f"val/{name}": value for name, value in before["val"].items()}
    context.folder.update_run_json(before=before)
    append_metrics(context.folder.metrics_csv, 0, val)
    context.tracker.log_metrics(val, step=0)
    say(f"before training: f1-score {before['val']['f1-score']:.4f} on val")
    return before


def _read_before(context: RunContext) -> Metrics:
    """Read what was measured when the run that goes on began."""
    say(f"going on with {context.cfg.resume}")
    recorded = context.folder.read_run_json().get("before") or {}
    return {
        split: {name: math.nan if value is None else value for name, value in metrics.items()}
        for split, metrics in recorded.items()
    }


def _find_best(context: RunContext, loop: TrainingLoop) -> Path:
    """Find the checkpoint of the best epoch, and say which it is."""
    cfg, trainer = context.cfg, loop.trainer
    if trainer.current_epoch < cfg.trainer.max_epochs:
        say(f"stopped early after {trainer.current_epoch} epochs: {cfg.trainer.max_epochs} were allowed")
    # Lightning forgets the best of earlier epochs where a run was moved before it went on.
    best = Path(loop.best.best_model_path or find_checkpoint(str(context.folder.path), context.output_dir))
    context.folder.update_run_json(
        best_checkpoint=str(best.resolve().relative_to(context.folder.path)), epochs=trainer.current_epoch
    )
    say(f"best epoch: {int(best.stem.rpartition('_')[2]) + 1} of {trainer.current_epoch}, kept in {best}")
    return best


def _conclude(
    context: RunContext, before: Metrics, after: dict[str, EvaluationResult], best: Path, unreadable: dict[str, str]
) -> StageResult:
    cfg = context.cfg
    tell_unreadable("train", unreadable)
    metrics: dict[str, float] = {}
    details: dict[str, Any] = {"train": {"unreadable": unreadable}}
    for split, result in after.items():
        tell_result(f"{cfg.model.name} on {name_data(cfg)}/{split}", "after", result, before.get(split))
        numbers, about = summarize(result, split)
        metrics |= numbers
        details |= about
        metrics |= {f"before/{split}/{name}": value for name, value in before.get(split, {}).items()}
        save_overlays(context, result, split)
    record_unreadable(context, details)
    log_checkpoint(context, best)
    artifacts = {"best_checkpoint": best, "last_checkpoint": context.folder.last_checkpoint}
    return StageResult(metrics, artifacts, context.folder.path, details)
