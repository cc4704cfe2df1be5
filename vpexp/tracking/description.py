"""What MLflow records of a run before it starts: its name, tags and parameters, and which code it was made with."""

import getpass
import subprocess
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath

from omegaconf import DictConfig, OmegaConf

from vpexp.config.compose import format_sync
from vpexp.config.saved import name_data, name_dataset
from vpexp.runfolder import RunFolder, find_maker
from vpexp.tracking.journal import FOLDER_TAG, HOST_TAG, get_host
from vpexp.tracking.mlflow_run import Origin, RunDescription
from vpexp.tracking.store import flatten

SMALL = Decimal("0.01")
TYPED_DIGITS = 6  # a number of more is a search's
DIGITS = 3  # that are shown of it
SHORT = {"batch_size": "bs", "weight_decay": "wd", "max_epochs": "epochs"}
# What a run's name has anyway, and what changes no result.
UNNAMED = ("stage", "model", "data", "data.root", "source", "resume")
UNNAMED_SECTIONS = ("tracking", "paths", "hydra")
NAME_LENGTH = 80  # of what was asked for
TIME_LENGTH = len("20261121_101500")  # of a run folder's name

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


def describe_run(
    cfg: DictConfig, overrides: Sequence[str], folder: RunFolder, commit: str | None, parent: Parent | None
) -> RunDescription:
    """Describe a run, as ``tracking`` in the configuration asks.

    Args:
        cfg: the complete configuration.
        overrides: what the user asked for.
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
        experiment=name_experiment(cfg),
        name=_name(cfg, overrides, folder, parent),
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


def name_experiment(cfg: DictConfig) -> str:
    """Name the experiment of a run: as configured, else after the data set that it, or the model it takes up, is for."""
    return cfg.tracking.experiment or (name_dataset(cfg) if cfg.checkpoint else name_data(cfg))


def _name(cfg: DictConfig, overrides: Sequence[str], folder: RunFolder, parent: Parent | None) -> str:
    """Name a run so that a narrow column tells it from others: what was asked for comes first."""
    if parent:
        return parent.name
    if cfg.tracking.run_name:
        return str(cfg.tracking.run_name)
    asked = dict(override.lstrip("+").partition("=")[::2] for override in overrides if "=" in override)
    values = {
        key: PurePath(value).name
        for key, value in asked.items()
        if key not in UNNAMED and key.partition(".")[0] not in UNNAMED_SECTIONS
    }
    words = textwrap.shorten(name_values(values), NAME_LENGTH, placeholder=" …")
    parts = (cfg.stage.name, words, cfg.model.name, name_data(cfg), folder.path.name[:TIME_LENGTH])
    return " ".join(filter(None, parts))


def name_values(values: Mapping[str, str]) -> str:
    """Name a run by what was asked of it, ``lr=1e-5 bs=2``: by the last word of each key, or by more where two keys end alike."""
    pairs = zip(shorten(list(values)), values.values(), strict=True)
    return " ".join(f"{label}={format_value(value)}" for label, value in pairs)


def format_value(value: str) -> str:
    """Write numbers as people do, ``1e-5`` for Hydra's ``1e-05``, and those of a search with three digits."""
    try:
        number = Decimal(value)
    except InvalidOperation:
        return value
    if not number.is_finite():
        return value
    if "." in value and len(number.as_tuple().digits) > TYPED_DIGITS:
        number = Decimal(f"{number:.{DIGITS - 1}e}")
        value = f"{number:f}"
    if not 0 < abs(number) < SMALL:
        return value
    mantissa, _, exponent = f"{number.normalize():e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def shorten(keys: Sequence[str]) -> list[str]:
    """Shorten keys to labels that differ: ``optimizer.lr`` to ``lr``, ``data.batch_size`` to ``bs``."""
    words = [key.lstrip("+").rsplit(".", 1)[-1] for key in keys]
    labels = [SHORT.get(word, word) for word in words]
    return [label if labels.count(label) == 1 else key.lstrip("+") for label, key in zip(labels, keys, strict=True)]


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
