"""``stage=train``: measure the model, fine-tune it, measure it again."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from vpexp.console import say
from vpexp.data.types import AnnotatedDataset
from vpexp.errors import DataError
from vpexp.evaluation.evaluator import EvaluationResult
from vpexp.inference.build import build_model
from vpexp.inference.checkpoint import apply_checkpoint, build_identity, find_checkpoint, read_checkpoint
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
from vpexp.stages.data import build_prompt_recipe, load_configured_dataset
from vpexp.stages.embeddings import prepare_embeddings
from vpexp.stages.registry import log_checkpoint
from vpexp.tracking.metrics_csv import append_metrics
from vpexp.training.build import (
    build_callbacks,
    build_loss,
    build_optimizer_factory,
    build_scheduler_factory,
)
from vpexp.training.callbacks import EpochRecorder, IterationTimer, build_checkpoint_callbacks
from vpexp.training.datamodule import FineTuningData
from vpexp.training.module import SamFineTuner
from vpexp.training.step_loss import StepLoss
from vpexp.training.trainer import build_trainer, fit

Metrics = dict[str, dict[str, float]]
"""Numbers of each split."""


@dataclass(frozen=True, slots=True)
class TrainingLoop:
    """What trains: built before the first evaluation, so that a wrong option does not cost the wait for it."""

    module: SamFineTuner
    data: FineTuningData
    trainer: pl.Trainer
    best: ModelCheckpoint


def run(context: RunContext) -> StageResult:
    """Fine-tune, keep the best epoch, and print before and after."""
    cfg = context.cfg
    sam, brought = _build_start_model(context)
    dataset = load_configured_dataset(context, ("train", "val", "test") if cfg.stage.test else ("train", "val"))
    loop = build_loop(context, sam, dataset, brought)
    encoder = prepare_embeddings(context, sam, dataset, list(dataset.splits))
    loop.module.embedding_cache = encoder.cache
    loop.data.use_embeddings(encoder.stored)
    try:
        before = _read_before(context) if cfg.resume else _measure_before(context, sam, dataset, encoder.cache)
        best = _fit(context, loop)
        apply_checkpoint(sam, read_checkpoint(best))
        after = _assess_splits(context, sam, dataset, "after", encoder.cache)
    finally:
        encoder.record(context)
    return _conclude(context, before, after, best, loop.module.unreadable)


def _build_start_model(context: RunContext) -> tuple[Sam, tuple[str, ...]]:
    """Build the model to start from; also name the parts that a start checkpoint brought."""
    cfg = context.cfg
    sam = build_model(cfg.model, seed=cfg.seed, cache_dir=context.cache_dir)
    if cfg.checkpoint is None or cfg.resume:
        return sam, ()
    checkpoint = read_checkpoint(Path(cfg.checkpoint))
    apply_checkpoint(sam, checkpoint)
    say(f"starting from {checkpoint.path}")
    return sam, checkpoint.parts


def build_loop(context: RunContext, sam: Sam, dataset: AnnotatedDataset, brought: tuple[str, ...]) -> TrainingLoop:
    """Build what trains; ``brought`` names the parts that a start checkpoint brought."""
    cfg = context.cfg
    left_out = [part for part in cfg.model.freeze if part not in brought]
    module = SamFineTuner(
        sam,
        freeze=list(cfg.model.freeze),
        step_loss=StepLoss(build_loss(cfg.loss), cfg.loss.resolution),
        categories=dataset.categories,
        build_optimizer=build_optimizer_factory(cfg.optimizer),
        build_scheduler=build_scheduler_factory(cfg.scheduler),
        identity=build_identity(sam, cfg, left_out=left_out, categories=dataset.categories),
    )
    data = FineTuningData(
        dataset,
        build_prompt_recipe(cfg.prompt),
        image_size=sam.image_size,
        resolution=cfg.loss.resolution,
        batch_size=cfg.data.batch_size,
        num_workers=cfg.data.num_workers,
        seed=cfg.seed,
    )
    # Lightning builds its own when training starts; these only show whether the options are right.
    module.build_scheduler(module.build_optimizer([p for p in sam.parameters() if p.requires_grad]), 1)
    best, last = build_checkpoint_callbacks(context.folder.checkpoints)
    assert isinstance(best, ModelCheckpoint)
    recorder = EpochRecorder(partial(_record_epoch, context, module, data))
    callbacks: list[Callback] = [*build_callbacks(cfg.callbacks), IterationTimer(), recorder, best, last]
    trainer = build_trainer(cfg.trainer, callbacks, tensorboard=context.folder.tensorboard)
    return TrainingLoop(module, data, trainer, best)


def _record_epoch(
    context: RunContext, module: SamFineTuner, data: FineTuningData, metrics: dict[str, float], epoch: int
) -> None:
    if len(module.unreadable) == len(data.training_set):
        raise DataError(
            f"none of the {len(data.training_set)} images of the train split can be read: "
            f"{min(module.unreadable.values())}"
        )
    append_metrics(context.folder.metrics_csv, epoch, metrics)
    context.tracker.log_metrics(metrics, step=epoch)


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


def _fit(context: RunContext, loop: TrainingLoop) -> Path:
    """Train, and return the checkpoint of the best epoch."""
    cfg, trainer = context.cfg, loop.trainer
    fit(trainer, loop.module, loop.data, Path(cfg.resume) if cfg.resume else None)
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
