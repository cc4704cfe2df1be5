"""The hall behind both doors: complete the configuration, open the run, let the stage work, write down what came out."""

import logging
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from vpexp.config import INHERITED, save_config, validate
from vpexp.config.compose import format_resume, quote_value, quote_word
from vpexp.config.saved import name_data
from vpexp.console import log_line
from vpexp.errors import ConfigError, OutputError, VpexpError, make_printable
from vpexp.files import RunLog, find_full_disk, quiet_full_disk, write_json
from vpexp.registry import VPEXP, get_stage
from vpexp.resolve import check_inputs, complete
from vpexp.runfolder import TIME_FORMAT, RunFolder, append_metrics, create_run_folder, mark_latest, read_metrics
from vpexp.runtime import keep_freed_memory, quiet_libraries
from vpexp.signals import describe_stop, ignore_stops, repeat_lost_stops, stop_on_sigterm
from vpexp.stages.shared.context import RunContext, StageResult
from vpexp.tracking.description import Parent, describe_run, get_git_commit, get_versions
from vpexp.tracking.journal import get_host
from vpexp.tracking.mlflow_run import MlflowRun, open_mlflow_run
from vpexp.tracking.store import normalize_uri

log = logging.getLogger("vpexp")

Command = tuple[str, str]
"""What follows ``python -m vpexp``, and what that does."""

NEXT: dict[str, tuple[Command, ...]] = {
    "train": (
        ("stage=test", "test it on its own data"),
        ("stage=export", "write it as OpenVINO IR, for CPUs"),
        ("stage=demo source=photos/", "label more photos with it"),
    ),
    "test": (("stage=test prompt=clicks", "test it by simulated clicks"),),
    "export": (
        ("stage=ptq", "quantize it to INT8"),
        ("stage=predict source=photos/ {checkpoint}", "masks for photos"),
    ),
    "ptq": (
        ("stage=test {checkpoint}", "test it"),
        ("stage=predict source=photos/ {checkpoint}", "masks for photos"),
    ),
    "pipeline": (("stage=predict source=photos/ {checkpoint}", "masks for photos, by the INT8 model"),),
}
"""Commands to go on with after a stage; demo and predict write what to do with their own masks themselves."""


def run(
    cfg: DictConfig, overrides: Sequence[str] = (), folder: Path | None = None, parent: Parent | None = None
) -> StageResult:
    """Run the stage that a configuration names.

    Args:
        cfg: the composed configuration.
        overrides: what the user asked for (``data=voc``, ``data.batch_size=1``), so that a test of a checkpoint takes
            the rest from the run that made it.
        folder: the run's folder; None makes a new one under ``paths.output_dir``. A run that was begun in it goes on in
            the same MLflow run.
        parent: what the run belongs to.

    Raises:
        VpexpError: anything that the user can mend.
    """
    quiet_libraries()
    quiet_full_disk()
    validate(cfg)
    if not get_stage(cfg.stage.name).recorded:
        return _answer(cfg, overrides)
    cfg, resumed = complete(cfg, overrides, whole=folder is not None)
    if cfg.tracking.enabled:
        normalize_uri(cfg.tracking.uri)  # a path that no database can have is refused before anything is made
    if resumed is None:
        check_inputs(cfg)
    parent = parent or _find_parent(cfg)
    output_dir = Path(cfg.paths.output_dir)
    run_folder = resumed or create_run_folder(output_dir, cfg.stage.name, folder)
    try:
        with run_folder.hold(), run_folder.reserve(), _log_to(run_folder.log), stop_on_sigterm(), repeat_lost_stops():
            save_config(_without_resume(cfg), run_folder.config)
            log_line(f"run folder: {run_folder.path}")
            result = _run_recorded(cfg, overrides, run_folder, parent)
        if parent is None or parent.marks_latest:
            mark_latest(output_dir, cfg.stage.name, run_folder)
        if parent is None:
            _print_next(cfg, overrides, run_folder.path)
    except Exception as error:
        if explained := _explain(error, cfg, run_folder):
            raise explained from error
        raise
    return result


