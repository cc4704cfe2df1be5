"""Lightning's DDP for processes that vpexp starts itself, one rank each: joined while they train, not before or after.

Lightning would start the other processes by running this one's command line again: each would open a run of its own, and
what a script without a guard does would begin anew.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy, Strategy
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector
from torch import Tensor, distributed
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]  # they are public there, but not listed

from vpexp.config.schema import TrainerConfig
from vpexp.errors import ConfigError

SINGLE = "auto"
FIND_UNUSED = "ddp_find_unused_parameters_true"
STRATEGIES = (SINGLE, "ddp", "ddp_find_unused_parameters_false", FIND_UNUSED)
HOST = "127.0.0.1"  # all processes run on this machine
Item = TypeVar("Item")


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


def choose_strategy(cfg: TrainerConfig, devices: int, rank: int, *, find_unused_parameters: bool) -> str | Strategy:
    """Choose how the devices of the section ``trainer`` train.

    Args:
        cfg: the section.
        devices: how many it comes to.
        rank: of this process.
        find_unused_parameters: whether some of what learns has no part in some steps.

    Raises:
        ConfigError: several devices, and a strategy other than DDP.
    """
    name = str(cfg.strategy)
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


def open_store(world_size: int) -> TCPStore:
    """Open the store by which the processes find one another, on a free port; rank 0 does, and keeps it to the end."""
    return TCPStore(HOST, 0, world_size, is_master=True, wait_for_workers=False)


def connect_store(port: int, world_size: int) -> TCPStore:
    """Connect to the store of rank 0."""
    return TCPStore(HOST, port, world_size, is_master=False)


@contextmanager
def join(store: Store, device: torch.device, *, rank: int, world_size: int) -> Iterator[None]:
    """Join the process group for as long as the training lasts.

    What comes after, the final assessment, belongs to rank 0 alone: samplers and metrics must not wait for the others
    then.
    """
    on_gpu = device.type == "cuda"
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        device_id=device if on_gpu else None,
    )
    try:
        yield
    except BaseException:
        release()
        raise
    finally:
        distributed.destroy_process_group()


def release() -> None:
    """Let go of a process of this machine that waits for others on a GPU, where a lost one is not noticed by itself.

    On a CPU the connection to a process breaks with it, which raises in the process that waits for it.
    """
    if distributed.is_initialized() and distributed.get_backend() == "nccl":
        distributed.distributed_c10d._abort_process_group()  # noqa: SLF001 (what torch offers for this)


def get_world_size() -> int:
    """Count the processes that train together; 1 outside of a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gather(item: Item) -> list[Item]:
    """Gather an object of every process, in the order of their ranks."""
    if get_world_size() == 1:
        return [item]
    items: list[Item | None] = [None] * get_world_size()
    distributed.all_gather_object(items, item)
    return items  # type: ignore[return-value]


def average(values_4: Tensor, count: int) -> Tensor:
    """Average what each process found over ``count`` things: the means over all things and their number, [5], on the device.

    One process gets its own values back, bit by bit.
    """
    if get_world_size() == 1:
        return torch.cat([values_4, values_4.new_full((1,), count)])
    summed_5 = torch.cat([values_4 * count, values_4.new_full((1,), count)])
    distributed.all_reduce(summed_5)
    return torch.cat([summed_5[:4] / summed_5[4].clamp(min=1), summed_5[4:]])


def share(count: int, total: Tensor) -> Tensor:
    """Compute what a process's mean over ``count`` of ``total`` things is weighted by, for DDP to average to the mean over all."""
    return count * get_world_size() / total.clamp(min=1)
