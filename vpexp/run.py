"""The hall behind both doors: complete the configuration, open the run, let the stage work, write down what came out."""

import logging
import platform
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from vpexp.config import inherit, save_config, validate
from vpexp.console import say
from vpexp.environment import quiet_libraries
from vpexp.errors import CheckpointError
from vpexp.runfolder import RunFolder, create_run_folder, mark_latest, write_json
from vpexp.stages.context import RunContext, StageResult
from vpexp.tracking.mlflow_run import MlflowRun, RunDescription, flatten, open_mlflow_run

log = logging.getLogger("vpexp")

TERMINATED = 128 + signal.SIGTERM
RECORDED_PACKAGES = ("vpexp", "torch", "pytorch-lightning", "datumaro", "mlflow", "faster-coco-eval", "numpy")


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
    cfg, resumed = _complete(cfg, overrides)
    validate(cfg)
    output_dir = Path(cfg.paths.output_dir).expanduser()
    run_folder = resumed or create_run_folder(output_dir, cfg.stage.name, folder)
    resume_id = run_folder.read_run_json().get("mlflow_run_id") if resumed else None
    with _log_to(run_folder.log), _stop_on_sigterm():
        save_config(_without_resume(cfg), run_folder.config)
        say(f"run folder: {run_folder.path}")
        tracker = _open_tracker(cfg, run_folder, resume_id)
        run_folder.update_run_json(
            stage=cfg.stage.name,
            status="RUNNING",
            started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            mlflow_run_id=tracker.run_id or resume_id,
            git_commit=_get_git_commit(),
            python=platform.python_version(),
            versions={name: version(name) for name in RECORDED_PACKAGES},
        )
        result = _run_stage(RunContext(cfg, run_folder, tracker))
    mark_latest(output_dir, cfg.stage.name, run_folder)
    return result


def _run_stage(context: RunContext) -> StageResult:
    from vpexp.stages import get_stage

    try:
        _limit_threads(context.cfg.trainer.threads)
        result = get_stage(context.cfg.stage.name)(context)
        write_json(context.folder.metrics_json, {"metrics": _without_nan(result.metrics), "details": result.details})
        _log_end(context, result)
    except BaseException as error:
        stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
        status = "KILLED" if stopped else "FAILED"
        line = _describe(error)
        log.log(logging.WARNING if stopped else logging.ERROR, "%s: %s", status, line, exc_info=error)
        context.folder.update_run_json(status=status, error=line, ended=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        context.tracker.log_artifact(context.folder.log)
        context.tracker.close(status, line)
        if stopped and context.folder.last_checkpoint.is_file():
            say(f"stopped; go on with: python -m vpexp resume={context.folder.path}")
        raise
    context.folder.update_run_json(status="FINISHED", ended=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    context.tracker.close("FINISHED")
    return result


def _without_resume(cfg: DictConfig) -> DictConfig:
    """The saved configuration is that of the whole run, to be run again from its start."""
    saved = cfg.copy()
    saved.resume = None
    return saved


def _limit_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _log_end(context: RunContext, result: StageResult) -> None:
    if context.folder.metrics_csv.is_file():
        context.tracker.log_artifact(context.folder.metrics_csv)
    context.tracker.log_metrics({f"final/{name}": value for name, value in result.metrics.items()})
    for path in (context.folder.config, context.folder.metrics_json, context.folder.run_json, context.folder.log):
        context.tracker.log_artifact(path)


def _complete(cfg: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, RunFolder | None]:
    """Take from the checkpoint's run what the user left open; return the folder of a run that goes on."""
    from vpexp.inference.checkpoint import find_checkpoint, read_checkpoint

    output_dir = Path(cfg.paths.output_dir).expanduser()
    cfg = cfg.copy()
    if cfg.resume:
        return _complete_resumed(cfg, overrides)
    if cfg.stage.name == "test" and cfg.checkpoint is not None:
        path = find_checkpoint(cfg.checkpoint, output_dir)
        cfg = inherit(cfg, read_checkpoint(path).cfg, overrides)
        with open_dict(cfg):
            cfg.checkpoint = str(path)
    return cfg, None


def _complete_resumed(cfg: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, RunFolder]:
    """Take the whole configuration from the run that goes on; only dotted keys given now are laid over it."""
    from vpexp.config import load_config
    from vpexp.runfolder import find_latest

    if cfg.resume == "latest":
        latest = find_latest(Path(cfg.paths.output_dir).expanduser(), "train")
        path = latest.path if latest else Path("latest")
    else:
        path = Path(cfg.resume).expanduser().resolve()
    folder = RunFolder(path if path.is_dir() else path.parent.parent)
    checkpoint = folder.last_checkpoint if path.is_dir() else path
    if not checkpoint.is_file():
        raise CheckpointError(f"resume={cfg.resume}: there is no {checkpoint} to go on from")
    saved = load_config(folder.config)
    keys = [override.lstrip("+").partition("=")[0] for override in overrides]
    with open_dict(saved):
        for key in keys:
            if "." in key or key == "seed":
                OmegaConf.update(saved, key, OmegaConf.select(cfg, key))
        saved.resume = str(checkpoint)
        saved.paths = cfg.paths
    return saved, folder


def _open_tracker(cfg: DictConfig, folder: RunFolder, resume_id: str | None) -> MlflowRun:
    if not cfg.tracking.enabled:
        return MlflowRun()
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    params = flatten({str(name): value for name, value in container.items() if name not in ("tracking", "paths")})
    tags = {
        "stage": cfg.stage.name,
        "model": cfg.model.name,
        "data": cfg.data.name,
        "git_commit": _get_git_commit() or "none",
        "run_folder": str(folder.path),
        **{str(name): str(value) for name, value in cfg.tracking.tags.items()},
    }
    if cfg.checkpoint:
        tags |= _trace(Path(cfg.checkpoint))
    name = cfg.tracking.run_name or f"{cfg.stage.name} {cfg.model.name} {cfg.data.name}"
    description = RunDescription(
        uri=cfg.tracking.uri,
        experiment=cfg.tracking.experiment,
        name=name,
        tags=tags,
        params=params,
        artifact_folder=Path(cfg.paths.output_dir).expanduser() / "mlartifacts",
    )
    return open_mlflow_run(description, resume_id)


def _trace(checkpoint: Path) -> dict[str, str]:
    """Say where a checkpoint comes from: its file, and the MLflow run that made it."""
    made_by = RunFolder(checkpoint.parent.parent).read_run_json().get("mlflow_run_id")
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


def _get_git_commit() -> str | None:
    """Find the commit of the folder that vpexp was started in, with ``+`` for uncommitted changes."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changes else "")


def _describe(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _without_nan(metrics: dict[str, float]) -> dict[str, Any]:
    """JSON has no NaN: a number without meaning is null."""
    return {name: None if value != value else value for name, value in metrics.items()}  # noqa: PLR0124
