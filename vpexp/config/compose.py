"""Compose a configuration from the groups without the command line; write overrides and commands that are read back the same."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vpexp.config.explain import explain
from vpexp.config.groups import find_conf_folder
from vpexp.config.schema import SCHEMA_NAME, Config
from vpexp.errors import ConfigError

PLAIN_TEXT = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")
NOT_TEXT = ("true", "false", "null", "nan", "inf")


def register_schema() -> None:
    """Make the schema known to Hydra, where ``conf/config.yaml`` names it first."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    if f"{SCHEMA_NAME}.yaml" not in store.repo:
        store.store(name=SCHEMA_NAME, node=Config)


def compose_config(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> DictConfig:
    """Compose the configuration that the command line would, from ``model=sam_vit_b`` and the like.

    Works inside another Hydra application too, and leaves its state as it was.

    Args:
        overrides: what follows ``python -m vpexp``.
        config_dir: a folder with groups of your own.

    Raises:
        ConfigError: a wrong key, option, type or value syntax, with the closest right name.
    """
    return compose_from(find_conf_folder(), "config", overrides, config_dir)


def compose_from(
    folder: Path,
    name: str,
    overrides: Sequence[str],
    config_dir: str | Path | None = None,
    *,
    with_hydra: bool = False,
) -> DictConfig:
    """Compose from another main configuration than vpexp's own, as ``compose_config`` does.

    Args:
        folder: of the main configuration.
        name: of the main configuration.
        overrides: what follows ``python -m vpexp``.
        config_dir: a folder with groups of your own.
        with_hydra: keep the section ``hydra``.

    Raises:
        ConfigError: a wrong key, option, type or value syntax, with the closest right name.
    """
    from hydra import compose

    folders = [folder]
    asked = list(overrides)
    if config_dir is not None:
        folders.append(Path(config_dir).expanduser().resolve())
        if not folders[1].is_dir():
            raise ConfigError(f"config_dir {folders[1]} is no folder")
        quoted = str(folders[1]).replace("'", r"\'")
        asked.append(f"hydra.searchpath=['file://{quoted}']")
    register_schema()
    try:
        with _borrow_hydra(folder):
            return compose(name, overrides=asked, return_hydra_config=with_hydra)
    except Exception as error:
        line = explain(error, overrides, [*folders, find_conf_folder()])
        if line is None:
            raise
        raise ConfigError(line) from error


@contextmanager
def _borrow_hydra(folder: Path) -> Iterator[None]:
    """Set up Hydra's global state for ``folder``, and put back what another application had set."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.version import VersionBase

    hydra, version = GlobalHydra.instance(), VersionBase.instance()
    others_hydra, others_version = hydra.hydra, version.version_base
    hydra.clear()
    try:
        with initialize_config_dir(str(folder), job_name="vpexp", version_base="1.3"):
            yield
    finally:
        # initialize_config_dir puts back a copy of the instance, so ask for the current one.
        GlobalHydra.instance().hydra = others_hydra
        version.version_base = others_version


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
