"""Orderly ends: SIGTERM becomes an exit with its usual code, so that a run is closed before the process goes."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TERMINATED = 128 + signal.SIGTERM


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into ``SystemExit`` with code 143."""

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise SystemExit(TERMINATED)

    try:
        previous = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread (a notebook's worker): signals are not ours there
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def is_sigterm(error: BaseException) -> bool:
    """Say whether an exit was caused by SIGTERM."""
    return isinstance(error, SystemExit) and error.code == TERMINATED
