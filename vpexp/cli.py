"""The command line: ``python -m vpexp``. It answers at once: what is heavy is imported when a stage runs."""

import atexit
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vpexp.command_line import FULL_ERROR, CommandLine, explain_error, read_command_line, set_full_error, start_hydra
from vpexp.errors import ConfigError, VpexpError, make_printable
from vpexp.files import find_full_disk
from vpexp.signals import drop_output

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> None:
    """Run what the command line says.

    Exits with code 2 and one line for what the user can mend (``HYDRA_FULL_ERROR=1`` shows the whole traceback), with 1
    after a sweep in which a job failed, and with 130 after Ctrl-C. Anything else that escapes is a defect, and shows its
    traceback.
    """
    asked = list(sys.argv[1:] if argv is None else argv)
    try:
        _answer(asked)
        if sys.stdout is not None:  # closed by who started this
            sys.stdout.flush()
    except BrokenPipeError:  # | head: who asked has read enough
        drop_output()
    except VpexpError as error:
        if os.environ.get(FULL_ERROR) == "1":
            traceback.print_exc()
        else:
            _complain(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # once more, and the exit would be another one
        _complain("interrupted")
        sys.exit(INTERRUPTED)
    except Exception as error:
        if find_full_disk(error) is None:
            raise
        _complain(f"the disk is full: {error}")
        sys.exit(VpexpError.exit_code)


def _complain(line: str) -> None:
    # Not by the console: importing rich would double the time of a typing error.
    sys.stderr.write(f"vpexp: {make_printable(line)}\n")


def _answer(asked: list[str]) -> None:
    if "--version" in asked:
        from importlib.metadata import version

        sys.stdout.write(f"vpexp {version('vpexp')}\n")
        return
    if not asked:
        from vpexp.config.groups import START

        sys.stdout.write(f"{START}\nAll groups and flags: python -m vpexp --help\n")
        return
    try:
        Path.cwd()
    except FileNotFoundError:
        raise ConfigError("the folder that this is run from does not exist any more: change to another") from None
    command_line = read_command_line(asked)
    if command_line.help:
        from vpexp.config.groups import format_help

        sys.stdout.write(format_help(command_line.folders))
        return
    if command_line.multirun:
        from vpexp.sweeps.command import run_sweep

        sys.exit(run_sweep(command_line))
    _refuse_sweep_options(command_line)
    if command_line.plain:
        _check_early(command_line)
    if command_line.is_foreign:
        from vpexp.config.trust import check_main_config

        check_main_config(command_line.main_config, command_line.overrides, command_line.config_dir)
    _run_once(command_line)


def _refuse_sweep_options(command_line: CommandLine) -> None:
    for override in command_line.overrides:
        if override.startswith(("sweep=", "sweep.resume=")) and override != "sweep=default":
            raise ConfigError(f"{override} is for sweeps: add -m, python -m vpexp -m {override} ...")


def _check_early(command_line: CommandLine) -> None:
    """Compose once, to find mistakes in half the time: Hydra composes twice before it complains.

    Raises:
        ConfigError: what is wrong.
    """
    from vpexp.config import compose_config, validate

    validate(compose_config(command_line.overrides, command_line.config_dir))


def _run_once(command_line: CommandLine) -> None:
    failures: list[Exception] = []
    job = _build_job(failures, os.environ.get(FULL_ERROR), command_line.config_dir)
    try:
        start_hydra(job, command_line.overrides, command_line.flags)
    except Exception as error:
        explained = explain_error(error, command_line.overrides, command_line.folders)
        if explained is None:
            raise
        raise explained from error
    if failures:
        raise failures[0]


def _build_job(failures: list[Exception], full_error: str | None, config_dir: str | None) -> Callable[[Any], None]:
    """Build the function that Hydra calls with the composed configuration; a failure is kept apart from Hydra's own."""

    def run_job(cfg: Any) -> None:
        from hydra.core.hydra_config import HydraConfig

        from vpexp.config.trust import CONFIG_DIR
        from vpexp.config.validate import validate

        settings = HydraConfig.get()
        asked = list(settings.overrides.task)
        if "data" not in settings.runtime.choices:  # a saved configuration is complete: there is nothing to inherit
            asked = [*map(str, cfg), *asked]
        if config_dir is not None:
            asked.append(f"{CONFIG_DIR}{Path(config_dir).expanduser().absolute()}")
        try:
            validate(cfg)  # before anything heavy is imported
            from vpexp.run import run

            with set_full_error(full_error):
                run(cfg, asked)
        except Exception as error:  # noqa: BLE001  (the caller reports it, not Hydra)
            failures.append(error)

    return run_job
