"""What MLflow records of a run before it starts: its name, tags and parameters, and which code it was made with."""

import getpass
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from vpexp.config.compose import format_sync
from vpexp.config.saved import name_data
from vpexp.runfolder import RunFolder, find_maker
from vpexp.tracking.journal import FOLDER_TAG, HOST_TAG, get_host
from vpexp.tracking.mlflow_run import Origin, RunDescription
from vpexp.tracking.store import flatten

RECORDED_PACKAGES = ("vpexp", "torch", "pytorch-lightning", "datumaro", "mlflow", "faster-coco-eval", "numpy")
GIT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Parent:
    """The run that a run belongs to: a pipeline, or a sweep.

    Attributes:
        folder: the parent's run folder.
        name: what the run is called among its siblings, ``test_ir`` or ``lr=1e-5 bs=2``.
        tags: of the run, beside its own.
        marks_latest: whether the run becomes the latest of its stage; jobs of a sweep do not, the best of them does.
    """

    folder: RunFolder
    name: str
    tags: dict[str, str]
    marks_latest: bool = True


def describe_run(cfg: DictConfig, folder: RunFolder, commit: str | None, parent: Parent | None) -> RunDescription:
    """Describe a run, as ``tracking`` in the configuration asks.

    Args:
        cfg: the complete configuration.
        folder: the run's.
        commit: of the code.
        parent: what the run belongs to.
    """
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    params = flatten({str(name): value for name, value in container.items() if name not in ("tracking", "paths")})
    tags = {"stage": cfg.stage.name, "model": cfg.model.name, **list_common_tags(cfg, folder, commit)}
    if cfg.checkpoint:
        tags["checkpoint"] = str(cfg.checkpoint)
    if parent:
        tags |= parent.tags
    return RunDescription(
        uri=cfg.tracking.uri,
        experiment=cfg.tracking.experiment,
        name=_name(cfg, parent),
        tags=tags,
        params=params,
        artifact_folder=Path(cfg.paths.output_dir) / "mlartifacts",
        upload_command=format_sync(folder.path),
        parent=parent.folder.path if parent else None,
        origin=find_origin(Path(cfg.checkpoint)) if cfg.checkpoint else None,
    )


def list_common_tags(cfg: DictConfig, folder: RunFolder, commit: str | None) -> dict[str, str]:
    """List the tags of runs and sweeps alike; those that the user asks for come last, over any other."""
    return {
        "data": name_data(cfg),
        "git_commit": commit or "none",
        "mlflow.user": getpass.getuser(),
        "mlflow.source.name": "vpexp",
        FOLDER_TAG: str(folder.path),
        HOST_TAG: get_host(),
        **{str(name): str(value) for name, value in cfg.tracking.tags.items()},
    }


def _name(cfg: DictConfig, parent: Parent | None) -> str:
    if parent:
        return parent.name
    return cfg.tracking.run_name or f"{cfg.stage.name} {cfg.model.name} {name_data(cfg)}"


def find_origin(checkpoint: Path) -> Origin | None:
    """Find the run that made a checkpoint or an exported model; None where it lies in no run's folder."""
    maker = find_maker(checkpoint)
    if maker is None:
        return None
    best = maker.read_run_json().get("best_checkpoint")
    return Origin(maker.path, is_model=best is None or maker.path / best == checkpoint.resolve())


def get_git_commit() -> str | None:
    """Find the commit of the folder that vpexp was started in, with ``+`` for uncommitted changes."""
    try:
        commit = _ask_git("rev-parse", "HEAD")
        changes = _ask_git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changes else "")


def get_versions() -> dict[str, str | None]:
    """List the versions of the packages that shape the numbers; None for one that is not installed as a package."""
    return {name: _get_version(name) for name in RECORDED_PACKAGES}


def _ask_git(*arguments: str) -> str:
    answer = subprocess.run(  # noqa: S603  fixed words
        ["git", *arguments], capture_output=True, text=True, check=True, timeout=GIT_SECONDS
    )
    return answer.stdout.strip()


def _get_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # vpexp run from a checkout that was not installed
        return None
