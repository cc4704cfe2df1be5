"""Complete a configuration: take what the user left open from the run that made a checkpoint, or that goes on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vpexp.config import inherit, load_config, validate
from vpexp.config.saved import inherit_tiles, lay_over_saved, list_keys
from vpexp.config.trust import CONFIG_DIR, list_own_targets, refuse_foreign
from vpexp.data.dataset import check_root
from vpexp.errors import CheckpointError, ConfigError
from vpexp.inference.exported import ExportedModel, find_exported, is_exported_reference, read_metadata
from vpexp.registry import get_stage
from vpexp.runfolder import LATEST, RunFolder, find_latest, read_metrics
from vpexp.stages.shared.context import find_weights_dir

READ_DATA = ("train", "test", "ptq", "pipeline")
NEEDED_SPLITS = {"train": ("train", "val"), "pipeline": ("train", "val"), "ptq": ("train",)}
USE_WEIGHTS = ("train", "test", "export", "predict", "demo", "pipeline")
NAMED_BY_FILES = "openvino_model"  # the model of which its files say what it is

USED = {  # sections that the steps of a pipeline use, beside those that no run changes
    "train": ("data", "prompt", "prompter", "loss", "trainer", "callbacks", "metrics", "seed"),
    "test": ("data", "prompt", "stage", "metrics"),
    "export": ("export",),
    "ptq": ("ptq",),
}


def complete(cfg: DictConfig, overrides: Sequence[str], *, whole: bool = False) -> tuple[DictConfig, RunFolder | None]:
    """Return the configuration that runs, and the folder of a run that goes on.

    Args:
        cfg: as composed by the user; it is left as it is.
        overrides: what the user asked for.
        whole: whether a run that goes on is as ``cfg`` says in all: a job of a sweep, a step of a pipeline.

    Raises:
        CheckpointError: the checkpoint, or the run to resume, is not there.
        ConfigError: what came from there does not fit, or would start code that neither vpexp nor the user names.
    """
    own = list_own_targets(cfg, overrides)
    overrides = [override for override in overrides if not override.startswith(CONFIG_DIR)]
    cfg = cfg.copy()
    for name in ("output_dir", "cache_dir"):
        cfg.paths[name] = str(Path(cfg.paths[name]).expanduser())
    if cfg.resume:
        cfg, folder = _complete_resumed(cfg, overrides, whole=whole)
        refuse_foreign(cfg, own, folder.config)
        return cfg, folder
    if cfg.checkpoint is not None:
        cfg = _complete_checkpoint(cfg, overrides)
        refuse_foreign(cfg, own, cfg.checkpoint)
    validate(cfg)
    return cfg, None


def check_inputs(cfg: DictConfig) -> None:
    """Look whether what a stage begins with is there: data set, weights, device. Weights that are missing are downloaded.

    Raises:
        DataError: no data set of that format lies at ``data.root``.
        WeightsError: the weights are not there, and cannot be had.
        ConfigError: there is no such device here.
    """
    stage = cfg.stage.name
    if stage in READ_DATA or (stage == "predict" and cfg.prompts == "dataset"):
        settings: Any = OmegaConf.to_object(cfg.data)
        check_root(settings, (cfg.stage.split,) if stage == "test" else NEEDED_SPLITS.get(stage, ()))
    if cfg.trainer.accelerator not in ("auto", "cpu") or cfg.trainer.devices != 1:
        from vpexp.devices import list_devices

        list_devices(cfg.trainer.accelerator, cfg.trainer.devices)
    is_exported = cfg.checkpoint is not None and is_exported_reference(Path(cfg.checkpoint))
    if stage in USE_WEIGHTS and not is_exported:
        from vpexp.models.registry import list_models
        from vpexp.models.weights import resolve_weights

        if cfg.model.name in list_models():
            resolve_weights(cfg.model.name, str(cfg.model.weights), find_weights_dir(cfg))


def _complete_checkpoint(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Name the checkpoint by its file (what "latest" means is another one after this run), and inherit from its run."""
    stage, traits = cfg.stage.name, get_stage(cfg.stage.name)
    path = _find_latest_export(cfg) if (stage, cfg.checkpoint) == ("ptq", LATEST) else Path(cfg.checkpoint).expanduser()
    if is_exported_reference(path):
        if not traits.takes_exported:
            raise CheckpointError(
                f"checkpoint={path} is an exported model: stage={stage} takes a .ckpt or a run of training"
            )
        return _inherit_exported(cfg, find_exported(path), overrides)
    from vpexp.inference.torch_model import find_checkpoint, read_checkpoint

    file = find_checkpoint(cfg.checkpoint, Path(cfg.paths.output_dir))
    if stage == "ptq":
        raise CheckpointError(f"checkpoint={file} is not exported yet: stage=export makes what stage=ptq takes")
    if traits.inherits:
        cfg = inherit(cfg, read_checkpoint(file).cfg, overrides)
    cfg.checkpoint = str(file)
    return cfg


