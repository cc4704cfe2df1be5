"""The hall behind both doors: complete the configuration, open the run, let the stage work, write down what came out."""

import errno
import getpass
import logging
import platform
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

from omegaconf import DictConfig, OmegaConf

from vpexp.allocator import keep_freed_memory
from vpexp.completion import complete
from vpexp.config import INHERITED, save_config, validate
from vpexp.config.quoting import format_resume
from vpexp.console import say
from vpexp.environment import quiet_libraries
from vpexp.errors import OutputError
from vpexp.provenance import get_git_commit, get_versions
from vpexp.runfolder import RunFolder, create_run_folder, mark_latest, write_json
from vpexp.stages.context import RunContext, StageResult, name_data
from vpexp.tracking.metrics_csv import append_metrics, read_metrics
from vpexp.tracking.mlflow_run import MlflowRun, RunDescription, flatten, open_mlflow_run

log = logging.getLogger("vpexp")

TERMINATED = 128 + signal.SIGTERM
FULL = (errno.ENOSPC, errno.EDQUOT)
PARENT_TAG = "mlflow.parentRunId"  # by which MLflow shows runs below one another
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S%z"


def run(cfg: DictConfig, overrides: Sequence[str] = (), folder: Path | None = None) -> StageResult:
    """Run the stage that a configuration names.

    Args:
        cfg: the composed configuration.
        overrides: what the user asked for (``data=voc``, ``data.batch_size=1``), so that a test of a checkpoint takes
            the rest from the run that made it.
        folder: the run's folder; None makes a new one under ``paths.output_dir``.

    Raises:
        VpexpError: anything that the user can mend.
    """
    quiet_libraries()
    validate(cfg)
    if cfg.stage.name == "models":
        from vpexp.stages.models import run as show_models

        return show_models()
    return _run_in_folder(cfg, overrides, folder, None)


@dataclass(frozen=True, slots=True)
class _Parent:
    """The run that a child belongs to."""

    folder: RunFolder
    tracker: MlflowRun
    overrides: Sequence[str]


def _run_in_folder(
    cfg: DictConfig, overrides: Sequence[str], folder: Path | None, parent: _Parent | None
) -> StageResult:
    """Complete the configuration, and run in a folder of its own or in that of the run that goes on."""
    cfg, resumed = complete(cfg, overrides)
    output_dir = Path(cfg.paths.output_dir)
    run_folder = resumed or create_run_folder(output_dir, cfg.stage.name, folder)
    with _log_to(run_folder.log), _stop_on_sigterm():
        save_config(_without_resume(cfg), run_folder.config)
        say(f"run folder: {run_folder.path}")
        result = _run_recorded(cfg, overrides, run_folder, parent, going_on=resumed is not None)
    mark_latest(output_dir, cfg.stage.name, run_folder)
    return result


def _run_child(parent: _Parent, cfg: DictConfig, name: str) -> StageResult:
    """Run a stage inside the folder of another run; its sections are the parent's, whatever its checkpoint says."""
    return _run_in_folder(cfg, [*INHERITED, *parent.overrides], parent.folder.path / name, parent)


def _run_recorded(
    cfg: DictConfig, overrides: Sequence[str], folder: RunFolder, parent: _Parent | None, *, going_on: bool
) -> StageResult:
    """Run the stage between an opened and a closed record, whatever happens."""
    resume_id = folder.read_run_json().get("mlflow_run_id") if going_on else None
    commit = get_git_commit()
    folder.update_run_json(
        stage=cfg.stage.name,
        status="RUNNING",
        error=None,
        started=time.strftime(TIME_FORMAT),
        ended=None,
        mlflow_run_id=resume_id,
        git_commit=commit,
        python=platform.python_version(),
        versions=get_versions(),
    )
    context = _build_context(cfg, overrides, folder, MlflowRun())
    try:
        context = _build_context(cfg, overrides, folder, _open_tracker(cfg, folder, commit, resume_id, parent))
        folder.update_run_json(mlflow_run_id=context.tracker.run_id or resume_id)
        result = _run_stage(context)
        _log_end(context, result)
    except BaseException as error:
        try:
            _close_failed(context, error, parent)
        except OSError as second:
            log.warning("the end of the run could not be written down: %s", second)
        if isinstance(error, OSError) and error.errno in FULL:
            raise OutputError(
                f"{folder.path} cannot be written: {error.strerror}; free some space, then resume"
            ) from error
        raise
    context.tracker.close("FINISHED")
    return result


