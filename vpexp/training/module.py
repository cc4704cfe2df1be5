"""Fine-tuning in Lightning's terms: its module, whose frozen parts stay frozen, and its data module.

Legend: B images, C channels, S model size.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from vpexp.config.schema import PromptConfig
from vpexp.data.annotations import AnnotatedDataset, with_objects
from vpexp.data.batch import Batch, EvaluationSample, EvaluationSet, TrainingSet, UnreadableImage, collate_training
from vpexp.data.interface import FIT
from vpexp.data.loaders import ResumableBatchSampler, build_evaluation_loader
from vpexp.embeddings.cache import EmbeddingCache
from vpexp.embeddings.store import StoredEmbeddings
from vpexp.errors import CheckpointError, ConfigError, DivergenceError
from vpexp.evaluation.click_protocol import Interaction
from vpexp.evaluation.evaluator import EvaluationResult, Evaluator, Metric
from vpexp.inference.torch_predictor import TorchPredictor
from vpexp.models.mask_decoder import THREE_MASKS
from vpexp.models.sam import Sam
from vpexp.models.tuning import Tuning, list_left_out
from vpexp.signals import leave_stops_to_parent
from vpexp.training.distributed import average, gather, get_world_size, share
from vpexp.training.losses import LossTerms
from vpexp.training.step_loss import StepLoss

LOSS_NAMES = ("train/loss", "train/loss_focal", "train/loss_dice", "train/loss_iou")
STEPS_UNREAD = 16
"""Steps on a GPU whose losses wait there before they are read together: reading stops the CPU until the GPU is done."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What a step has found.

    Attributes:
        means_5: the four losses over the prompts of all processes, and the number of these prompts; on the device.
        image_ids: of this process.
    """

    means_5: Tensor
    image_ids: list[str]


class SamFineTuner(pl.LightningModule):
    """Trains the parts of a ``Sam`` that are not frozen.

    Args:
        sam: the model; its frozen parts get no gradient and stay in eval mode, whatever mode the module is in.
        tuning: what learns, as ``apply_tuning`` has it.
        step_loss: the loss of a step.
        categories: class names, for validation.
        build_optimizer: takes the model, and trains what of it needs a gradient.
        build_scheduler: takes the optimizer and the number of optimizer steps of the whole training; returns Lightning's
            ``scheduler``, ``interval`` and ``monitor``.
        identity: what a checkpoint says of itself (configuration, hashes of frozen parts); plain values.
        interaction: how validation asks for objects; None: by one prompt each.
        metrics: of the user's own, for validation.

    Attributes:
        embedding_cache: of the frozen encoder; None has every step encode its images.
        last_loss: of the last step whose loss was read.
    """

    def __init__(
        self,
        sam: Sam,
        *,
        tuning: Tuning,
        step_loss: StepLoss,
        categories: Sequence[str],
        build_optimizer: Callable[[Sam], Optimizer],
        build_scheduler: Callable[[Optimizer, int], dict[str, Any]],
        identity: dict[str, Any],
        interaction: Interaction | None = None,
        metrics: Sequence[Metric] = (),
    ) -> None:
        super().__init__()
        self.sam = sam
        self.tuning = tuning
        self.step_loss = step_loss
        self.categories = tuple(categories)
        self.build_optimizer = build_optimizer
        self.build_scheduler = build_scheduler
        self.identity = identity
        self.embedding_cache: EmbeddingCache | None = None
        self.validation_result: EvaluationResult | None = None
        self.epoch_sums: dict[str, float] = {}
        self._step: StepRecord | None = None
        self._unread: list[StepRecord] = []
        self.last_loss: float | None = None
        self.unreadable: dict[str, str] = {}
        self.interaction = interaction
        self.metrics = metrics
        self._evaluator = Evaluator(self.categories)
        self._freeze()
        self._left_out = list_left_out(sam, tuning, identity["frozen"])

    def train(self, mode: bool = True) -> "SamFineTuner":
        """Set training mode; frozen parts stay in eval mode, and so does every BatchNorm.

        With few images a step, batch statistics are noise: fine-tuning keeps the statistics of the pre-training and learns
        the scales and shifts (as in Ren et al. 2015 and most detectors since).
        """
        super().train(mode)
        for name in self.tuning.frozen:
            getattr(self.sam, name).eval()
        for module in self.sam.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 (the base class of all of them)
                module.eval()
        return self

    def on_fit_start(self) -> None:
        """Put what learns into training mode: Lightning leaves modules in the mode they were built in."""
        self.train()

    def on_fit_end(self) -> None:
        """Leave the model as it is used."""
        self.eval()

    def training_step(self, batch: Batch | list[UnreadableImage], batch_idx: int) -> Tensor:
        """Compute the loss of all prompts of a step."""
        del batch_idx
        if isinstance(batch, list):
            self._note_unreadable(batch)
            return self._share(self._compute_nothing(), 0, [])
        self._note_unreadable(batch.unreadable)
        return self._share(self._compute_terms(batch), len(batch.labels_NP), batch.image_ids)

    def gather_unreadable(self) -> None:
        """Let every process know which images could not be read anywhere."""
        for part in gather(self.unreadable):
            self.unreadable.update(part)

    def on_train_epoch_start(self) -> None:
        """Choose the epoch's order of images; start its sums, unless they came with a checkpoint from its middle."""
        # Lightning tells samplers their epoch, but not batch samplers.
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, FineTuningData):
            repeats = self.trainer.overfit_batches  # type: ignore[attr-defined]  # Lightning sets it by name
            data.sampler.set_epoch(0 if repeats else self.current_epoch)
        self.validation_result = None  # an epoch may have none: trainer.extra.check_val_every_n_epoch
        if self.epoch_sums.get("epoch") != self.current_epoch:
            self.epoch_sums = {"epoch": self.current_epoch}

    def on_train_batch_end(self, *_: Any) -> None:
        """Count a step's losses when it is done: one that is broken off is done again, and counts once."""
        if self._step is not None:
            self._unread.append(self._step)
        self._step = None
        if self.device.type == "cpu" or self.trainer.is_last_batch or len(self._unread) == STEPS_UNREAD:
            self._read_losses()

    def _read_losses(self) -> None:
        """Add the losses of the last steps to the epoch's, which waits for a GPU.

        Raises:
            DivergenceError: see ``_check_loss``.
        """
        records, self._unread = self._unread, []
        if not records:
            return
        for record, values_5 in zip(records, torch.stack([one.means_5 for one in records]).tolist(), strict=True):
            *values_4, prompts = values_5
            if not prompts:
                continue  # nothing was there to learn from, in no process
            self._check_loss(values_4[0], record)
            self.last_loss = values_4[0]
            for name, value in zip(LOSS_NAMES, values_4, strict=True):
                self.epoch_sums[name] = self.epoch_sums.get(name, 0.0) + value
            self.epoch_sums["steps"] = self.epoch_sums.get("steps", 0) + 1

    def _check_loss(self, loss: float, record: StepRecord) -> None:
        """Look whether a step's loss is a number.

        Raises:
            DivergenceError: it is not; in all processes alike, which have the same mean.
        """
        if not math.isfinite(loss):
            images = ", ".join(image_id for part in gather(record.image_ids) for image_id in part)
            raise DivergenceError(
                f"the loss is no longer a number in epoch {self.current_epoch + 1} (images {images}): "
                "lower optimizer.lr, set trainer.gradient_clip_val=1, or trainer.precision=32-true"
            )

    def compute_epoch_losses(self) -> dict[str, float]:
        """Compute the means of the losses of the running epoch: ``train/loss`` and its terms."""
        self._read_losses()
        steps = self.epoch_sums.get("steps", 0)
        return {name: value / steps for name, value in self.epoch_sums.items() if "/" in name} if steps else {}

    def on_validation_epoch_start(self) -> None:
        """Begin an evaluation."""
        self._read_losses()
        self._evaluator = Evaluator(
            self.categories,
            remember=self.embedding_cache.remember if self.embedding_cache else None,
            interaction=self.interaction,
            metrics=self.metrics,
        )
        self._waiting_since = time.perf_counter()

    def validation_step(self, sample: EvaluationSample | UnreadableImage, batch_idx: int) -> None:
        """Evaluate one image, in the loop that every backend is tested by."""
        del batch_idx
        data_seconds = time.perf_counter() - self._waiting_since
        # As every test does, whatever mixed precision the steps compute in.
        with torch.autocast(self.device.type, enabled=False):
            self._evaluator.update(TorchPredictor(self.sam, self.step_loss.multimask), sample, data_seconds)
        self._waiting_since = time.perf_counter()

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self.validation_result = self._evaluator.compute()
        for name, value in self.validation_result.metrics.items():
            self.log(f"val/{name}", value, on_step=False, on_epoch=True, batch_size=1, rank_zero_only=False)
        self._step_plateau(self.validation_result.metrics)

    def configure_optimizers(self) -> Any:
        """Build optimizer and schedule for the trainable parameters."""
        optimizer = self.build_optimizer(self.sam)
        scheduler = self.build_scheduler(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Let a schedule go on; one that looks at a metric has done so at the end of the validation."""
        if isinstance(scheduler, ReduceLROnPlateau):
            return
        try:
            super().lr_scheduler_step(scheduler, metric)
        except ValueError as error:  # of a schedule of a fixed length, which a run that goes on has passed
            raise ConfigError(f"scheduler: {error}") from error

    def _step_plateau(self, metrics: dict[str, float]) -> None:
        """Show a schedule its metric here, before the epoch's checkpoint is written: Lightning would do so after it."""
        for config in self.trainer.lr_scheduler_configs:
            if not isinstance(config.scheduler, ReduceLROnPlateau):
                continue
            name = str(config.monitor).removeprefix("val/")
            if name not in metrics:
                known = ", ".join(f"val/{name}" for name in sorted(metrics))
                raise ConfigError(f"scheduler.monitor={config.monitor} is not measured; there are {known}")
            config.scheduler.step(metrics[name])

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move training batches; evaluation samples stay where they are, the predictor moves what it needs."""
        del dataloader_idx
        return batch.to(device) if isinstance(batch, Batch) else batch

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was trained, here or in the run this one started from; the other parts are named by their hash."""
        self._read_losses()
        checkpoint["state_dict"] = {
            name: value for name, value in checkpoint["state_dict"].items() if not self._is_left_out(name)
        }
        checkpoint["vpexp"] = self.identity
        checkpoint["freeze"] = list(self.tuning.frozen)
        checkpoint["epoch_sums"] = dict(self.epoch_sums)
        checkpoint["unreadable"] = dict(self.unreadable)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the parts left out back, after checking that they are the ones that the checkpoint was trained on."""
        saved: dict[str, str] = checkpoint.get("vpexp", {}).get("frozen", {})
        frozen_then = checkpoint.get("freeze", ())
        if sorted(frozen_then) != sorted(self.tuning.frozen):
            raise CheckpointError(
                f"the checkpoint was trained with model.freeze={list(frozen_then)}, not {list(self.tuning.frozen)}: "
                "give the same as in the run to resume"
            )
        for part, state_hash in saved.items():
            if self.identity["frozen"].get(part) != state_hash:
                raise CheckpointError(
                    f"the checkpoint was trained with another {part} than this model has: "
                    "give the same model.weights and seed as in the run to resume"
                )
        # A frozen part that the interrupted run had from its start checkpoint is in this one, and stays in the next.
        self.identity = {**self.identity, "frozen": dict(saved)}
        self._left_out = list_left_out(self.sam, self.tuning, saved)
        for name, value in self.state_dict().items():
            if self._is_left_out(name):
                checkpoint["state_dict"][name] = value
        self.epoch_sums = dict(checkpoint.get("epoch_sums", {}))
        self.unreadable = dict(checkpoint.get("unreadable", {}))

    def _freeze(self) -> None:
        if self.step_loss.multimask == "never":
            # Hypernetworks other than mask token 0's have no part in a single mask: nothing would train them.
            self.sam.mask_decoder.output_hypernetworks_mlps[THREE_MASKS].requires_grad_(False)
        for name in self.sam.mask_decoder.unused_parts:
            getattr(self.sam.mask_decoder, name).requires_grad_(False)
        if not any(parameter.requires_grad for parameter in self.sam.parameters()):
            raise ConfigError("model.freeze leaves nothing to train; take one part out of it")

    def _is_left_out(self, name: str) -> bool:
        return name.removeprefix("sam.") in self._left_out

    def _note_unreadable(self, images: Sequence[UnreadableImage]) -> None:
        self.unreadable.update({image.image_id: image.reason for image in images})

    def _compute_terms(self, batch: Batch) -> LossTerms:
        return self.step_loss.compute(self.sam, self._get_embeddings(batch), batch, scale=self._get_gradient_scale())

    def _compute_nothing(self) -> LossTerms:
        """Every process takes part in the backward pass, also one that has nothing to learn from this time."""
        zero = sum((p.sum() for p in self.parameters() if p.requires_grad), torch.zeros((), device=self.device)) * 0
        return LossTerms(zero, zero, zero, zero)

    def _share(self, terms: LossTerms, prompts: int, image_ids: list[str]) -> Tensor:
        """Note the losses of the whole step, and return this process's part in it.

        The loss is a mean over prompts. Where several processes share a step, each has the prompts of its own images,
        more or fewer, and DDP takes the mean of their gradients: so each loss is weighted by the process's share of all
        prompts, and the step is that of one process with all the images.

        Args:
            terms: means over this process's prompts.
            prompts: their number.
            image_ids: of this process, for messages.
        """
        own_4 = torch.stack([terms.total, terms.focal, terms.dice, terms.iou]).detach()
        means_5 = average(own_4, prompts)
        if not prompts and get_world_size() == 1:
            return terms.total
        self._step = StepRecord(means_5, image_ids)
        if self.device.type == "cpu":  # where nothing has to be waited for; on a GPU it is looked at some steps later
            self._check_loss(means_5[0].item(), self._step)
        self.log("train/loss_step", means_5[0], on_step=True, on_epoch=False, batch_size=1)
        return terms.total if get_world_size() == 1 else terms.total * share(prompts, means_5[4])

    def _get_embeddings(self, batch: Batch) -> Tensor:
        """Get the embeddings [B, C, S/16, S/16] of a step's images: from the cache, or from the encoder."""
        with torch.set_grad_enabled(self.tuning.first_block is not None):
            if self.embedding_cache is None:
                return self.sam.encode_image(batch.images_B3SS)
            return self.sam.complete(
                self.embedding_cache.gather(batch).to(next(self.sam.mask_decoder.parameters()).dtype)
            )

    def _get_gradient_scale(self) -> float:
        """Get what Lightning multiplies a float16 loss with."""
        scaler = getattr(self._trainer.precision_plugin, "scaler", None) if self._trainer else None
        return float(scaler.get_scale()) if scaler is not None else 1.0


class FineTuningData(pl.LightningDataModule):
    """The train and val splits of a data set.

    Args:
        dataset: with splits ``train`` and ``val``.
        recipe: how prompts are made.
        image_size: S.
        resolution: low, input or original, see ``rasterize_target``.
        resize: how an image becomes the square, see ``compute_resized_size``.
        batch_size: images a training step, for each process.
        num_workers: processes that read images; 0 reads in the training process.
        pin_memory: whether batches go to a GPU, while the CPU goes on.
        seed: fixes order and prompts of every epoch.
        augment: how training images are changed, see ``vpexp.data.variants``.
    """

    def __init__(
        self,
        dataset: AnnotatedDataset,
        recipe: PromptConfig,
        *,
        image_size: int,
        resolution: str,
        batch_size: int,
        num_workers: int,
        seed: int,
        resize: str = FIT,
        pin_memory: bool = False,
        augment: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        train_images = with_objects(dataset.splits["train"].images)
        self.training_set = TrainingSet(
            train_images,
            image_size=image_size,
            resize=resize,
            recipe=recipe,
            resolution=resolution,
            seed=seed,
            augment=augment,
        )
        self.validation_set = EvaluationSet(with_objects(dataset.splits["val"].images), recipe)
        self.sampler = ResumableBatchSampler(len(train_images), batch_size, seed)

    def use_embeddings(self, embeddings: StoredEmbeddings | None) -> None:
        """Read stored embeddings instead of pixels."""
        self.training_set.embeddings = self.validation_set.embeddings = embeddings

    def train_dataloader(self) -> DataLoader[Any]:
        """Build the loader of training batches."""
        return DataLoader(
            self.training_set,
            batch_sampler=self.sampler,
            num_workers=self.num_workers,
            collate_fn=collate_training,
            pin_memory=self.pin_memory,
            worker_init_fn=leave_stops_to_parent,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Build the loader of validation images."""
        return build_evaluation_loader(self.validation_set, self.num_workers)

    def state_dict(self) -> dict[str, Any]:
        """Return where the order of images goes on: the epoch, and how many of its batches are done."""
        if self.trainer is None:
            return {"epoch": 0, "batches_done": 0}
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        done = progress.current.completed
        if done >= min(len(self.sampler), self.trainer.num_training_batches):  # limit_train_batches ends it earlier
            return {"epoch": self.trainer.current_epoch + 1, "batches_done": 0}
        return {"epoch": self.trainer.current_epoch, "batches_done": done}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where the checkpoint was; loaders with workers begin to read before Lightning sets the epoch."""
        self.sampler.set_epoch(int(state_dict["epoch"]))
        self.sampler.skip_batches(int(state_dict["batches_done"]))
