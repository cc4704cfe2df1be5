"""Files that are written whole or not at all, and JSON that is read with a plain word where it is damaged."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vpexp.errors import CheckpointError


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


def write_lines(path: Path, content: Mapping[str, Sequence[Mapping[str, Any]]], *, durable: bool = False) -> None:
    """Write lists of objects as JSON with one object a line, so that people and ``diff`` can read them."""
    parts = []
    for name, values in content.items():
        lines = ",\n".join(json.dumps(value, allow_nan=False) for value in values)
        parts.append(f"{json.dumps(name)}: [\n{lines}\n]" if lines else f"{json.dumps(name)}: []")
    write_text(path, "{" + ",\n".join(parts) + "}\n", durable=durable)


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
