"""What MLflow allows in names and values, and errors in a few words.

MLflow allows letters, digits, ``_ - . : /`` and spaces in a name, 250 of them, and reads a name as a path. Any other character,
and a ``/`` or ``.`` that a path would lose, is written as ``_x<its code point in hex>_``: ``ripe 50%`` is ``ripe 50_x25_``. What looks
like such an escape already has its first ``_`` escaped (``_x5f_x25_``), so that two names never become one.
"""

import hashlib
import re
import socket
from collections.abc import Iterator, Mapping
from typing import Any

NAME_LENGTH = 250
VALUE_LENGTH = 6000
TAG_LENGTH = 5000
DESCRIPTION_LENGTH = 200
HASH_LENGTH = 16
ESCAPED = re.compile(
    r"[^\w\-./ :]"  # what MLflow does not allow
    r"|_(?=x[0-9a-f]++[^a-zA-Z0-9 :\-])"  # what looks like an escape, or would beside one
    r"|(?<![^/])/|/$"  # slashes around nothing
    r"|(?<![^/])\.(?=\.?(/|$))|^\.(?=\.)"  # the first point of . and .., and of a name that begins with ..
)


def flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested keys to dotted ones: ``{"optimizer": {"lr": 1}}`` to ``{"optimizer.lr": 1}``."""
    flat: dict[str, Any] = {}
    for name, value in section.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{key}.")
        else:
            flat[key] = value
    return flat


def clean_text(text: str) -> str:
    """Make a text of what file names may hold and no encoding can write."""
    return text.encode("utf-8", "backslashreplace").decode()


def clean_name(name: str) -> str:
    """Write a name with what MLflow allows; different names stay different, those that are too long by their hash."""
    cleaned = ESCAPED.sub(lambda found: f"_x{ord(found[0]):x}_", name)
    if len(cleaned) <= NAME_LENGTH:
        return cleaned
    digest = hashlib.sha256(cleaned.encode()).hexdigest()[:HASH_LENGTH]
    return f"{cleaned[: NAME_LENGTH - HASH_LENGTH - 1].rstrip('/')}_{digest}"


def clean_model_name(name: str) -> str:
    """Keep what MLflow allows in the name of a model."""
    return re.sub(r"[/:.%\"']", "_", name)[:NAME_LENGTH]


def clean_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    """Make tags of MLflow: text, not too long."""
    return {clean_name(name): clean_text(str(value))[:TAG_LENGTH] for name, value in tags.items()}


def clean_params(params: Mapping[str, Any]) -> dict[str, str]:
    """Make parameters of MLflow: text, with None and lists as Python writes them."""
    return {clean_name(name): clean_text(str(value))[:VALUE_LENGTH] for name, value in params.items()}


def describe_error(error: BaseException) -> str:
    """Say what is wrong in a few words: for a connection, the system's words at the bottom of what libraries made of it."""
    causes = list(_list_causes(error))
    innermost = causes[-1]
    if isinstance(innermost, OSError) and innermost.strerror:
        return innermost.strerror
    if any(_is_timeout(cause) for cause in causes):
        return "no answer in time"
    return (str(error).strip() or type(error).__name__).splitlines()[0][:DESCRIPTION_LENGTH]


def is_unreachable(error: BaseException) -> bool:
    """Say whether an error comes from the way to a server, not from the server."""
    return any(
        isinstance(cause, ConnectionError | socket.gaierror)
        or _is_timeout(cause)
        or any(kind.__name__ == "ConnectionError" for kind in type(cause).__mro__)  # that of requests is another
        for cause in _list_causes(error)
    )


def _list_causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _is_timeout(error: BaseException) -> bool:
    return isinstance(error, TimeoutError) or any("Timeout" in kind.__name__ for kind in type(error).__mro__)
