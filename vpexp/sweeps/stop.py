"""Ctrl-C in a sweep: once lets the jobs under way finish and starts no other; twice stops now."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from vpexp.console import say
from vpexp.signals import stop_on_sigterm
from vpexp.sweeps.record import SweepFolder


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
    """Say whether this is the process that orders the jobs."""
    return os.getpid() == process
