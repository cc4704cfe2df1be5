"""The other processes of a training on several devices, as rank 0 sees them: started, watched, told on, ended."""

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
from pathlib import Path
from typing import IO, Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from vpexp import errors
from vpexp.config.quoting import format_resume
from vpexp.errors import ProcessError, VpexpError
from vpexp.runfolder import RunFolder
from vpexp.stages.assignment import DONE, FAILED, READY, Assignment, name_key, name_log
from vpexp.training.process_group import open_store, release

MODULE = "vpexp.stages.follow"
POLL_SECONDS = 0.05
WATCH_SECONDS = 0.5
# From the broken connection that rank 0 sees first to the end of the process that broke it.
PATIENCE_SECONDS = 10.0
# A follower that fails because another one did says so too: the first one's own word may come a little later.
SECOND_THOUGHT_SECONDS = 1.0
LEAVE_SECONDS = 60.0


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
                    self._processes.append(_start(self._folder.path, rank, environment, stdin, log_file))
            self._wait_until_ready()
        threading.Thread(target=self._watch, name="followers", daemon=True).start()

    def check(self) -> None:
        """Look whether all are there.

        Raises:
            VpexpError: one has ended before its time.
        """
        if any(process.poll() not in (None, 0) for process in self._processes):
            error = self.explain(PATIENCE_SECONDS)
            if error is not None:
                raise error

    def explain(self, patience: float) -> VpexpError | None:
        """Say what ended a follower; None where none has ended within ``patience`` seconds."""
        deadline = time.monotonic() + patience
        settled = False
        while True:
            ended = {rank: process.returncode for rank, process in self._enumerate() if process.poll() not in (None, 0)}
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
        counts = [self._read(DONE, rank) for rank, _ in self._enumerate()]
        return [count for count in counts if count is not None]

    def stop(self) -> None:
        """End those that are still there, with the processes that read images for them."""
        self._over.set()
        for process in self._processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        for process in self._processes:
            process.wait()

    def _enumerate(self) -> Iterator[tuple[int, "subprocess.Popen[bytes]"]]:
        return iter(enumerate(self._processes, start=1))

    def _wait_until_ready(self) -> None:
        waiting = {rank for rank, _ in self._enumerate()}
        while waiting:
            self.check()
            waiting = {rank for rank in waiting if not self.store.check([name_key(READY, rank)])}
            time.sleep(POLL_SECONDS)

    def _watch(self) -> None:
        """Free rank 0 where it waits on a GPU for a follower that is gone: there it would not notice for minutes."""
        while not self._over.wait(WATCH_SECONDS):
            if any(process.poll() not in (None, 0) for process in self._processes):
                if not self._over.wait(PATIENCE_SECONDS):
                    release()
                return

    def _read(self, word: str, rank: int) -> dict[str, Any] | None:
        key = name_key(word, rank)
        said: dict[str, Any] | None = json.loads(self.store.get(key)) if self.store.check([key]) else None
        return said

    def _build_error(self, rank: int, what: str) -> ProcessError:
        line = f"process {rank + 1} of the {self.world_size} that train {what}; its log: "
        line += str(name_log(self._folder.path, rank))
        if self._folder.last_checkpoint.is_file():
            line += f"; go on with: {format_resume(self._folder.path)}"
        return ProcessError(line)


class FollowerWatch(Callback):
    """Has rank 0 look after the followers at every step: in a long validation nothing else would tell."""

    def __init__(self, followers: Followers) -> None:
        self._followers = followers

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Look before a step."""
        del trainer, pl_module
        self._followers.check()

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Look before an image."""
        del trainer, pl_module
        self._followers.check()


@contextmanager
def open_followers(folder: RunFolder, world_size: int) -> Iterator[Followers]:
    """Hold followers, none of whom outlives the context."""
    followers = Followers(folder, world_size)
    try:
        yield followers
    finally:
        followers.stop()


def _start(
    folder: Path, rank: int, environment: dict[str, str], stdin: IO[bytes], log_file: IO[bytes]
) -> "subprocess.Popen[bytes]":
    """Start a follower in a process group of its own: a Ctrl-C is for rank 0."""
    return subprocess.Popen(  # noqa: S603 (this Python and this package)
        [sys.executable, "-m", MODULE, str(rank), str(os.getpid()), str(folder)],
        stdin=stdin,
        stdout=log_file,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
