"""What trains: model, data and Lightning's Trainer as the configuration describes them, the same in every process."""

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from vpexp.config.schema import Config
from vpexp.console import format_count, log_line
from vpexp.data.annotations import AnnotatedDataset
from vpexp.devices import CUDA, Precision, choose_device
from vpexp.embeddings.cache import EmbeddingCache
from vpexp.errors import ConfigError, DataError
from vpexp.evaluation.click_protocol import build_interaction
from vpexp.inference.torch_instances import InstanceParts
from vpexp.inference.torch_model import apply_checkpoint, build_identity, load_sam, read_checkpoint
from vpexp.models.layers import BlockEncoder
from vpexp.models.sam import Sam
from vpexp.models.tuning import ENCODER, Lora, Tuning, apply_tuning, find_trained, merge_lora, plan_tuning
from vpexp.runfolder import append_metrics, read_metrics
from vpexp.stages.shared.context import RunContext
from vpexp.stages.shared.evaluate import build_metrics
from vpexp.stages.shared.precision import decide_precision
from vpexp.training.build import (
    MONITOR,
    build_callbacks,
    build_loss,
    build_optimizer_factory,
    build_scheduler_factory,
)
from vpexp.training.callbacks import EpochRecorder, IterationTimer, build_checkpoint_callbacks
from vpexp.training.module import FineTuningData, SamFineTuner
from vpexp.training.step_loss import StepLoss
from vpexp.training.trainer import build_trainer


@dataclass(frozen=True, slots=True)
class TrainingLoop:
    """What trains: built before the first evaluation, so that a wrong option does not cost the wait for it."""

    module: SamFineTuner
    data: FineTuningData
    trainer: pl.Trainer
    best: ModelCheckpoint
    precision: Precision

    def use_embeddings(self, cache: EmbeddingCache | None) -> None:
        """Read stored embeddings instead of pixels, and encode what is missing; None encodes in every step."""
        self.module.embedding_cache = cache
        self.data.use_embeddings(cache.stored if cache else None)


@dataclass(frozen=True, slots=True)
class StartModel:
    """What a training starts from.

    Attributes:
        sam: the model.
        brought: names the parts that a start checkpoint brought.
        instances: what that checkpoint has learnt beside the decoder.
    """

    sam: Sam
    brought: tuple[str, ...] = ()
    instances: InstanceParts | None = None


def build_start_model(context: RunContext) -> StartModel:
    """Build the model to start from; of a run that goes on, whose weights are loaded later, without those of its start."""
    cfg = context.cfg
    sam = load_sam(context.settings.model, seed=cfg.seed, weights_dir=context.weights_dir)
    if cfg.checkpoint is None or (cfg.resume and not cfg.prompter.enabled):
        return StartModel(sam)
    checkpoint = read_checkpoint(Path(cfg.checkpoint))
    if cfg.resume:
        return StartModel(sam, instances=checkpoint.instances)
    apply_checkpoint(sam, checkpoint)
    merge_lora(sam)
    log_line(f"starting from {checkpoint.path}")
    return StartModel(sam, checkpoint.parts, checkpoint.instances if cfg.prompter.enabled else None)


def tune_model(settings: Config, sam: Sam) -> Tuning:
    """Prepare a model for learning what the sections ``model`` and ``adapter`` say.

    Raises:
        ConfigError: the model has no such part, or too few blocks.
    """
    adapter, encoder = settings.adapter, sam.image_encoder
    lora = None if adapter.kind == "none" else Lora(adapter.rank, adapter.alpha, adapter.targets)
    tuning = plan_tuning(sam, settings.model.freeze, settings.model.tune, lora)
    apply_tuning(sam, tuning, seed=settings.seed)
    if settings.trainer.gradient_checkpointing:
        if not isinstance(encoder, BlockEncoder):
            raise ConfigError(
                f"trainer.gradient_checkpointing: {type(encoder).__name__} does not list its blocks: leave it out"
            )
        encoder.gradient_checkpointing = True
    return tuning


