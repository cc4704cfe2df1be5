"""Lightning's Trainer as a configuration describes it, and what happens when it is interrupted."""

import inspect
import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException

from vpexp.config.explain import format_suggestion
from vpexp.config.schema import TrainerConfig
from vpexp.devices import CPU, choose_precision, find_native_bfloat16, list_devices
from vpexp.errors import CheckpointError, ConfigError
from vpexp.files import find_full_disk
from vpexp.registry import build_target
from vpexp.signals import TERMINATED, is_sigterm, keep_handlers
from vpexp.training.callbacks import AtomicCheckpointIO
from vpexp.training.distributed import LocalSignals, choose_strategy
from vpexp.training.module import FineTuningData, SamFineTuner
from vpexp.training.stops import StopBetweenSteps

NO_ARGUMENTS = (
    "threads",
    "blend",
    "compile",
    "gradient_checkpointing",
    "extra",
)  # of the section, which are not the Trainer's
# What libraries raise that are given a state of another shape, as a rule only when they come to use it.
BROKEN_STATE = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def build_trainer(
    settings: TrainerConfig,
    callbacks: list[Callback],
    *,
    tensorboard: Path,
    rank: int = 0,
    find_unused_parameters: bool = False,
) -> pl.Trainer:
    """Build the Trainer from the section ``trainer``.

    Args:
        settings: the section.
        callbacks: of the loop.
        tensorboard: folder of TensorBoard's files.
        rank: of this process, where several devices train; 0 starts the others and alone writes files.
        find_unused_parameters: whether some of what learns has no part in some steps.

    Raises:
        ConfigError: accelerator, devices, precision or strategy cannot be had here.
    """
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    own = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name not in NO_ARGUMENTS}
    device, *others = devices = list_devices(settings.accelerator, settings.devices)
    own |= {
        "accelerator": device.type,
        "devices": len(devices) if device.type == CPU else [device.index for device in devices],
        "precision": choose_precision(settings.precision, device, find_native_bfloat16(device)).name,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,  # vpexp's samplers know their process
        "enable_model_summary": False,
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
        "logger": settings.logger and TensorBoardLogger(save_dir=str(tensorboard), name="", version=""),
        "callbacks": callbacks,
        "plugins": [AtomicCheckpointIO()],
        "default_root_dir": str(tensorboard.parent),
    }
    extra = _build_extra(settings, own)
    try:
        own["strategy"] = choose_strategy(
            settings, 1 + len(others), rank, find_unused_parameters=find_unused_parameters
        )
        trainer = pl.Trainer(**own, **extra)
    except (MisconfigurationException, ImportError, ValueError, RuntimeError, TypeError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())[:300]}") from error
    if trainer.world_size > 1:
        trainer._signal_connector = LocalSignals(trainer)  # noqa: SLF001 (Lightning's own is not to be had otherwise)
    return trainer


def _build_extra(settings: TrainerConfig, own: Mapping[str, Any]) -> dict[str, Any]:
    """Build the further arguments of the Trainer.

    Raises:
        ConfigError: the Trainer takes no such argument, or vpexp sets it.
    """
    taken = inspect.signature(pl.Trainer).parameters
    declared = {field.name for field in fields(settings)}
    extra = {}
    for name, value in settings.extra.items():
        key = f"trainer.extra.{name}"
        if name in own:
            instead = f"write trainer.{name}=..." if name in declared else "it is not free"
            raise ConfigError(f"{key}: vpexp sets this argument itself: {instead}")
        if name not in taken:
            raise ConfigError(f"{key}: PyTorch Lightning's Trainer takes no {name}{format_suggestion(name, taken)}")
        extra[name] = build_target(key, value) if isinstance(value, Mapping) and "_target_" in value else value
    return extra


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
