"""Training on several devices: this process is rank 0 and starts the others, which do as it does and keep no record.

Rank 0 hands each follower an ``Assignment``, watches it, and ends it; a follower answers in the processes' store. Of Lightning's
launchers one runs the command line again, which a run that Python or a sweep started does not have, and the others train in
children, away from rank 0's record, signals and model.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import LambdaCallback
from torch.distributed.distributed_c10d import Store

from vpexp import errors
from vpexp.config.compose import format_resume
from vpexp.console import format_count, log_line
from vpexp.data.annotations import AnnotatedDataset
from vpexp.embeddings.cache import EmbeddingCache, EncoderPasses
from vpexp.embeddings.store import StoredEmbeddings
from vpexp.errors import ProcessError, VpexpError
from vpexp.runfolder import RunFolder
from vpexp.runtime import keep_freed_memory
from vpexp.stages.shared.context import RunContext, StageResult
from vpexp.stages.shared.embeddings import EncoderUse
from vpexp.stages.shared.training_loop import TrainingLoop, build_loop, build_start_model
from vpexp.tracking.mlflow_run import MlflowRun
from vpexp.training.distributed import join, open_store, release
from vpexp.training.trainer import fit

THREADS = "OMP_NUM_THREADS"
READY, FAILED, DONE = "ready", "failed", "done"  # what a follower writes into the store, with its rank
MODULE = "vpexp.stages.shared.follow"
POLL_SECONDS = 0.05
WATCH_SECONDS = 0.5
# From the broken connection that rank 0 sees first to the end of the process that broke it.
PATIENCE_SECONDS = 10.0
# A follower that fails because another one did says so too: the first one's own word may come a little later.
SECOND_THOUGHT_SECONDS = 1.0
LEAVE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a follower is given: all that rank 0 has found out, so that the two cannot disagree.

    Attributes:
        cfg: the run's complete configuration.
        folder: of the run.
        dataset: as rank 0 has read it.
        stored: where embeddings are read from; None: every image is encoded whenever it is used.
        writable: whether what had to be encoded is put into the store.
        world_size: processes in all.
        port: of rank 0's store.
        threads: of torch, for each process.
    """

    cfg: DictConfig
    folder: Path
    dataset: AnnotatedDataset
    stored: StoredEmbeddings | None
    writable: bool
    world_size: int
    port: int
    threads: int


def name_key(word: str, rank: int) -> str:
    """Name the place in the store where a follower says something."""
    return f"{word}/{rank}"


def name_log(folder: Path, rank: int) -> Path:
    """Name the log of a follower."""
    return folder / f"rank_{rank}.log"


def report_to_rank_0(store: Store, word: str, rank: int, content: dict[str, Any]) -> None:
    """Write what a follower has to say where rank 0 reads it."""
    store.set(name_key(word, rank), json.dumps(content))


