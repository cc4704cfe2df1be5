"""Lightning's DDP for processes that vpexp starts itself.

Lightning would start the other processes by running this one's command line again: each would open a run of its own, and
what a script without a guard does would begin anew.
"""

from types import FrameType
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from omegaconf import DictConfig
from pytorch_lightning.strategies import DDPStrategy, Strategy
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector

from vpexp.errors import ConfigError

SINGLE = "auto"
FIND_UNUSED = "ddp_find_unused_parameters_true"
STRATEGIES = (SINGLE, "ddp", "ddp_find_unused_parameters_false", FIND_UNUSED)


class LocalRank(LightningEnvironment):
    """Places a process by the rank it was given, whatever variables a cluster has set around it."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    @property
    def creates_processes_externally(self) -> bool:
        """Nothing is for Lightning to start."""
        return True

    def local_rank(self) -> int:
        """The rank: all processes run on one machine."""
        return self._rank

    def node_rank(self) -> int:
        """There is one machine."""
        return 0


class FollowedDDPStrategy(DDPStrategy):
    """DDP without a launcher, whose process group is joined and left by whoever calls ``fit``."""

    def _configure_launcher(self) -> None:
        """Start nothing."""

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the others; not while this one ends early: then they are gone, or know nothing of it."""
        module = self.lightning_module
        if module is None or module._trainer is None or not module.trainer.interrupted:  # noqa: SLF001 (raises if unset)
            super().barrier(*args, **kwargs)


class LocalSignals(_SignalConnector):
    """SIGTERM is noted by rank 0, which stops after the step at hand and takes the others with it.

    Lightning would tell the others from inside the handler, by a broadcast that may fall into the middle of another.
    """

    def _sigterm_notifier_fn(self, signum: Any, frame: FrameType | None) -> None:
        del signum, frame
        self.received_sigterm = True

    def register_signal_handlers(self) -> None:
        """Register them; a follower leaves signals to rank 0."""
        if self.trainer.is_global_zero:
            super().register_signal_handlers()


def choose_strategy(cfg: DictConfig, rank: int, *, find_unused_parameters: bool) -> str | Strategy:
    """Choose how the devices of the section ``trainer`` train.

    Args:
        cfg: the section.
        rank: of this process.
        find_unused_parameters: whether some of what learns has no part in some steps.

    Raises:
        ConfigError: several devices, and a strategy other than DDP.
    """
    name = str(cfg.strategy)
    devices = _count_devices(cfg, rank)
    if devices == 1:
        return SINGLE if name in STRATEGIES else name
    if name not in STRATEGIES:
        raise ConfigError(
            f"trainer.strategy={name}: vpexp trains on several devices by ddp, set trainer.strategy=ddp (asked for: "
            f"{devices} devices)"
        )
    return FollowedDDPStrategy(
        cluster_environment=LocalRank(rank),
        find_unused_parameters=find_unused_parameters or name == FIND_UNUSED,
        broadcast_buffers=False,  # none of them changes: BatchNorm keeps the statistics of the pre-training
    )


def _count_devices(cfg: DictConfig, rank: int) -> int:
    """Let Lightning read ``accelerator`` and ``devices``: there are many ways to write them."""
    probe = pl.Trainer(
        accelerator=cfg.accelerator,
        devices=cfg.devices,
        plugins=[LocalRank(rank)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return probe.num_devices
