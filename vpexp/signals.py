"""Orderly ends: SIGTERM becomes an exit with its usual code, so that a run is closed before the process goes."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

TERMINATED = 128 + signal.SIGTERM
STOPS = (signal.SIGINT, signal.SIGTERM)
REPEAT_SECONDS = 0.1


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into ``SystemExit`` with code 143."""

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise SystemExit(TERMINATED)

    with keep_handlers() as are_ours:
        if are_ours:
            signal.signal(signal.SIGTERM, stop)
        yield


@contextmanager
def repeat_lost_stops() -> Iterator[None]:
    """Send a stop again that came while an object was freed, where Python prints exceptions and goes on.

    The processes that read images are waited for there: on a busy machine that takes seconds.
    """
    usual = sys.unraisablehook

    def repeat(lost: Any) -> None:
        if isinstance(lost.exc_value, KeyboardInterrupt) or is_sigterm(lost.exc_value):
            number = signal.SIGINT if isinstance(lost.exc_value, KeyboardInterrupt) else signal.SIGTERM
            threading.Timer(REPEAT_SECONDS, os.kill, (os.getpid(), number)).start()
        else:
            usual(lost)

    sys.unraisablehook = repeat
    try:
        yield
    finally:
        sys.unraisablehook = usual


@contextmanager
def keep_handlers() -> Iterator[bool]:
    """Put the handlers of stops back in the end; yields whether signals are ours: they are the main thread's alone."""
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    handlers = {number: signal.getsignal(number) for number in STOPS}
    try:
        yield True
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # not set by Python
                signal.signal(number, handler)


@contextmanager
def ignore_stops() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM for the moment in which the end of a run is written down."""
    with keep_handlers() as are_ours:
        if are_ours:
            for number in STOPS:
                signal.signal(number, signal.SIG_IGN)
        yield


def leave_stops_to_parent(worker: int) -> None:
    """Ignore SIGINT and SIGTERM in a process that reads images: sent to a whole group, they are for its parent.

    It ends when the parent tells it to, or is gone.
    """
    del worker
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


def is_sigterm(error: BaseException | None) -> bool:
    """Say whether an exit was caused by SIGTERM."""
    return isinstance(error, SystemExit) and error.code == TERMINATED