def _find_parent(cfg: DictConfig) -> Parent | None:
    """Find the run that ``tracking.parent`` names."""
    if cfg.tracking.parent is None:
        return None
    folder = RunFolder(Path(cfg.tracking.parent).expanduser().absolute())
    if not folder.run_json.is_file():
        raise ConfigError(f"tracking.parent={cfg.tracking.parent} is no folder of a run")
    return Parent(folder, str(cfg.tracking.run_name or cfg.stage.name), {}, marks_latest=False)


def _print_next(cfg: DictConfig, overrides: Sequence[str], folder: Path) -> None:
    """Print what a stage leads to, as commands to type."""
    stage = cfg.stage.name
    commands = NEXT.get(stage, ()) if cfg.export.target == VPEXP or stage != "export" else ()
    if stage == "data":
        data = [quote_word(word) for word in overrides if word.startswith(("data=", "data."))]
        commands = ((" ".join(["stage=train", *data]), "fine-tune on it"),)
    here = Path.cwd()
    deployed = folder / "ptq" if stage == "pipeline" else folder
    shown = deployed.relative_to(here) if deployed.is_relative_to(here) else deployed
    checkpoint = quote_word(f"checkpoint={quote_value(shown)}")
    usual = Path(cfg.paths.output_dir).resolve() == (here / "outputs").resolve()
    elsewhere = "" if usual else f" {quote_word(f'paths.output_dir={quote_value(cfg.paths.output_dir)}')}"
    lines = [(f"python -m vpexp {words.format(checkpoint=checkpoint)}{elsewhere}", what) for words, what in commands]
    width = max((len(command) for command, _ in lines), default=0)
    for place, (command, what) in enumerate(lines):
        log_line(f"{'next:' if not place else '':6}{command:{width}}  {what}")


def record_refused(cfg: DictConfig, folder: Path, parent: Parent, error: Exception) -> None:
    """Record a job of a sweep that ended before it began: its configuration, or what it names, cannot be used."""
    run_folder = create_run_folder(Path(cfg.paths.output_dir), cfg.stage.name, folder)
    with run_folder.hold(), _log_to(run_folder.log):
        commit = _begin_record(cfg, run_folder)
        context = _build_context(cfg, (), run_folder, _open_tracker(cfg, (), run_folder, commit, parent), parent)
        context.tracker.start()
        _close_failed(context, error, parent)
        context.tracker.finish()


def _answer(cfg: DictConfig, overrides: Sequence[str]) -> StageResult:
    if cfg.stage.name == "sync":
        from vpexp.stages.sync import run as upload_records

        return upload_records(cfg, elsewhere=any(override.startswith("tracking.uri=") for override in overrides))
    from vpexp.stages.models import run as show_models

    return show_models()


def _run_recorded(cfg: DictConfig, overrides: Sequence[str], folder: RunFolder, parent: Parent | None) -> StageResult:
    """Run the stage between an opened and a closed record, whatever happens."""
    commit = _begin_record(cfg, folder)
    context = _build_context(cfg, overrides, folder, MlflowRun(), parent)
    try:
        context = replace(context, tracker=_open_tracker(cfg, overrides, folder, commit, parent))
        context.tracker.start()
        result = _run_stage(context)
        _log_end(context, result)
    except BaseException as error:
        explained = _explain(error, cfg, folder)
        folder.reserved.unlink(missing_ok=True)
        try:
            with ignore_stops():
                _close_failed(context, explained or error, parent)
        except OSError as second:
            log.warning("the end of the run could not be written down: %s", second)
        context.tracker.finish()
        if explained:
            raise explained from error
        raise
    context.tracker.close("FINISHED")
    context.tracker.finish()
    return result


def _explain(error: BaseException, cfg: DictConfig, folder: RunFolder) -> OutputError | None:
    """Describe in one line that the disk is full, whichever library found out; None where it is not."""
    reason = None if isinstance(error, VpexpError) else find_full_disk(error)
    if reason is None:
        return None
    goes_on = cfg.stage.name == "pipeline" or folder.last_checkpoint.is_file()
    then = f"resume: {format_resume(folder.path)}" if goes_on else "start again"
    explained = OutputError(f"{folder.path} cannot be written: {reason}; free some space, then {then}")
    explained.__cause__ = error
    return explained


