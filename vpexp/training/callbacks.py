"""Callbacks of the training loop: early stopping, checkpoints, records of each epoch, progress."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, EarlyStopping, ProgressBar
from rich.progress import Progress, TaskID

from vpexp.console import build_progress
from vpexp.errors import ConfigError
from vpexp.training.module import SamFineTuner
from vpexp.training.stops import LastCheckpoint, RelocatableCheckpoint, check_state


class EarlyStoppingAfter(EarlyStopping):
    """Early stopping that does not stop before ``min_epochs`` epochs are done.

    A training that it stopped stays so when it is resumed, unless ``patience`` or ``min_epochs`` are larger by then.
    """

    def __init__(self, *, min_epochs: int = 0, **kwargs: Any) -> None:
        super().__init__(check_on_train_epoch_end=False, **kwargs)
        self.min_epochs = min_epochs
        self.has_stopped = False

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {**super().state_dict(), "has_stopped": self.has_stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what was counted; the patience is the one asked for now."""
        check_state(state_dict, self.state_dict())
        super().load_state_dict({**state_dict, "patience": self.patience})
        self.has_stopped = state_dict["has_stopped"] and self.patience <= state_dict["patience"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Train no further where a resumed training had stopped."""
        del pl_module
        if self.has_stopped and trainer.current_epoch >= self.min_epochs:
            trainer.should_stop = True

    def _validate_condition_metric(self, logs: dict[str, torch.Tensor]) -> bool:
        """Check that the metric is there; a wrong name is the user's to mend."""
        if self.monitor not in logs:
            known = ", ".join(sorted(name for name in logs if name.startswith("val/")))
            raise ConfigError(f"callbacks.early_stopping.monitor={self.monitor} is not measured; there are {known}")
        return super()._validate_condition_metric(logs)

    def _run_early_stopping_check(self, trainer: pl.Trainer) -> None:
        stopping = trainer.should_stop
        super()._run_early_stopping_check(trainer)
        self.has_stopped = trainer.should_stop and not stopping
        if trainer.current_epoch + 1 < self.min_epochs:
            trainer.should_stop = stopping


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints beside their place and moves them there: a kill while writing leaves the older one whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint."""
        del storage_options
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.with_name(f".{place.name}.part")
        try:
            # A file that torch opens stays open after an error, and a full disk full.
            with draft.open("wb") as file:
                torch.save(checkpoint, file)
            draft.replace(place)
        finally:
            draft.unlink(missing_ok=True)


def save_weights(module: SamFineTuner, path: Path) -> None:
    """Write a checkpoint of a module that has learnt nothing yet, of the kind that a ``ModelCheckpoint`` writes of it."""
    content = {"epoch": 0, "global_step": 0, "state_dict": module.state_dict()}
    module.on_save_checkpoint(content)
    AtomicCheckpointIO().save_checkpoint(content, path)


def build_checkpoint_callbacks(folder: Path) -> list[Callback]:
    """Keep the best epoch's weights (``epoch_NNN.ckpt``) and everything needed to resume (``last.ckpt``)."""
    best = RelocatableCheckpoint(
        dirpath=folder,
        filename="epoch_{epoch:03d}",
        auto_insert_metric_name=False,
        monitor="val/f1-score",
        mode="max",
        save_top_k=1,
        save_weights_only=True,
        enable_version_counter=False,
    )
    last = LastCheckpoint(dirpath=folder, filename="last", monitor=None, save_top_k=1, enable_version_counter=False)
    return [best, last]


class EpochRecorder(Callback):
    """Hands the metrics of every epoch to ``record(metrics, epoch, seconds=...)``, epochs counted from 1."""

    def __init__(self, record: Callable[..., None]) -> None:
        self.record = record
        self._started = time.perf_counter()

    def on_train_epoch_start(self, *_: Any) -> None:
        """Note when an epoch begins."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Collect what was logged in this epoch, training and validation; of several processes the first records."""
        if isinstance(pl_module, SamFineTuner):
            pl_module.gather_unreadable()
        if not trainer.is_global_zero:
            return
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(("train/", "val/")) and name != "train/loss_step" and math.isfinite(float(value))
        }
        optimizer = trainer.optimizers[0]
        metrics["lr"] = float(optimizer.param_groups[0]["lr"])
        if isinstance(pl_module, SamFineTuner):
            metrics |= pl_module.compute_epoch_losses()
            if pl_module.validation_result is None:  # what Lightning still holds is of an earlier epoch
                metrics = {name: value for name, value in metrics.items() if not name.startswith("val/")}
            per_class = pl_module.validation_result.per_class if pl_module.validation_result else {}
            for name, by_class in per_class.items():
                metrics |= {f"val/{name}/{label}": value for label, value in by_class.items() if math.isfinite(value)}
        for logger in trainer.loggers:
            logger.log_metrics(
                {name: value for name, value in metrics.items() if "val/" not in name}, trainer.global_step
            )
        self.record(metrics, trainer.current_epoch + 1, seconds=time.perf_counter() - self._started)