class Followers:
    """Ranks 1 and up; empty until ``start``.

    Attributes:
        world_size: processes in all, rank 0 counted.
        store: by which all find one another.
    """

    def __init__(self, folder: RunFolder, world_size: int) -> None:
        self.world_size = world_size
        self.store = open_store(world_size)
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._over = threading.Event()

    def start(self, assignment: Assignment) -> None:
        """Start them, and wait until they have built what trains.

        Raises:
            VpexpError: one of them could not.
        """
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        environment.setdefault("OMP_NUM_THREADS", str(assignment.threads))
        with tempfile.NamedTemporaryFile() as file:
            pickle.dump(assignment, file)
            file.flush()
            for rank in range(1, self.world_size):
                with Path(file.name).open("rb") as stdin, name_log(self._folder.path, rank).open("ab") as log_file:
                    process = subprocess.Popen(  # noqa: S603 (this Python and this package)
                        [sys.executable, "-m", MODULE, str(rank), str(os.getpid()), str(self._folder.path)],
                        stdin=stdin,
                        stdout=log_file,
                        stderr=subprocess.STDOUT,
                        env=environment,
                        start_new_session=True,  # a Ctrl-C is for rank 0
                    )
                self._processes.append(process)
            self._wait_until_ready()
        threading.Thread(target=self._watch, name="followers", daemon=True).start()

    def check(self, *_: Any) -> None:
        """Look whether all are there; a callback of Lightning's, whose arguments are not needed.

        Raises:
            VpexpError: one has ended before its time.
        """
        if self._find_ended() and (error := self.explain(PATIENCE_SECONDS)):
            raise error

    def explain(self, patience: float) -> VpexpError | None:
        """Describe what ended a follower; None where none has ended within ``patience`` seconds."""
        deadline = time.monotonic() + patience
        settled = False
        while True:
            ended = self._find_ended()
            reports = {rank: report for rank in ended if (report := self._read(FAILED, rank))}
            for report in reports.values():
                kind = getattr(errors, report["kind"], None)
                if isinstance(kind, type) and issubclass(kind, VpexpError):
                    return kind(report["message"])
            for rank, code in ended.items():
                if code < 0 and rank not in reports:
                    return self._build_error(rank, f"was killed by {signal.Signals(-code).name}")
            if ended and settled:
                rank, code = next(iter(ended.items()))
                report = reports.get(rank)
                what = f"{report['kind']}: {report['message']}" if report else f"it ended with code {code}"
                return self._build_error(rank, f"failed: {what}")
            if ended:
                settled = True
                time.sleep(SECOND_THOUGHT_SECONDS)
            elif time.monotonic() >= deadline:
                return None
            else:
                time.sleep(POLL_SECONDS)

    def leave(self) -> list[dict[str, int]]:
        """Wait for their end after a training that has finished; return what each of them counted."""
        self._over.set()
        deadline = time.monotonic() + LEAVE_SECONDS
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        return [count for rank in range(1, self.world_size) if (count := self._read(DONE, rank)) is not None]

    def stop(self) -> None:
        """End those that are still there, with the processes that read images for them."""
        self._over.set()
        for process in self._processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        for process in self._processes:
            process.wait()

    def _find_ended(self) -> dict[int, int]:
        """Find the ranks that have ended before their time, with their exit codes."""
        codes = {rank: process.poll() for rank, process in enumerate(self._processes, start=1)}
        return {rank: code for rank, code in codes.items() if code}

    def _wait_until_ready(self) -> None:
        while not self.store.check([name_key(READY, rank) for rank in range(1, self.world_size)]):
            self.check()
            time.sleep(POLL_SECONDS)

    def _watch(self) -> None:
        """Free rank 0 where it waits on a GPU for a follower that is gone: there it would not notice for minutes."""
        while not self._over.wait(WATCH_SECONDS):
            if self._find_ended():
                if not self._over.wait(PATIENCE_SECONDS):
                    release()
                return

    def _read(self, word: str, rank: int) -> dict[str, Any] | None:
        key = name_key(word, rank)
        report: dict[str, Any] | None = json.loads(self.store.get(key)) if self.store.check([key]) else None
        return report

    def _build_error(self, rank: int, what: str) -> ProcessError:
        line = f"process {rank + 1} of the {self.world_size} that train {what}; its log: "
        line += str(name_log(self._folder.path, rank))
        if self._folder.last_checkpoint.is_file():
            line += f"; go on with: {format_resume(self._folder.path)}"
        return ProcessError(line)


@contextmanager
def open_followers(folder: RunFolder, world_size: int) -> Iterator[Followers]:
    """Hold followers, none of whom outlives the context."""
    followers = Followers(folder, world_size)
    try:
        yield followers
    finally:
        followers.stop()


def fit_on_devices(context: RunContext, loop: TrainingLoop, dataset: AnnotatedDataset, encoder: EncoderUse) -> None:
    """Train on one device here, or on several with a follower for each but the first.

    Args:
        context: the run.
        loop: rank 0's own.
        dataset: that it was built on.
        encoder: whose cache holds what is needed; what followers encoded is added to its counts.

    Raises:
        VpexpError: what went wrong in any of the processes.
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM, code 143.
    """
    world_size = loop.trainer.world_size
    if world_size == 1:
        fit(loop.trainer, loop.module, loop.data, _get_resumed(context.cfg))
        return
    images = format_count(world_size * context.cfg.data.batch_size, "image")
    log_line(f"training in {world_size} processes: {images} a step")
    context.folder.update_run_json(processes=world_size)
    cache, splits = encoder.cache, {name: dataset.splits[name] for name in ("train", "val")}
    with open_followers(context.folder, world_size) as followers, _share_processor(world_size) as threads:
        assignment = Assignment(
            cfg=context.cfg,
            folder=context.folder.path,
            dataset=replace(dataset, splits=splits),
            stored=cache.stored if cache else None,
            writable=cache.writable if cache else False,
            world_size=world_size,
            port=followers.store.port,
            threads=threads,
        )
        followers.start(assignment)
        # At every image, for in a long validation nothing else would notice.
        watch = LambdaCallback(on_train_batch_start=followers.check, on_validation_batch_start=followers.check)
        loop.trainer.callbacks.append(watch)  # type: ignore[attr-defined]  # Lightning's list
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
    origin = build_start_model(context)
    loop = build_loop(context, origin.sam, assignment.dataset, origin.brought, rank=rank)
    passes, cache = EncoderPasses(origin.sam), None
    if assignment.stored is not None:
        cache = EmbeddingCache(origin.sam, assignment.stored, writable=assignment.writable)
    loop.use_embeddings(cache)
    report_to_rank_0(store, READY, rank, {})
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
    except Exception as error:  # a connection that broke: who broke it may have reported why
        reason = followers.explain(PATIENCE_SECONDS if isinstance(error, RuntimeError) else 0.0)
        if reason is None:
            raise
        raise reason from error


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
