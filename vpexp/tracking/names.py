"""What MLflow allows in names and values, and errors in a few words."""

import re
import socket
from collections.abc import Iterator, Mapping
from typing import Any

NAME_LENGTH = 250
VALUE_LENGTH = 6000
TAG_LENGTH = 5000
DESCRIPTION_LENGTH = 200


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
    """Keep what MLflow allows in a name: some characters, a length, and nothing that a path would lose (``a//..``)."""
    parts = re.sub(r"[^\w\-./ :]", "_", clean_text(name)).split("/")
    return "/".join("_" if part in ("", ".", "..") else part for part in parts)[:NAME_LENGTH].rstrip("/")


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