class IterationTimer(Callback):
    """Measures how long a training step takes and how long it waited for its data: ``train/iter_time data_time``."""

    def __init__(self) -> None:
        self._started = self._ended = time.perf_counter()
        self._steps = 0
        self._iter_seconds = self._data_seconds = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a new average."""
        del trainer, pl_module
        self._ended = time.perf_counter()
        self._steps, self._iter_seconds, self._data_seconds = 0, 0.0, 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Note how long the batch was waited for."""
        del trainer, pl_module
        self._started = time.perf_counter()
        self._data_seconds += self._started - self._ended

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Note how long the step took, the wait for its data included."""
        del trainer
        now = time.perf_counter()
        self._iter_seconds += now - self._ended
        self._ended = now
        self._steps += 1
        times = {
            "train/iter_time": self._iter_seconds / self._steps,
            "train/data_time": self._data_seconds / self._steps,
        }
        pl_module.log_dict(times, on_step=True, on_epoch=False, batch_size=1)


class TrainingProgress(ProgressBar):
    """One bar at a time: of the steps of an epoch, with their loss, then of the validation. It leaves nothing behind."""

    def __init__(self) -> None:
        super().__init__()
        self._is_wanted = True
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def enable(self) -> None:
        """Show the bar."""
        self._is_wanted = True

    def disable(self) -> None:
        """Show no bar."""
        self._is_wanted = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave it to the first of several processes."""
        super().setup(trainer, pl_module, stage)
        self._is_wanted = self._is_wanted and trainer.is_global_zero

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Begin an epoch."""
        self._begin(trainer, "", trainer.num_training_batches)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, _: Any, __: Any, batch_idx: int
    ) -> None:
        """Show how far it is."""
        loss = pl_module.last_loss if isinstance(pl_module, SamFineTuner) else None
        words = "" if loss is None else f"  loss {loss:.3f}"
        self._update(batch_idx + 1, f"{self._name_epoch(trainer)}{words}")

    def on_validation_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Begin a validation."""
        self._begin(trainer, "  val", sum(trainer.num_val_batches))

    def on_validation_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        """Show how far it is."""
        batch_idx = int(arguments[3])
        self._update(batch_idx + 1, f"{self._name_epoch(trainer)}  val")

    def on_validation_epoch_end(self, *_: Any) -> None:
        """End a validation."""
        self._end()

    def on_train_epoch_end(self, *_: Any) -> None:
        """End an epoch."""
        self._end()

    def on_exception(self, *_: Any) -> None:
        """End what was under way."""
        self._end()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """End what was under way."""
        super().teardown(trainer, pl_module, stage)
        self._end()

    def _begin(self, trainer: pl.Trainer, words: str, total: float) -> None:
        self._end()
        if self._is_wanted:
            self._bar = build_progress()
            self._bar.start()
            self._task = self._bar.add_task(
                f"{self._name_epoch(trainer)}{words}", total=total if math.isfinite(total) else None
            )

    def _update(self, completed: int, description: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=completed, description=description)

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _name_epoch(self, trainer: pl.Trainer) -> str:
        return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
