"""The command line: ``python -m vpexp``. It answers at once: what is heavy is imported when a stage runs."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vpexp.errors import ConfigError, VpexpError

FULL_ERROR = "HYDRA_FULL_ERROR"
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> None:
    """Run what the command line says.

    Exits with code 2 and one line for what the user can mend (``HYDRA_FULL_ERROR=1`` shows the whole traceback), and
    with 130 after Ctrl-C. Anything else that escapes is a defect, and shows its traceback.
    """
    asked = list(sys.argv[1:] if argv is None else argv)
    try:
        _answer(asked)
    except VpexpError as error:
        if os.environ.get(FULL_ERROR) == "1":
            traceback.print_exc()
        else:
            _complain(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _complain("interrupted")
        sys.exit(INTERRUPTED)


def _complain(line: str) -> None:
    printable = line.encode("utf-8", "backslashreplace").decode()
    sys.stderr.write(f"vpexp: {printable}\n")  # not the console: importing rich would double the time of a typing error


@dataclass
class _CommandLine:
    """What the user typed, sorted."""

    flags: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    config_dir: str | None = None
    help: bool = False
    plain: bool = False
    """A single run from vpexp's own main configuration: no flags but --config-dir."""


def _answer(asked: list[str]) -> None:
    if "--version" in asked:
        from importlib.metadata import version

        sys.stdout.write(f"vpexp {version('vpexp')}\n")
        return
    command_line = _read_command_line(asked)
    if command_line.help:
        from vpexp.config.help import format_help

        sys.stdout.write(format_help(command_line.folders))
        return
    if command_line.plain:
        _check_early(command_line)
    _run_hydra(command_line)


def _check_early(command_line: _CommandLine) -> None:
    """Compose once, to find mistakes in half the time: Hydra composes twice before it complains.

    Raises:
        ConfigError: what is wrong.
    """
    from vpexp.config import compose_config, validate

    validate(compose_config(command_line.overrides, command_line.config_dir))


def _read_command_line(asked: list[str]) -> _CommandLine:
    """Sort overrides and flags, which Hydra wants apart, and make folders absolute.

    Raises:
        ConfigError: an unknown flag, or one that lacks its value.
    """
    from hydra._internal.utils import get_args_parser

    from vpexp.config.folders import find_conf_folder

    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        known, unknown = parser.parse_known_args(asked)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}; python -m vpexp --help lists the flags") from error
    for word in unknown:
        if word.startswith("-"):
            hint = f"write {word.lstrip('-')}" if "=" in word else "python -m vpexp --help lists them"
            raise ConfigError(f"unknown flag '{word}': {hint}")
    overrides = [*known.overrides, *unknown]  # argparse takes only the first run of overrides as such
    flags = [word for word in asked if word not in overrides]
    folders = [find_conf_folder()]
    if known.config_path is not None:
        folders.insert(0, Path(known.config_path).expanduser().absolute())
        flags += ["--config-path", str(folders[0])]  # the last one counts; Hydra would look beside this file
    if known.config_dir is not None:
        folders.append(Path(known.config_dir).expanduser().absolute())
        if not folders[-1].is_dir():
            raise ConfigError(f"--config-dir {known.config_dir} is no folder")
    usual = vars(parser.parse_args([]))
    changed = {name for name, value in vars(known).items() if value != usual[name]}
    plain = changed <= {"overrides", "config_dir"} and not any(word.startswith("hydra.mode") for word in overrides)
    return _CommandLine(flags, overrides, folders, known.config_dir, help=known.help, plain=plain)


def _run_hydra(command_line: _CommandLine) -> None:
    import hydra

    from vpexp.config.compose import register_schema
    from vpexp.config.explain import explain
    from vpexp.config.folders import find_conf_folder

    failures: list[Exception] = []
    job = _build_job(failures, os.environ.get(FULL_ERROR))
    register_schema()
    decorate = hydra.main(version_base="1.3", config_path=str(find_conf_folder()), config_name="config")
    try:
        with _set_argv([*command_line.overrides, *command_line.flags]), _set_full_error("1"):
            decorate(job)()
    except Exception as error:
        line = None if error in failures else explain(error, command_line.overrides, command_line.folders)
        if line is None:
            raise
        raise ConfigError(line) from error
    if failures:
        raise failures[0]


def _build_job(failures: list[Exception], full_error: str | None) -> Callable[[Any], Any]:
    """Build the function that Hydra calls with a composed configuration; a failure is kept apart from Hydra's own."""

    def run_job(cfg: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from vpexp.config.saved import INHERITED
        from vpexp.config.validate import validate

        settings = HydraConfig.get()
        asked = list(settings.overrides.task)
        folder = Path(settings.runtime.output_dir) if settings.mode == RunMode.MULTIRUN else None
        if "data" not in settings.runtime.choices:  # a saved configuration is complete: there is nothing to inherit
            asked = [*INHERITED, *asked]

        try:
            validate(cfg)  # before anything heavy is imported
            from vpexp.run import run

            with _set_full_error(full_error):
                return run(cfg, asked, folder)
        except Exception as error:
            failures.append(error)
            if settings.mode == RunMode.MULTIRUN:
                raise  # the sweeper has to know
            return None

    return run_job


@contextmanager
def _set_argv(arguments: list[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = [before[0], *arguments]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _set_full_error(value: str | None) -> Iterator[None]:
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
