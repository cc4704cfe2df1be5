"""Hydra, started on vpexp's configuration; its errors explained in one line."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vpexp.errors import ConfigError

FULL_ERROR = "HYDRA_FULL_ERROR"


def start_hydra(job: Callable[[Any], Any], overrides: Sequence[str], flags: Sequence[str]) -> None:
    """Let Hydra compose and run: once, or every job of a sweep.

    Args:
        job: is given each composed configuration; a function of a module, so that other processes find it.
        overrides: what the user asked for.
        flags: Hydra's own.
    """
    import hydra

    from vpexp.config.compose import register_schema
    from vpexp.config.folders import find_conf_folder

    register_schema()
    decorate = hydra.main(version_base="1.3", config_path=str(find_conf_folder()), config_name="config")
    with _set_argv([*overrides, *flags]), set_full_error("1"):
        decorate(job)()


def explain_error(error: Exception, overrides: Sequence[str], folders: Sequence[Path]) -> ConfigError | None:
    """Explain what Hydra raised; None for an error that is not about the configuration."""
    from vpexp.config.explain import explain

    line = explain(error, overrides, folders)
    return None if line is None else ConfigError(line)


@contextmanager
def _set_argv(arguments: list[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = [before[0], *arguments]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def set_full_error(value: str | None) -> Iterator[None]:
    """Set the switch that makes Hydra raise its errors instead of printing them; None removes it."""
    before = os.environ.get(FULL_ERROR)
    _set_environment(FULL_ERROR, value)
    try:
        yield
    finally:
        _set_environment(FULL_ERROR, before)


def _set_environment(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