def _build_context(cfg: DictConfig, overrides: Sequence[str], folder: RunFolder, tracker: MlflowRun) -> RunContext:
    return RunContext(cfg, folder, tracker, partial(_run_child, _Parent(folder, tracker, overrides)))


def _run_stage(context: RunContext) -> StageResult:
    from vpexp.stages import get_stage

    keep_freed_memory()
    _limit_threads(context.cfg.trainer.threads)
    return get_stage(context.cfg.stage.name)(context)


def _log_end(context: RunContext, result: StageResult) -> None:
    folder = context.folder
    write_json(folder.metrics_json, {"metrics": result.metrics, "details": result.details})
    curves = {name for row in read_metrics(folder.metrics_csv) for name in row}
    if not curves:
        append_metrics(folder.metrics_csv, 0, result.metrics)
    folder.update_run_json(status="FINISHED", ended=time.strftime(TIME_FORMAT))
    context.tracker.try_again()
    # What was measured every epoch keeps its curve; the number of the model that is kept stands beside it.
    context.tracker.log_metrics(
        {f"final/{name}" if name in curves else name: value for name, value in result.metrics.items()}
    )
    _upload_records(context)


def _close_failed(context: RunContext, error: BaseException, parent: _Parent | None) -> None:
    """Write down that the run was stopped or failed, and why; how to go on with a child is for its parent to say."""
    stopped = isinstance(error, KeyboardInterrupt | SystemExit)
    status = "KILLED" if stopped else "FAILED"
    line = _describe(error)
    log.log(logging.WARNING if stopped else logging.ERROR, "%s: %s", status, line, exc_info=error)
    context.folder.update_run_json(status=status, error=line, ended=time.strftime(TIME_FORMAT))
    if stopped and parent is None and context.folder.last_checkpoint.is_file():
        say(f"stopped; go on with: {format_resume(context.folder.path)}")
    context.tracker.try_again()
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


def _open_tracker(
    cfg: DictConfig, folder: RunFolder, commit: str | None, resume_id: str | None, parent: _Parent | None
) -> MlflowRun:
    if not cfg.tracking.enabled or (parent and parent.tracker.run_id is None):
        return MlflowRun()  # a store that was down when the parent began is not waited for again by each child
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    params = flatten({str(name): value for name, value in container.items() if name not in ("tracking", "paths")})
    tags = {
        "stage": cfg.stage.name,
        "model": cfg.model.name,
        "data": name_data(cfg),
        "git_commit": commit or "none",
        "mlflow.user": getpass.getuser(),
        "mlflow.source.name": "vpexp",
        "run_folder": str(folder.path),
        **{str(name): str(value) for name, value in cfg.tracking.tags.items()},
    }
    if cfg.checkpoint:
        tags |= _trace(Path(cfg.checkpoint))
    if parent:
        tags |= {PARENT_TAG: str(parent.tracker.run_id), "step": folder.path.name}
    step = folder.path.name if parent else cfg.stage.name
    name = cfg.tracking.run_name or f"{cfg.model.name} {name_data(cfg)}"
    if parent or not cfg.tracking.run_name:
        name = f"{step} {name}"
    description = RunDescription(
        uri=cfg.tracking.uri,
        experiment=cfg.tracking.experiment,
        name=name,
        tags=tags,
        params=params,
        artifact_folder=Path(cfg.paths.output_dir) / "mlartifacts",
    )
    return open_mlflow_run(description, resume_id)


def _trace(checkpoint: Path) -> dict[str, str]:
    """Say where a checkpoint comes from: its file, and the MLflow run that made it."""
    folder = RunFolder(checkpoint.parent.parent)
    made_by = folder.read_run_json().get("mlflow_run_id") if folder.checkpoints == checkpoint.parent else None
    return {"checkpoint": str(checkpoint)} | ({"checkpoint_run": str(made_by)} if made_by else {})


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Write the log of all libraries into the run's folder while it lasts."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
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


@contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an orderly exit with code 143, so that the run is closed as KILLED."""

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise SystemExit(TERMINATED)

    try:
        previous = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread (a notebook's worker): signals are not ours there
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _describe(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C"
    if isinstance(error, SystemExit) and error.code == TERMINATED:
        return "stopped by SIGTERM"
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
