"""Training on several devices: this process is rank 0 and starts the others, which do as it does and keep no record."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch.distributed.distributed_c10d import Store

from vpexp.allocator import keep_freed_memory
from vpexp.console import say
from vpexp.data.types import AnnotatedDataset
from vpexp.errors import VpexpError
from vpexp.inference.embedding_cache import EmbeddingCache, EncoderPasses
from vpexp.runfolder import RunFolder
from vpexp.stages.assignment import READY, Assignment, say_to_rank_0
from vpexp.stages.context import RunContext, StageResult
from vpexp.stages.embeddings import EncoderUse
from vpexp.stages.followers import PATIENCE_SECONDS, Followers, FollowerWatch, open_followers
from vpexp.stages.training_loop import TrainingLoop, build_loop, build_start_model
from vpexp.tracking.mlflow_run import MlflowRun
from vpexp.training.process_group import join
from vpexp.training.trainer import fit

THREADS = "OMP_NUM_THREADS"


def fit_on_devices(context: RunContext, loop: TrainingLoop, dataset: AnnotatedDataset, encoder: EncoderUse) -> None:
    """Train on one device here, or on several with a follower for each but the first.

    Args:
        context: the run.
        loop: rank 0's own.
        dataset: that it was built on.
        encoder: whose cache holds what is needed; it is told what followers encoded.

    Raises:
        VpexpError: what went wrong in any of the processes.
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM, code 143.
    """
    world_size = loop.trainer.world_size
    if world_size == 1:
        fit(loop.trainer, loop.module, loop.data, _get_resumed(context.cfg))
        return
    say(f"training in {world_size} processes: {world_size * context.cfg.data.batch_size} images a step")
    context.folder.update_run_json(processes=world_size)
    with open_followers(context.folder, world_size) as followers, _share_processor(world_size) as threads:
        followers.start(_assign(context, dataset, encoder.cache, followers, threads))
        loop.trainer.callbacks.append(FollowerWatch(followers))  # type: ignore[attr-defined]  # Lightning's list
        _fit_joined(context.cfg, loop, followers)
        for counts in followers.leave():
            encoder.add(**counts)


def follow(assignment: Assignment, rank: int, store: Store) -> dict[str, int]:
    """Train beside rank 0, in a process of its own.

    Returns:
        What ``EncoderUse.add`` takes.
    """
    keep_freed_memory()
    torch.set_num_threads(assignment.threads)
    cfg = assignment.cfg
    context = RunContext(cfg, RunFolder(assignment.folder), MlflowRun(), _run_no_child)
    sam, brought = build_start_model(context)
    loop = build_loop(context, sam, assignment.dataset, brought, rank=rank)
    passes, cache = EncoderPasses(sam), None
    if assignment.stored is not None:
        cache = EmbeddingCache(sam, assignment.stored, writable=assignment.writable)
    loop.use_embeddings(cache)
    say_to_rank_0(store, READY, rank, {})
    with join(store, loop.trainer.strategy.root_device, rank=rank, world_size=assignment.world_size):
        fit(loop.trainer, loop.module, loop.data, _get_resumed(cfg))
    return {"images": passes.images, "encoded": cache.encoded if cache else 0}


def _fit_joined(cfg: DictConfig, loop: TrainingLoop, followers: Followers) -> None:
    trainer = loop.trainer
    try:
        with join(followers.store, trainer.strategy.root_device, rank=0, world_size=trainer.world_size):
            fit(trainer, loop.module, loop.data, _get_resumed(cfg))
    except VpexpError:
        raise
    except Exception as error:  # a connection that broke: who broke it may have said why
        reason = followers.explain(PATIENCE_SECONDS if isinstance(error, RuntimeError) else 0.0)
        if reason is None:
            raise
        raise reason from error


def _assign(
    context: RunContext, dataset: AnnotatedDataset, cache: EmbeddingCache | None, followers: Followers, threads: int
) -> Assignment:
    return Assignment(
        cfg=context.cfg,
        folder=context.folder.path,
        dataset=replace(dataset, splits={name: dataset.splits[name] for name in ("train", "val")}),
        stored=cache.stored if cache else None,
        writable=cache.writable if cache else False,
        world_size=followers.world_size,
        port=followers.store.port,
        threads=threads,
    )


@contextmanager
def _share_processor(world_size: int) -> Iterator[int]:
    """Give each process its share of the CPU while they train, unless the user has chosen the number of threads."""
    before = torch.get_num_threads()
    threads = before if THREADS in os.environ else max(1, before // world_size)
    torch.set_num_threads(threads)
    try:
        yield threads
    finally:
        torch.set_num_threads(before)


def _get_resumed(cfg: DictConfig) -> Path | None:
    return Path(cfg.resume) if cfg.resume else None


def _run_no_child(cfg: DictConfig, step: str) -> StageResult:
    del cfg
    raise AssertionError(f"a follower runs no {step}: runs are rank 0's")