def _find_latest_export(cfg: DictConfig) -> Path:
    folder = find_latest(Path(cfg.paths.output_dir), "export")
    if folder is None:
        raise CheckpointError(
            f"nothing was exported yet under {cfg.paths.output_dir}: run stage=export first, or give checkpoint=<file>"
        )
    return folder.path


def _inherit_exported(cfg: DictConfig, model: ExportedModel, overrides: Sequence[str]) -> DictConfig:
    """Inherit from the configuration beside the files; without one, the model itself says what it is."""
    config = RunFolder(model.folder).config
    if config.is_file():
        cfg = inherit(cfg, load_config(config), overrides)
    metadata = read_metadata(model)
    typed = {override.partition("=")[0]: override for override in overrides}
    for key, names, value in (
        ("name", ("model", "model.name"), metadata.model_name),
        ("image_size", ("model.image_size",), metadata.image_size),
    ):
        asked = [typed[name] for name in names if "=" in typed.get(name, "")]
        if asked and cfg.model[key] not in (value, NAMED_BY_FILES):
            raise ConfigError(f"{asked[-1]}: {model.decoder} has model.{key}={value}; leave out {asked[-1]}")
    cfg.model.name, cfg.model.image_size = metadata.model_name, metadata.image_size
    if not set(list_keys(overrides)) & {"prompt", "prompt.multimask", "experiment"}:
        cfg.prompt.multimask = metadata.multimask
    inherit_tiles(cfg, metadata.tile, metadata.tile_overlap, list(typed))
    cfg.checkpoint = str(model.decoder)
    return cfg


def _complete_resumed(cfg: DictConfig, overrides: Sequence[str], *, whole: bool) -> tuple[DictConfig, RunFolder]:
    """Take the configuration from the run that goes on, and lay what is asked for now over it."""
    folder, start = _find_run(cfg)
    if start.is_file():
        from vpexp.inference.torch_model import read_checkpoint

        # A damaged file is named before anything is built, the table of epochs too.
        if not read_checkpoint(start).can_go_on:
            raise CheckpointError(
                f"resume={start} holds weights alone, nothing to go on from: resume={folder.path} goes on from its "
                f"last.ckpt, checkpoint={start} starts a new training from these weights"
            )
    read_metrics(folder.metrics_csv)
    saved = load_config(folder.config)
    if whole:
        going_on = cfg.copy()
        going_on.checkpoint, going_on.resume = saved.checkpoint, None
    else:
        going_on = lay_over_saved(saved, cfg, overrides, _list_settled(folder))
    validate(going_on)
    going_on.resume = str(start)
    return going_on, folder


def _list_settled(folder: RunFolder) -> list[str]:
    """List the sections that the finished steps of a pipeline have used."""
    records = [RunFolder(path.parent).read_run_json() for path in sorted(folder.path.glob("*/run.json"))]
    finished = {str(record.get("stage")) for record in records if record.get("status") == "FINISHED"}
    return list(dict.fromkeys(name for stage in sorted(finished & USED.keys()) for name in USED[stage]))


def _find_run(cfg: DictConfig) -> tuple[RunFolder, Path]:
    """Find the folder of the run to resume, and what it goes on from: a training's checkpoint, a pipeline's folder."""
    if cfg.resume == LATEST:
        path = _find_newest(Path(cfg.paths.output_dir) / cfg.stage.name)
    else:
        path = Path(cfg.resume).expanduser().resolve()
    folder = RunFolder(path if path.is_dir() else path.parent.parent)
    start = _find_start(folder) if path.is_dir() else path
    if not start.exists():
        raise CheckpointError(f"resume={cfg.resume}: there is no {start} to go on from")
    return folder, start


def _find_start(folder: RunFolder) -> Path:
    is_pipeline = folder.read_run_json().get("stage") == "pipeline"
    return folder.path if is_pipeline else folder.last_checkpoint


def _find_newest(runs: Path) -> Path:
    """Find the newest run that can go on: of those that were stopped too, which ``.latest`` never names."""
    for path in sorted(runs.glob("*/"), reverse=True):
        if _find_start(RunFolder(path)).exists():
            return path.resolve()
    what = "can go on" if runs.name == "pipeline" else "has a checkpoint to go on from"
    raise CheckpointError(f"resume={LATEST}: no run under {runs} {what}")
