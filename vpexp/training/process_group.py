"""The processes of a training on several devices, one rank each: joined while they train, not before or after."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]  # they are public there, but not listed

HOST = "127.0.0.1"  # all processes run on this machine

Item = TypeVar("Item")


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

    On a CPU the connection to a process breaks with it, and whoever waits for it is told.
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


def average(values_K: Tensor, count: int) -> tuple[Tensor, int]:
    """Average what each process found over ``count`` things: the mean over all things, [K], and their number.

    One process gets its own values back, bit by bit.
    """
    if get_world_size() == 1:
        return values_K, count
    summed = torch.cat([values_K * count, values_K.new_tensor([count])])
    distributed.all_reduce(summed)
    total = round(float(summed[-1]))
    return summed[:-1] / max(total, 1), total
