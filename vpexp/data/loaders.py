"""Loaders of images and their order: shuffled by seed and epoch, resumable at any batch, divided between processes."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import distributed
from torch.utils.data import DataLoader, Sampler

from vpexp.data.batch import EvaluationSet, collate_evaluation
from vpexp.signals import leave_stops_to_parent


class ResumableBatchSampler(Sampler[list[tuple[int, int]]]):
    """Yields batches of ``(epoch, index)``.

    ``set_epoch`` must be called before each pass; ``skip_batches`` makes the next pass begin in mid-epoch. With several processes each
    takes every ``world_size``-th image; the shuffled list is continued from its start until all have equally many.
    """

    def __init__(self, length: int, batch_size: int, seed: int) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.skipped_batches = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the coming pass."""
        self.epoch = epoch

    def skip_batches(self, count: int) -> None:
        """Leave out the first ``count`` batches of the next pass."""
        self.skipped_batches = count

    def __len__(self) -> int:
        _, world_size = _process_place()
        share = math.ceil(self.length / world_size)
        return math.ceil(share / self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        skip, self.skipped_batches = self.skipped_batches, 0
        rank, world_size = _process_place()
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        order = np.resize(order, math.ceil(self.length / world_size) * world_size)[rank::world_size]
        keys = [(self.epoch, int(index)) for index in order]
        for start in range(skip * self.batch_size, len(keys), self.batch_size):
            yield keys[start : start + self.batch_size]


class ShardedSampler(Sampler[int]):
    """Yields the indices in order; with several processes, each takes every ``world_size``-th."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return len(self._shard())

    def __iter__(self) -> Iterator[int]:
        return iter(self._shard())

    def _shard(self) -> range:
        rank, world_size = _process_place()
        return range(rank, self.length, world_size)


def _process_place() -> tuple[int, int]:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def build_evaluation_loader(images: EvaluationSet, num_workers: int) -> DataLoader[Any]:
    """Build a loader that gives one evaluation sample at a time, in order; processes share the images."""
    return DataLoader(
        images,
        batch_size=1,
        sampler=ShardedSampler(len(images)),
        num_workers=num_workers,
        collate_fn=collate_evaluation,
        worker_init_fn=leave_stops_to_parent,
    )
