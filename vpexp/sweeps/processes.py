"""The processes of a sweep: Ctrl-C, workers that die or are lost, and the end of those whose parent is gone.

Ctrl-C once lets the jobs under way finish and starts no other; twice stops now. Where one worker dies, its pool ends the
others too, and they are not to blame: so it is watched which process went first. A worker ends when the process that orders
its jobs is gone, and all workers end with the sweep.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import FrameType
from typing import Self

from vpexp.console import say
from vpexp.runfolder import RunFolder
from vpexp.signals import TERMINATED, stop_on_sigterm
from vpexp.sweeps.record import SweepFolder

PARENT_SECONDS = 1.0
WATCH_SECONDS = 0.02
LOOKS_A_SCAN = 25  # jobs that begin are looked for less often than ends
LEAVING_SECONDS = 15.0  # that workers are given to end
LOOK = 0.2


class SweepStopped(BaseException):
    """The sweep ends before all jobs have begun."""


@contextmanager
def stop_in_two_steps(folder: SweepFolder) -> Iterator[None]:
    """Heed the first Ctrl-C when the job at hand has ended, the second at once, and SIGTERM at once.

    Raises:
        KeyboardInterrupt: at the second Ctrl-C.
        SystemExit: SIGTERM, with code 143.
    """
    folder.stop_marker.unlink(missing_ok=True)

    owner = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        if os.getpid() != owner:
            return  # a process that reads images for this one, and has its handlers
        if folder.stop_marker.exists():
            raise KeyboardInterrupt
        folder.stop_marker.touch()
        say("stopping when the jobs under way have ended; Ctrl-C again stops now", style="yellow")

    usual = signal.signal(signal.SIGINT, interrupt)
    try:
        with stop_on_sigterm():
            yield
    finally:
        signal.signal(signal.SIGINT, usual)


@contextmanager
def ignore_first_interrupt() -> Iterator[None]:
    """In a process that works for the sweep's: a terminal sends Ctrl-C to all of them, and the first one is not for jobs."""
    heard, owner = 0, os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        del number, frame
        heard += 1
        if heard > 1 and os.getpid() == owner:
            raise KeyboardInterrupt

    try:
        usual = signal.signal(signal.SIGINT, interrupt)
    except ValueError:  # not the main thread: signals are not ours there
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def is_sweeps_process(process: int) -> bool:
    """Return whether this is the process that orders the jobs."""
    return os.getpid() == process


class ParentWatch:
    """Stops a job, as SIGTERM does, when its process is no child of the sweep's any more, and then the process.

    Nothing is watched in a process that another one started: a queue or a cluster ends its jobs itself.

    Args:
        sweep_process: number of the process that orders the jobs.
    """

    def __init__(self, sweep_process: int) -> None:
        self._parent = sweep_process
        self._is_child = os.getppid() == sweep_process
        self._is_lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="parent", daemon=True)

    def __enter__(self) -> Self:
        if self._is_child:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._is_child:
            self._thread.join()
        if self._is_lost:  # the job is recorded; a pool's worker would wait for more
            os._exit(TERMINATED)

    def _watch(self) -> None:
        while not self._ended.wait(PARENT_SECONDS):
            if os.getppid() != self._parent:
                self._is_lost = True
                os.kill(os.getpid(), signal.SIGTERM)
                return


class DeathWatch:
    """Looks at the locks of running jobs while a pool works.

    Args:
        sweep: whose jobs are watched.

    Attributes:
        first_dead: the jobs whose processes were gone first, all that went within one look.
    """

    def __init__(self, sweep: SweepFolder) -> None:
        self.first_dead: list[RunFolder] = []
        self._sweep = sweep
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        alive: list[RunFolder] = []
        looks = 0
        while not self._ended.wait(WATCH_SECONDS):
            if looks % LOOKS_A_SCAN == 0:
                alive = [job for job in self._sweep.find_jobs() if job.is_held()]
            looks += 1
            gone = [job for job in alive if not job.is_held()]
            alive = [job for job in alive if job not in gone]
            self.first_dead = [job for job in gone if _is_running(job)]
            if self.first_dead:
                return
        # The launcher knew before this thread had looked again.
        self.first_dead = [job for job in self._sweep.find_jobs() if not job.is_held() and _is_running(job)]


def _is_running(job: RunFolder) -> bool:
    """By its own last word, which a process that is killed cannot take back."""
    return bool(job.read_run_json().get("status") == "RUNNING")


def is_lost_worker(error: Exception) -> bool:
    """Return whether a launcher raised it because a worker is gone: joblib's pool, a machine of Ray, a job of submitit."""
    return isinstance(error, BrokenProcessPool) or type(error).__module__.partition(".")[0] in ("ray", "submitit")


def can_start_again(error: Exception) -> bool:
    """Return whether all other jobs have ended too, or can be ended, and so may be started again; not those in a queue."""
    return not type(error).__module__.startswith("submitit")


def end_ray_workers(sweep: SweepFolder) -> None:
    """Leave Ray's cluster, which ends this sweep's jobs there; without that they are ended too, but after their record."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    ray.shutdown()
    deadline = time.monotonic() + LEAVING_SECONDS
    while time.monotonic() < deadline and any(job.is_held() for job in sweep.find_jobs()):
        time.sleep(LOOK)