def _begin_record(cfg: DictConfig, folder: RunFolder) -> str | None:
    """Write down that the run begins; return the commit of the code."""
    commit = get_git_commit()
    folder.update_run_json(
        stage=cfg.stage.name,
        status="RUNNING",
        error=None,
        process=os.getpid(),
        host=get_host(),
        started=time.strftime(TIME_FORMAT),
        ended=None,
        mlflow_run_id=folder.read_run_json().get("mlflow_run_id"),
        git_commit=commit,
        python=platform.python_version(),
        versions=get_versions(),
    )
    return commit


def _build_context(
    cfg: DictConfig, overrides: Sequence[str], folder: RunFolder, tracker: MlflowRun, parent: Parent | None
) -> RunContext:
    def run_child(child_cfg: DictConfig, step: str) -> StageResult:
        name = f"{step} {child_cfg.model.name} {name_data(child_cfg)}"
        marks_latest = parent is None or parent.marks_latest
        child_of = Parent(folder, name, {"step": step}, marks_latest=marks_latest)
        return run(child_cfg, [*INHERITED, *overrides], folder.path / step, child_of)

    return RunContext(cfg, folder, tracker, run_child)


def _open_tracker(
    cfg: DictConfig, overrides: Sequence[str], folder: RunFolder, commit: str | None, parent: Parent | None
) -> MlflowRun:
    if not cfg.tracking.enabled:
        return MlflowRun()
    return open_mlflow_run(describe_run(cfg, overrides, folder, commit, parent), folder.path)


def _run_stage(context: RunContext) -> StageResult:
    from vpexp.stages import find_stage

    keep_freed_memory()
    _limit_threads(context.cfg.trainer.threads)
    return find_stage(context.settings.stage)(context)


def _log_end(context: RunContext, result: StageResult) -> None:
    folder = context.folder
    write_json(folder.metrics_json, {"metrics": result.metrics, "details": result.details})
    if not read_metrics(folder.metrics_csv):
        append_metrics(folder.metrics_csv, 0, result.metrics)
    folder.update_run_json(status="FINISHED", ended=time.strftime(TIME_FORMAT))
    context.tracker.log_results(result.metrics)
    _upload_records(context)


def _close_failed(context: RunContext, error: BaseException, parent: Parent | None) -> None:
    """Write down that the run was stopped or failed, and why; how to go on with a child is for its parent to say."""
    stopped = isinstance(error, KeyboardInterrupt | SystemExit)
    status = "KILLED" if stopped else "FAILED"
    line = _describe(error)
    context.folder.update_run_json(status=status, error=line, ended=time.strftime(TIME_FORMAT))
    log.log(logging.WARNING if stopped else logging.ERROR, "%s: %s", status, line, exc_info=error)
    if stopped and parent is None and context.folder.last_checkpoint.is_file():
        log_line(f"stopped; go on with: {format_resume(context.folder.path)}")
    context.tracker.close(status, line)
    _upload_records(context)


def _upload_records(context: RunContext) -> None:
    folder = context.folder
    for path in (folder.config, folder.metrics_csv, folder.metrics_json, folder.run_json, folder.log):
        context.tracker.log_artifact(path)


def _without_resume(cfg: DictConfig) -> DictConfig:
    """The saved configuration is that of the whole run, to be run again from its start."""
    saved = cfg.copy()
    saved.resume = None
    return saved


def _limit_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


class _PrintableFormatter(logging.Formatter):
    """Keeps what would act on the terminal of whoever reads the log out of it."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; its lines stay lines."""
        return "\n".join(map(make_printable, super().format(record).split("\n")))


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Write the log of all libraries into the run's folder while it lasts."""
    handler = RunLog(path, encoding="utf-8")
    handler.setFormatter(_PrintableFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(min(level, logging.INFO) or logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()


def _describe(error: BaseException) -> str:
    if stop := describe_stop(error):
        return stop
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