def build_loop(
    context: RunContext, sam: Sam, dataset: AnnotatedDataset, brought: tuple[str, ...], *, rank: int = 0
) -> TrainingLoop:
    """Build what trains.

    Args:
        context: the run.
        sam: the model.
        dataset: with splits train and val.
        brought: names the parts that a start checkpoint brought.
        rank: of this process, where several devices train.
    """
    cfg, settings = context.cfg, context.settings
    device = choose_device(cfg.trainer)
    recipe = settings.prompt
    tuning = tune_model(settings, sam)
    parts = [*tuning.frozen, *([ENCODER] if find_trained(sam, tuning) else [])]
    module = SamFineTuner(
        sam,
        tuning=tuning,
        step_loss=StepLoss(build_loss(settings.loss), cfg.loss.resolution, recipe.feed_mask, recipe.multimask),
        categories=dataset.categories,
        build_optimizer=build_optimizer_factory(cfg.optimizer),
        build_scheduler=build_scheduler_factory(cfg.scheduler),
        identity=build_identity(sam, cfg, tuning, [part for part in parts if part not in brought], dataset.categories),
        interaction=build_interaction(recipe),
        metrics=build_metrics(settings.metrics),
    )
    data = FineTuningData(
        dataset,
        recipe,
        image_size=sam.image_size,
        resize=sam.interface.resize,
        resolution=cfg.loss.resolution,
        batch_size=cfg.data.batch_size,
        num_workers=cfg.data.num_workers,
        seed=cfg.seed,
        pin_memory=device.type == CUDA,
        augment=settings.data.augment,
    )
    # Lightning builds its own when training starts; these only show whether the options are right.
    module.build_scheduler(module.build_optimizer(sam), 1)
    best, last = build_checkpoint_callbacks(context.folder.checkpoints)
    assert isinstance(best, ModelCheckpoint)
    recorder = EpochRecorder(partial(_record_epoch, context, module, data))
    callbacks: list[Callback] = [*build_callbacks(cfg.callbacks), IterationTimer(), recorder, best, last]
    precision = decide_precision(context, device, tell=rank == 0)
    trainer = build_trainer(
        replace(settings.trainer, precision=precision.name),
        callbacks,
        tensorboard=context.folder.tensorboard,
        rank=rank,
        # Boxes and points have weights of their own, and a step prompts by one of them.
        find_unused_parameters="prompt_encoder" not in cfg.model.freeze,
    )
    if trainer.world_size > len(data.validation_set):
        raise DataError(
            f"the val split has {format_count(len(data.validation_set), 'image')} with objects, fewer than the {trainer.world_size} "
            f"processes of trainer.devices={cfg.trainer.devices}: set trainer.devices=1"
        )
    return TrainingLoop(module, data, trainer, best, precision)


def _record_epoch(
    context: RunContext,
    module: SamFineTuner,
    data: FineTuningData,
    metrics: dict[str, float],
    epoch: int,
    *,
    seconds: float,
) -> None:
    if len(module.unreadable) == len(data.training_set):
        raise DataError(
            f"none of the {len(data.training_set)} images of the train split can be read: "
            f"{min(module.unreadable.values())}"
        )
    log_line(_describe_epoch(context, metrics, epoch, seconds))
    context.tracker.log_epoch(
        metrics, epoch
    )  # first: a process that is killed in between leaves no row that MLflow never gets
    append_metrics(context.folder.metrics_csv, epoch, metrics)


def _describe_epoch(context: RunContext, metrics: dict[str, float], epoch: int, seconds: float) -> str:
    """Describe an epoch in one line; ``best`` where no earlier one, nor the start, scored as high on val."""
    most = context.cfg.trainer.max_epochs
    words = [f"epoch {epoch:{len(str(most))}}/{most}", f"{seconds:.0f} s"]
    words += [f"loss {metrics['train/loss']:.4f}"] if "train/loss" in metrics else []
    words += [f"val {name} {metrics[f'val/{name}']:.4f}" for name in ("f1-score", "map") if f"val/{name}" in metrics]
    earlier = [float(row[MONITOR]) for row in read_metrics(context.folder.metrics_csv) if row.get(MONITOR)]
    is_best = MONITOR in metrics and metrics[MONITOR] > max(earlier, default=-math.inf)
    return "  ".join([*words, *(["best"] if is_best else [])])
