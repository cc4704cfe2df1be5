"""Complete a configuration: take what the user left open from the run that made a checkpoint, or that goes on."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from vpexp.config import inherit, load_config, validate
from vpexp.errors import CheckpointError
from vpexp.runfolder import LATEST, RunFolder


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
        from vpexp.inference.checkpoint import find_checkpoint, read_checkpoint

        # The file itself: what "latest" means is another one after this run.
        path = find_checkpoint(cfg.checkpoint, Path(cfg.paths.output_dir))
        if cfg.stage.name == "test":
            cfg = inherit(cfg, read_checkpoint(path).cfg, overrides)
        cfg.checkpoint = str(path)
    validate(cfg)
    return cfg, None


def _complete_resumed(cfg: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, RunFolder]:
    """Take the whole configuration from the run that goes on; only dotted keys given now are laid over it."""
    from vpexp.inference.checkpoint import read_checkpoint

    folder, checkpoint = _find_run(cfg)
    read_checkpoint(checkpoint)  # a damaged file is said before anything is built
    saved = load_config(folder.config)
    keys = [override.lstrip("+~").partition("=")[0] for override in overrides]
    with open_dict(saved):
        for key in keys:
            if "." in key or key == "seed":
                OmegaConf.update(saved, key, OmegaConf.select(cfg, key))
        saved.paths = cfg.paths
    validate(saved)
    saved.resume = str(checkpoint)
    return saved, folder


def _find_run(cfg: DictConfig) -> tuple[RunFolder, Path]:
    """Find the folder of the run to resume, and its checkpoint."""
    if cfg.resume == LATEST:
        path = _find_newest(Path(cfg.paths.output_dir) / "train")
    else:
        path = Path(cfg.resume).expanduser().resolve()
    folder = RunFolder(path if path.is_dir() else path.parent.parent)
    checkpoint = folder.last_checkpoint if path.is_dir() else path
    if not checkpoint.is_file():
        raise CheckpointError(f"resume={cfg.resume}: there is no {checkpoint} to go on from")
    return folder, checkpoint


def _find_newest(trainings: Path) -> Path:
    """Find the newest training that left a checkpoint: of those that were stopped too, which ``.latest`` never names."""
    for path in sorted(trainings.glob("*/"), reverse=True):
        if RunFolder(path).last_checkpoint.is_file():
            return path.resolve()
    raise CheckpointError(f"resume={LATEST}: no run under {trainings} has a checkpoint to go on from")
