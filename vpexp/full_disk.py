"""A full disk: what libraries raise then, and what fails behind it."""

import errno
import logging
import os
import sys
import threading
from collections.abc import Callable
from functools import cache, partial
from typing import Any

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT)
# SQLite and safetensors say it in words; torch and OpenVINO only that a file could not be written.
WORDS = (os.strerror(errno.ENOSPC), "disk is full", "iostream error", "PytorchStreamWriter failed writing")


def find_full_disk(error: BaseException) -> str | None:
    """Find in an error, or in one that led to it, that a disk is full; return the system's words for it, or None."""
    seen: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in seen:
        if isinstance(found, OSError) and found.errno in FULL:
            return os.strerror(found.errno)
        if any(word in str(found) for word in WORDS):
            return os.strerror(errno.ENOSPC)
        seen.append(found)
        found = found.__cause__ or found.__context__
    return None


@cache  # installed once
def quiet_full_disk() -> None:
    """Log what fails on a full disk in threads and when files are closed: the run itself says it in one line."""
    threading.excepthook = partial(_pass_over, threading.excepthook)
    sys.unraisablehook = partial(_pass_over, sys.unraisablehook)


def _pass_over(hook: Callable[[Any], object], failure: Any) -> None:
    if failure.exc_value is None or find_full_disk(failure.exc_value) is None:
        hook(failure)
    else:
        log.info("failed too: %s", failure.exc_value)


class RunLog(logging.FileHandler):
    """A log file that a full disk costs lines, not the run."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Pass over a full disk; anything else is printed."""
        if find_full_disk(sys.exception() or OSError()) is None:
            super().handleError(record)

    def close(self) -> None:
        """Close the file, whether or not it takes the last lines."""
        try:
            super().close()
        except OSError as error:
            if find_full_disk(error) is None:
                raise
