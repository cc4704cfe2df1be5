"""Lightning's Trainer as a configuration describes it, and what happens when it is interrupted."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException

from vpexp.errors import ConfigError
from vpexp.signals import TERMINATED
from vpexp.training.callbacks import AtomicCheckpointIO
from vpexp.training.datamodule import FineTuningData
from vpexp.training.ddp import LocalSignals, choose_strategy
from vpexp.training.module import SamFineTuner


def build_trainer(
    cfg: DictConfig,
    callbacks: list[Callback],
    *,
    tensorboard: Path,
    rank: int = 0,
    find_unused_parameters: bool = False,
) -> pl.Trainer:
    """Build the Trainer from the section ``trainer``.

    Args:
        cfg: the section.
        callbacks: of the loop.
        tensorboard: folder of TensorBoard's files.
        rank: of this process, where several devices train; 0 starts the others and alone writes files.
        find_unused_parameters: whether some of what learns has no part in some steps.

    Raises:
        ConfigError: accelerator, devices, precision or strategy cannot be had here.
    """
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        trainer = pl.Trainer(
            accelerator=cfg.accelerator,
            devices=cfg.devices,
            strategy=choose_strategy(cfg, rank, find_unused_parameters=find_unused_parameters),
            precision=cfg.precision,
            max_epochs=cfg.max_epochs,
            gradient_clip_val=cfg.gradient_clip_val,
            accumulate_grad_batches=cfg.accumulate_grad_batches,
            log_every_n_steps=cfg.log_every_n_steps,
            deterministic=cfg.deterministic,
            limit_train_batches=cfg.limit_train_batches,
            limit_val_batches=cfg.limit_val_batches,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # vpexp's samplers know their process
            enable_model_summary=False,
            enable_progress_bar=any("Progress" in type(callback).__name__ for callback in callbacks),
            logger=TensorBoardLogger(save_dir=str(tensorboard), name="", version=""),
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            default_root_dir=str(tensorboard.parent),
        )
    except (MisconfigurationException, ImportError, ValueError, RuntimeError, TypeError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())[:300]}") from error
    if trainer.world_size > 1:
        trainer._signal_connector = LocalSignals(trainer)  # noqa: SLF001 (Lightning's own is not to be had otherwise)
    return trainer


def fit(trainer: pl.Trainer, module: SamFineTuner, data: FineTuningData, resume_from: Path | None) -> None:
    """Train; on an interrupt or SIGTERM leave ``last.ckpt`` behind and stop with the signal's usual exit code.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM, code 143.
    """
    try:
        with _leave_sigterm_to_lightning() if trainer.is_global_zero else nullcontext():
            trainer.fit(module, datamodule=data, ckpt_path=str(resume_from) if resume_from else None, weights_only=True)
    except SIGTERMException:
        raise SystemExit(TERMINATED) from None
    except MisconfigurationException as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())[:300]}") from error
    except RuntimeError as error:
        if trainer.received_sigterm:  # the processes that read images got it too, and their end was seen first
            raise SystemExit(TERMINATED) from error
        raise
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    if trainer.received_sigterm:
        raise SystemExit(TERMINATED)
    if trainer.interrupted:
        raise KeyboardInterrupt


@contextmanager
def _leave_sigterm_to_lightning() -> Iterator[None]:
    """Lightning finishes the step at hand on SIGTERM, if no other handler stops the process before."""
    if threading.current_thread() is not threading.main_thread():  # a notebook's worker: signals are not ours there
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
