"""Values as Hydra's override grammar, and words as a shell, read them back."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PLAIN_TEXT = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")
NOT_TEXT = ("true", "false", "null", "nan", "inf")


def quote_value(value: Any) -> str:
    """Write a value so that ``key=<value>`` gives it back, whatever characters a text holds."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{quote_value(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(quote_value(item) for item in value) + "]"
    return _quote_text(str(value))


def _quote_text(text: str) -> str:
    if PLAIN_TEXT.fullmatch(text) and text.lower() not in NOT_TEXT:
        return text
    from hydra.core.override_parser.types import Quote, QuotedString

    return str(QuotedString(text, Quote.single).with_quotes())


def quote_word(word: str) -> str:
    """Write a word so that a shell gives it back, in double quotes where that will do: ``"resume='my runs'"``."""
    quoted = shlex.quote(word)
    return quoted if quoted == word or set(word) & set('"$`\\!') else f'"{word}"'


def format_resume(folder: Path) -> str:
    """Write the command that goes on with the run in a folder."""
    return f"python -m vpexp {quote_word(f'resume={quote_value(folder)}')}"


def format_sync(folder: Path) -> str:
    """Write the command that uploads what MLflow has missed of the runs in a folder."""
    return f"python -m vpexp stage=sync {quote_word(f'run={quote_value(folder)}')}"
