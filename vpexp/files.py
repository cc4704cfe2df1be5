"""Files that are written whole or not at all, JSON that is read with one line where it is damaged, links, and full disks."""

import errno
import json
import logging
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from vpexp.errors import CheckpointError

FULL = (errno.ENOSPC, errno.EDQUOT)
# SQLite and safetensors say it in words; torch and OpenVINO only that a file could not be written.
WORDS = (os.strerror(errno.ENOSPC), "disk is full", "iostream error", "PytorchStreamWriter failed writing")

log = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Give a place beside a file to write to, and move what lies there into the file's place at the end.

    A reader sees the old file or the new one. After an error the old one is still there and the draft is gone; a process
    that is killed leaves a draft named ``.<name>.<process>``.

    Args:
        path: of the file; its folder exists.
        durable: wait until the disk has it.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield draft
        if durable:
            with draft.open("rb") as written:
                os.fsync(written.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a text in UTF-8; half of a pair of surrogates, as in a file's name, becomes an escape."""
    with replacing(path, durable=durable) as draft:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON. It has no NaN: a number without meaning is null."""
    write_text(path, json.dumps(_without_nan(content), indent=2, default=str, allow_nan=False) + "\n")


def write_lines(path: Path, content: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write lists of objects as JSON with one object a line, so that people and ``diff`` can read them."""
    parts = []
    for name, values in content.items():
        lines = ",\n".join(json.dumps(value, allow_nan=False) for value in values)
        parts.append(f"{json.dumps(name)}: [\n{lines}\n]" if lines else f"{json.dumps(name)}: []")
    write_text(path, "{" + ",\n".join(parts) + "}\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file cannot be read, is no JSON, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # ValueError: no text, no JSON, or a number of 5000 digits
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object but a {type(content).__name__}")
    return content


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {name: _without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def is_below(path: str | Path, home: str | Path) -> bool:
    """Return whether a file lies in a folder, once all links are followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(home))


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
