"""Lightning's Trainer as a configuration describes it, and what happens when it is interrupted."""

import logging
from pathlib import Path

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException

from vpexp.errors import CheckpointError, ConfigError
from vpexp.files import find_full_disk
from vpexp.signals import TERMINATED, is_sigterm, keep_handlers
from vpexp.training.callbacks import AtomicCheckpointIO
from vpexp.training.datamodule import FineTuningData
from vpexp.training.distributed import LocalSignals, choose_strategy
from vpexp.training.module import SamFineTuner
from vpexp.training.stops import StopBetweenSteps

# What libraries raise that are given a state of another shape, as a rule only when they come to use it.
BROKEN_STATE = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


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
    """Train; on Ctrl-C or SIGTERM finish the step, leave ``last.ckpt`` behind and stop with the signal's usual exit code.

    Raises:
        CheckpointError: training cannot go on from the checkpoint: it is damaged, or somebody else's.
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM, code 143; SIGHUP, code 129.
    """
    stop = StopBetweenSteps()
    trainer.callbacks.append(stop)  # type: ignore[attr-defined]  # Lightning's list
    try:
        with keep_handlers():  # Lightning ignores Ctrl-C for good where one came early
            trainer.fit(module, datamodule=data, ckpt_path=str(resume_from) if resume_from else None, weights_only=True)
    except SIGTERMException:
        raise stop.reason or SystemExit(TERMINATED) from None
    except MisconfigurationException as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())[:300]}") from error
    except BROKEN_STATE as error:
        if stop.reason:  # other processes of this training got it too, and their end was seen first
            raise stop.reason from error
        if resume_from is None or stop.has_trained or find_full_disk(error):
            raise
        line = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{resume_from}: training cannot go on from it ({type(error).__name__}: {line}): damaged, or made by another version"
        ) from error
    except SystemExit as error:
        if is_sigterm(error):
            raise
        raise KeyboardInterrupt from None  # what Lightning makes an exit of
    if stop.reason:
        raise stop.reason
