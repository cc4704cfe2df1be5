"""Complete a configuration: take what the user left open from the run that made a checkpoint, or that goes on."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from vpexp.config import inherit, load_config, validate
from vpexp.errors import CheckpointError
from vpexp.inference.exported import ExportedModel, find_exported, is_exported_reference, read_metadata
from vpexp.runfolder import LATEST, RunFolder, find_latest

TAKE_EXPORTED = ("test", "ptq", "predict", "demo")  # stages whose checkpoint may be an exported model
INHERIT = (
    "test",
    "export",
    "predict",
    "demo",
)  # stages that take model, data and prompt from the run that made a .ckpt


def complete(cfg: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, RunFolder | None]:
    """Return the configuration that runs, and the folder of a run that goes on.

    Args:
        cfg: as composed; it is left as it is.
        overrides: what the user asked for.

    Raises:
        CheckpointError: the checkpoint, or the run to resume, is not there.
        ConfigError: what came from there does not fit.
    """
    cfg = cfg.copy()
    for name in ("output_dir", "cache_dir"):
        cfg.paths[name] = str(Path(cfg.paths[name]).expanduser())
    if cfg.resume:
        return _complete_resumed(cfg, overrides)
    if cfg.checkpoint is not None:
        cfg = _complete_checkpoint(cfg, overrides)
    validate(cfg)
    return cfg, None


def _complete_checkpoint(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Name the checkpoint by its file (what "latest" means is another one after this run), and inherit from its run."""
    stage = cfg.stage.name
    path = _find_latest_export(cfg) if (stage, cfg.checkpoint) == ("ptq", LATEST) else Path(cfg.checkpoint).expanduser()
    if is_exported_reference(path):
        if stage not in TAKE_EXPORTED:
            raise CheckpointError(
                f"checkpoint={path} is an exported model: stage={stage} takes a .ckpt or a run of training"
            )
        return _inherit_exported(cfg, find_exported(path), overrides)
    from vpexp.inference.checkpoint import find_checkpoint, read_checkpoint

    file = find_checkpoint(cfg.checkpoint, Path(cfg.paths.output_dir))
    if stage == "ptq":
        raise CheckpointError(f"checkpoint={file} is not exported yet: stage=export makes what stage=ptq takes")
    if stage in INHERIT:
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
    cfg.model.name, cfg.model.image_size = metadata.model_name, metadata.image_size
    cfg.checkpoint = str(model.decoder)
    return cfg


def _complete_resumed(cfg: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, RunFolder]:
    """Take the whole configuration from the run that goes on; only dotted keys given now are laid over it."""
    folder, start = _find_run(cfg)
    if start.is_file():
        from vpexp.inference.checkpoint import read_checkpoint

        read_checkpoint(start)  # a damaged file is said before anything is built
    saved = load_config(folder.config)
    keys = [override.lstrip("+~").partition("=")[0] for override in overrides]
    with open_dict(saved):
        for key in keys:
            if "." in key or key == "seed":
                OmegaConf.update(saved, key, OmegaConf.select(cfg, key))
        saved.paths = cfg.paths
    validate(saved)
    saved.resume = str(start)
    return saved, folder


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
