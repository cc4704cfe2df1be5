"""Orderly ends: a run is closed before the process goes.

SIGTERM, and SIGHUP (the terminal is gone), become an exit with their usual code; under ``nohup`` SIGHUP is nothing.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

TERMINATED = 128 + signal.SIGTERM
EXITS = (signal.SIGTERM, signal.SIGHUP)
STOPS = (signal.SIGINT, *EXITS)
REPEAT_SECONDS = 0.1


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into ``SystemExit`` with code 143, SIGHUP into one with code 129."""

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        raise SystemExit(128 + number)

    with keep_handlers() as are_ours:
        if are_ours:
            exit_by(stop)
        yield


def exit_by(stop: Callable[[int, FrameType | None], None]) -> None:
    """Let ``stop`` handle the signals that end a process, but for those that its starter has it ignore."""
    for number in EXITS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


@contextmanager
def repeat_lost_stops() -> Iterator[None]:
    """Send a stop again that came while an object was freed, where Python prints exceptions and goes on.

    The processes that read images are waited for there: on a busy machine that takes seconds.
    """
    usual = sys.unraisablehook

    def repeat(lost: Any) -> None:
        if isinstance(lost.exc_value, KeyboardInterrupt) or is_sigterm(lost.exc_value):
            number = signal.SIGINT if isinstance(lost.exc_value, KeyboardInterrupt) else lost.exc_value.code - 128
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
    """Ignore all stops for the moment in which the end of a run is written down."""
    with keep_handlers() as are_ours:
        if are_ours:
            for number in STOPS:
                signal.signal(number, signal.SIG_IGN)
        yield


def leave_stops_to_parent(worker: int) -> None:
    """Ignore all stops in a process that reads images: sent to a whole group, they are for its parent.

    It ends when the parent tells it to, or is gone.
    """
    del worker
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


def is_sigterm(error: BaseException | None) -> bool:
    """Return whether an exit was caused by SIGTERM or SIGHUP."""
    return isinstance(error, SystemExit) and error.code in [128 + number for number in EXITS]


def describe_stop(error: BaseException | None) -> str | None:
    """Describe which signal an exception was caused by; None for any other."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C"
    return f"stopped by {signal.Signals(int(str(error)) - 128).name}" if is_sigterm(error) else None


def drop_output() -> None:
    """Discard further output, which has no reader any more; the run goes on, or ends, without it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
