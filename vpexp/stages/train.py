"""``stage=train``: measure the model, fine-tune it, measure it again."""

from pathlib import Path

from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from vpexp.console import say
from vpexp.data.types import AnnotatedDataset
from vpexp.evaluation.evaluator import EvaluationResult
from vpexp.inference.build import build_model
from vpexp.inference.checkpoint import apply_checkpoint, build_identity, find_checkpoint, read_checkpoint
from vpexp.inference.torch_predictor import TorchPredictor
from vpexp.models.sam import Sam
from vpexp.stages.assessment import assess, choose_device, save_overlays, summarize, tell_result
from vpexp.stages.context import RunContext, StageResult
from vpexp.stages.data import build_prompt_recipe, load_configured_dataset
from vpexp.tracking.metrics_csv import append_metrics
from vpexp.training.build import (
    STRIDES,
    build_callbacks,
    build_loss,
    build_optimizer_factory,
    build_scheduler_factory,
)
from vpexp.training.callbacks import EpochRecorder, IterationTimer, build_checkpoint_callbacks
from vpexp.training.datamodule import FineTuningData
from vpexp.training.module import SamFineTuner
from vpexp.training.trainer import build_trainer, fit


def run(context: RunContext) -> StageResult:
    """Fine-tune, keep the best epoch, and print before and after."""
    cfg = context.cfg
    splits = ("train", "val", "test") if cfg.stage.test else ("train", "val")
    dataset = load_configured_dataset(context, splits)
    sam, brought = _build_start_model(context)
    module = _build_module(context, sam, dataset, brought)
    resume_from = Path(cfg.resume) if cfg.resume else None
    # A run that goes on was measured when it began.
    before = {} if resume_from else _assess_splits(context, sam, dataset, "before")
    best = _fit(context, module, dataset, resume_from)
    say(f"best epoch: {best}")
    apply_checkpoint(sam, read_checkpoint(best))
    after = _assess_splits(context, sam, dataset, "after")
    return _conclude(context, before, after, best)


def _build_start_model(context: RunContext) -> tuple[Sam, tuple[str, ...]]:
    """Build the model to start from; also name the parts that a start checkpoint brought."""
    cfg = context.cfg
    sam = build_model(cfg.model, seed=cfg.seed, cache_dir=context.cache_dir)
    if cfg.checkpoint is None or cfg.resume:
        return sam, ()
    checkpoint = read_checkpoint(find_checkpoint(cfg.checkpoint, context.output_dir))
    apply_checkpoint(sam, checkpoint)
    say(f"starting from {checkpoint.path}")
    return sam, checkpoint.parts


def _build_module(context: RunContext, sam: Sam, dataset: AnnotatedDataset, brought: tuple[str, ...]) -> SamFineTuner:
    cfg = context.cfg
    left_out = [part for part in cfg.model.freeze if part not in brought]
    return SamFineTuner(
        sam,
        freeze=list(cfg.model.freeze),
        loss=build_loss(cfg.loss),
        stride=STRIDES[cfg.loss.resolution],
        categories=dataset.categories,
        build_optimizer=build_optimizer_factory(cfg.optimizer),
        build_scheduler=build_scheduler_factory(cfg.scheduler),
        identity=build_identity(sam, cfg, left_out=left_out, categories=dataset.categories),
    )


def _assess_splits(
    context: RunContext, sam: Sam, dataset: AnnotatedDataset, moment: str
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
        )
    if moment == "before":
        metrics = {f"before/{split}/f1-score": result.metrics["f1-score"] for split, result in results.items()}
        context.folder.update_run_json(before={split: result.metrics for split, result in results.items()})
        context.tracker.log_metrics(metrics)
        append_metrics(context.folder.metrics_csv, 0, {f"val/{k}": v for k, v in results["val"].metrics.items()})
        say(f"before training: f1-score {results['val'].metrics['f1-score']:.4f} on val")
    return results


def _fit(context: RunContext, module: SamFineTuner, dataset: AnnotatedDataset, resume_from: Path | None) -> Path:
    cfg = context.cfg
    data = FineTuningData(
        dataset,
        build_prompt_recipe(cfg.prompt),
        image_size=module.sam.image_size,
        stride=module.stride,
        batch_size=cfg.data.batch_size,
        num_workers=cfg.data.num_workers,
        seed=cfg.seed,
    )

    def record(metrics: dict[str, float], epoch: int) -> None:
        append_metrics(context.folder.metrics_csv, epoch, metrics)
        context.tracker.log_metrics(metrics, step=epoch)

    checkpoints = build_checkpoint_callbacks(context.folder.checkpoints)
    callbacks: list[Callback] = [
        *build_callbacks(cfg.callbacks),
        IterationTimer(),
        EpochRecorder(record),
        *checkpoints,
    ]
    trainer = build_trainer(cfg.trainer, callbacks, tensorboard=context.folder.tensorboard)
    fit(trainer, module, data, resume_from)
    if trainer.current_epoch < cfg.trainer.max_epochs:
        say(f"stopped early after {trainer.current_epoch} epochs: {cfg.trainer.max_epochs} were allowed")
    best = checkpoints[0]
    assert isinstance(best, ModelCheckpoint)
    context.folder.update_run_json(
        best_checkpoint=str(Path(best.best_model_path).relative_to(context.folder.path)),
        epochs=trainer.current_epoch,
        unreadable=module.unreadable,
    )
    return Path(best.best_model_path)


def _conclude(
    context: RunContext, before: dict[str, EvaluationResult], after: dict[str, EvaluationResult], best: Path
) -> StageResult:
    cfg = context.cfg
    metrics: dict[str, float] = {}
    details: dict[str, object] = {}
    for split, result in after.items():
        columns = {"before": before[split], "after": result} if split in before else {"after": result}
        tell_result(f"{cfg.model.name} on {cfg.data.name}/{split}", columns)
        numbers, about = summarize(result, split)
        metrics |= numbers
        details |= about
        if split in before:
            metrics |= {f"before/{split}/{name}": value for name, value in before[split].metrics.items()}
        save_overlays(context, result, split)
    context.tracker.log_artifact(best, "checkpoints")
    artifacts = {"best_checkpoint": best, "last_checkpoint": context.folder.last_checkpoint}
    return StageResult(metrics, artifacts, context.folder.path, details)
