"""What the user typed, sorted into overrides and flags with absolute folders; and Hydra, started on it."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vpexp.errors import ConfigError

FULL_ERROR = "HYDRA_FULL_ERROR"


@dataclass
class CommandLine:
    """A command line, sorted.

    Attributes:
        flags: Hydra's own, with their values.
        overrides: ``model=sam_vit_b`` and the like.
        folders: where groups are looked for.
        config_dir: the user's folder of groups.
        config_path: the folder of the main configuration, if it is not vpexp's own.
        config_name: the main configuration's name.
        help: the user asks for help.
        multirun: the user asks for a sweep, and for nothing that Hydra answers itself.
        plain: a single run from vpexp's own main configuration: no flags but --config-dir.
        typed: what the user types now, where the rest comes from the record of a sweep.
        main_config: the file of the main configuration, if it lies in the first of ``folders``.
        source: what gives the configuration: the main configuration, or the record of a sweep.
        is_foreign: that is no file of vpexp's own.
    """

    flags: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    config_dir: str | None = None
    config_path: Path | None = None
    config_name: str = "config"
    help: bool = False
    multirun: bool = False
    plain: bool = False
    typed: "CommandLine | None" = None
    main_config: Path = Path()
    source: Path = Path()
    is_foreign: bool = False


def read_command_line(asked: Sequence[str]) -> CommandLine:
    """Sort what the user typed.

    Raises:
        ConfigError: an unknown flag, or one that lacks its value.
    """
    from hydra._internal.utils import get_args_parser

    from vpexp.config.groups import find_conf_folder

    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        known, unknown = parser.parse_known_args(list(asked))
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}; python -m vpexp --help lists the flags") from error
    for word in unknown:
        if word.startswith("-"):
            hint = f"write {word.lstrip('-')}" if "=" in word else "python -m vpexp --help lists them"
            raise ConfigError(f"unknown flag '{word}': {hint}")
    overrides = [*known.overrides, *unknown]  # argparse takes only the first run of overrides as such
    read = CommandLine(
        flags=[word for word in asked if word not in overrides],
        overrides=overrides,
        folders=[find_conf_folder()],
        config_dir=known.config_dir,
        config_name=known.config_name or "config",
        help=known.help,
        multirun=known.multirun and not (known.run or known.cfg or known.info or known.shell_completion),
    )
    if known.config_path is not None:
        read.config_path = Path(known.config_path).expanduser().absolute()
        read.folders.insert(0, read.config_path)
        read.flags += [
            "--config-path",
            str(read.config_path),
        ]  # the last one counts; Hydra would look beside its caller
    if known.config_dir is not None:
        read.folders.append(Path(known.config_dir).expanduser().absolute())
        if not read.folders[-1].is_dir():
            raise ConfigError(f"--config-dir {known.config_dir} is no folder")
    name = f"{read.config_name.removesuffix('.yaml')}.yaml"
    read.main_config = read.source = Path(os.path.normpath(read.folders[0] / name))
    read.is_foreign = not read.main_config.is_relative_to(find_conf_folder())
    usual = vars(parser.parse_args([]))
    changed = {name for name, value in vars(known).items() if value != usual[name]}
    read.plain = changed <= {"overrides", "config_dir"} and not any(word.startswith("hydra.mode") for word in overrides)
    return read


def start_hydra(job: Callable[[Any], Any], overrides: Sequence[str], flags: Sequence[str]) -> None:
    """Let Hydra compose and run: once, or every job of a sweep.

    Args:
        job: is given each composed configuration; a function of a module, so that other processes find it.
        overrides: what the user asked for.
        flags: Hydra's own.
    """
    import hydra

    from vpexp.config.compose import register_schema
    from vpexp.config.groups import find_conf_folder

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
