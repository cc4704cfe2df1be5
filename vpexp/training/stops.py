"""Stops that lose nothing: a signal waits for the end of a step, and what is saved then is a state to go on from."""

import os
import re
import signal
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.utilities.exceptions import SIGTERMException

from vpexp.console import log_line
from vpexp.signals import exit_by

NAMES = re.compile(r"epoch_\d+\.ckpt|last\.ckpt", re.ASCII)


def check_state(saved: Any, now: Any, name: str = "") -> None:
    """Check that a saved state is one of the object that is to take it up: the checkpoint may come from elsewhere.

    Args:
        saved: the state, plain values and tensors.
        now: the state of the object as it is; where it holds None the saved one may hold anything.
        name: of the part that is looked at, for the message.

    Raises:
        ValueError: a key is missing, a value is of another type or shape, or a count is negative.
    """
    if isinstance(now, Mapping):
        if not isinstance(saved, Mapping) or now.keys() - saved.keys():
            raise ValueError(f"{name or 'a state'} has not the keys {', '.join(map(str, now))}")
        for key, value in now.items():
            check_state(saved[key], value, f"{name}.{key}".lstrip("."))
    elif isinstance(now, torch.Tensor):
        if not isinstance(saved, torch.Tensor) or saved.shape != now.shape:
            raise ValueError(f"{name} is no tensor of shape {tuple(now.shape)}")
    elif now is not None and (type(saved) is not type(now) or (isinstance(now, int) and saved < 0 <= now)):
        raise ValueError(f"{name}={saved!r:.50} is no {type(now).__name__}, or negative")


class StopBetweenSteps(Callback):
    """Heeds SIGTERM, SIGHUP and the first Ctrl-C when a step is done, or in front of an image of the validation.

    A second Ctrl-C stops at once. A handler of Ctrl-C that was there before is asked first: what it lets pass is no stop.

    Attributes:
        reason: the exception by which the training is to end; None while none is asked for.
        has_trained: whether a step was done; before that, what fails in a training that goes on is what it was given.
    """

    def __init__(self) -> None:
        self.reason: KeyboardInterrupt | SystemExit | None = None
        self.has_trained = False
        self._interrupt: Any = signal.getsignal(signal.SIGINT)
        self._owner = os.getpid()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over from Lightning, which puts the handlers of before back at the end."""
        del pl_module
        if trainer.is_global_zero and threading.current_thread() is threading.main_thread():
            exit_by(self._note_exit)
            if callable(self._interrupt):
                signal.signal(signal.SIGINT, self._note_interrupt)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Let Lightning stop behind this step, unless its gradients still wait for those of the next."""
        del pl_module
        self.has_trained = True
        if self.reason and not trainer.fit_loop._should_accumulate():  # noqa: SLF001 (Lightning's own question)
            trainer._signal_connector.received_sigterm = True  # noqa: SLF001 (what it looks at between steps)

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Stop in front of an image: the resumed run validates anew."""
        del trainer, pl_module
        if self.reason:
            raise SIGTERMException

    def _note_exit(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.reason = self.reason or SystemExit(128 + number)

    def _note_interrupt(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return  # a process that reads images, just begun
        try:
            self._interrupt(number, frame)
        except KeyboardInterrupt as error:
            if self.reason:
                raise
            self.reason = error
            with suppress(RuntimeError):  # the signal came while something else was being written
                log_line("stopping when the step at hand is done; Ctrl-C again stops now", style="yellow")


class RelocatableCheckpoint(ModelCheckpoint):
    """Keeps its files in one folder, which may be moved or copied between two parts of a training."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state with its files where they are now."""
        check_state(state_dict, self.state_dict())
        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {name: self._move(state_dict[name]) for name in paths}
        scores = {self._move(path): torch.as_tensor(score) for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": scores, "dirpath": self.dirpath})

    def _move(self, path: str) -> str:
        if not path:
            return path
        if not NAMES.fullmatch(name := Path(path).name):
            raise ValueError(f"{path} is no name of a checkpoint")
        return str(Path(self.dirpath or "", name))


class LastCheckpoint(RelocatableCheckpoint):
    """Saves ``last.ckpt`` at the end of each epoch, and when training ends early, if it can go on from there.

    Not where an optimizer step has begun or gradients are accumulated, nor between the end of a validation and the end of
    its epoch, when some callbacks have counted it and others have not: then the file of before stays.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(save_on_exception=True, **options)
        self._is_stepping = False
        self._is_concluding = True  # until everything is restored

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin, or go on in the middle of an epoch."""
        super().on_train_start(trainer, pl_module)
        self._is_concluding = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin an epoch."""
        del trainer, pl_module
        self._is_concluding = False

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Begin a step."""
        del trainer, pl_module
        self._is_stepping = False

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """From here to the end of the step the weights are not those of a count of batches."""
        del trainer, pl_module
        self._is_stepping = True

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here to the end of the epoch its numbers are recorded and judged."""
        del trainer, pl_module
        self._is_concluding = True

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save, if training can go on from here."""
        batches = trainer.fit_loop.epoch_loop.batch_progress.current
        done = batches.completed
        is_whole = done % trainer.accumulate_grad_batches == 0 or done == trainer.num_training_batches
        is_between = batches.ready == done or not self._is_stepping
        if is_whole and is_between and not self._is_concluding:
            super().on_exception(trainer, pl_module, exception)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Have Lightning do a validation that is due: it skips one that had not come to its second image."""
        del pl_module
        loops = checkpoint["loops"]["fit_loop"]
        check_state(loops, trainer.fit_loop.state_dict())
        epoch, batches = (loops[f"{name}_progress"]["current"] for name in ("epoch", "epoch_loop.batch"))
        is_trained = loops["epoch_loop.batch_progress"]["is_last_batch"] and batches["completed"] == batches["ready"]
        if is_trained and epoch["processed"] < epoch["started"]:
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            loops["epoch_loop.val_loop.batch_progress"].update(total=begun, current=dict(begun))
