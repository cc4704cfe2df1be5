"""The order of images: shuffled each epoch, resumable, divided between processes without loss."""

from collections import Counter

import pytest

from vpexp.data import loaders as sampler_module
from vpexp.data.loaders import ResumableBatchSampler, ShardedSampler


def pretend_place(monkeypatch, rank, world_size):
    monkeypatch.setattr(sampler_module, "_process_place", lambda: (rank, world_size))


@pytest.mark.parametrize(("length", "batch_size"), [(1, 1), (7, 2), (8, 2), (5, 9)])
def test_batch_sampler__each_epoch_is_a_permutation(length, batch_size):
    sampler = ResumableBatchSampler(length, batch_size, seed=3)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert all(len(batch) == batch_size for batch in batches[:-1])
        keys = [key for batch in batches for key in batch]
        assert {key[0] for key in keys} == {epoch}
        assert sorted(index for _, index in keys) == list(range(length))


def test_batch_sampler__order_follows_seed_and_epoch():
    def order(seed, epoch):
        sampler = ResumableBatchSampler(30, 4, seed)
        sampler.set_epoch(epoch)
        return [[index for _, index in batch] for batch in sampler]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


@pytest.mark.parametrize("done", [0, 1, 3, 4])
def test_batch_sampler__skipping_goes_on_where_it_stopped(done):
    whole, resumed = ResumableBatchSampler(11, 3, seed=5), ResumableBatchSampler(11, 3, seed=5)
    for sampler in (whole, resumed):
        sampler.set_epoch(2)
    resumed.skip_batches(done)
    assert list(resumed) == list(whole)[done:]
    assert list(resumed) == list(whole)  # once only: the next epoch is a whole one


@pytest.mark.parametrize(("length", "world_size"), [(12, 3), (10, 4), (7, 2), (2, 5), (1, 3)])
def test_batch_sampler__processes_share_all_images_evenly(monkeypatch, length, world_size):
    shares = []
    for rank in range(world_size):
        pretend_place(monkeypatch, rank, world_size)
        sampler = ResumableBatchSampler(length, 2, seed=1)
        sampler.set_epoch(4)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        shares.append([index for batch in batches for _, index in batch])
    assert len({len(share) for share in shares}) == 1  # no process waits for another at the end of an epoch
    counts = Counter(index for share in shares for index in share)
    assert set(counts) == set(range(length))
    assert sum(counts.values()) - length < world_size  # only what it takes to make them equal comes again


def test_batch_sampler__processes_skip_alike(monkeypatch):
    for rank in range(2):
        pretend_place(monkeypatch, rank, 2)
        whole, resumed = ResumableBatchSampler(10, 2, seed=1), ResumableBatchSampler(10, 2, seed=1)
        resumed.skip_batches(2)
        assert list(resumed) == list(whole)[2:]


@pytest.mark.parametrize(("length", "world_size"), [(12, 3), (10, 4), (2, 5), (6, 1)])
def test_sharded_sampler__every_image_exactly_once(monkeypatch, length, world_size):
    seen = []
    for rank in range(world_size):
        pretend_place(monkeypatch, rank, world_size)
        shard = list(ShardedSampler(length))
        assert len(ShardedSampler(length)) == len(shard)
        assert shard == sorted(shard)
        seen += shard
    assert sorted(seen) == list(range(length))
