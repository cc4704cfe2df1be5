"""The processes of a sweep: Ctrl-C, workers that are lost, and the end of those whose parent is gone.

Ctrl-C once lets the jobs under way finish and starts no other; twice stops now. A worker ends when the process that orders
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

from vpexp.console import log_line
from vpexp.runfolder import RunFolder
from vpexp.signals import TERMINATED, stop_on_sigterm
from vpexp.sweeps.record import SweepFolder

PARENT_SECONDS = 1.0
LEAVING_SECONDS = 15.0  # that workers are given to end
LOOK = 0.2
UNDER_WAY = ("STARTING", "RUNNING")  # the last word of a process that was killed


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
        log_line("stopping when the jobs under way have ended; Ctrl-C again stops now", style="yellow")

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


def is_lost_worker(error: Exception) -> bool:
    """Return whether a launcher raised it because a worker is gone: joblib's pool, a machine of Ray, a job of submitit."""
    return isinstance(error, BrokenProcessPool) or type(error).__module__.partition(".")[0] in ("ray", "submitit")


def can_start_again(error: Exception) -> bool:
    """Return whether all other jobs have ended too, or can be ended, and so may be started again; not those in a queue."""
    return not type(error).__module__.startswith("submitit")


def find_lost_jobs(sweep: SweepFolder) -> list[RunFolder]:
    """Find the jobs that went with a worker, when a launcher has reported one as lost, and end what is left of its kind.

    A pool (joblib) ends its other workers where one is killed, and does not tell which that was: all jobs that were under way
    are found. Ray's other machines go on until they are ended here: their jobs are not among those found.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        wait_for_jobs(sweep, LEAVING_SECONDS)
        return _find_lost(sweep)
    lost = _find_lost(sweep)
    end_ray_workers(sweep)
    return lost


def _find_lost(sweep: SweepFolder) -> list[RunFolder]:
    return [job for job in sweep.find_jobs() if not job.is_held() and job.read_run_json().get("status") in UNDER_WAY]


def end_ray_workers(sweep: SweepFolder) -> None:
    """Leave Ray's cluster, which ends this sweep's jobs there; without that they are ended too, but after their record."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()
        wait_for_jobs(sweep, LEAVING_SECONDS)


def wait_for_jobs(sweep: SweepFolder, seconds: float) -> list[RunFolder]:
    """Wait until no process works in the folder of a job; return the jobs where one still does after these seconds."""
    until = time.monotonic() + seconds
    while held := [job for job in sweep.find_jobs() if job.is_held()]:
        if time.monotonic() > until:
            break
        time.sleep(LOOK)
    return held
