"""What predicts in a stage: the model that a configuration names, whatever runs it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from vpexp.console import log_line
from vpexp.inference.exported import FORMATS, find_exported
from vpexp.inference.load import load_predictor
from vpexp.inference.predictor import Predictor
from vpexp.stages.shared.context import find_weights_dir

if TYPE_CHECKING:
    from vpexp.inference.torch_instances import InstanceParts

FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class StageModel:
    """The model of a stage.

    Attributes:
        predictor: runs it; a ``TorchPredictor`` unless it was exported.
        size_mb: size in 10^6 bytes, of a torch model that of its float32 weights.
        categories: class names of the checkpoint that it was read from; none where it was no checkpoint.
        instances: what a checkpoint holds to find and name objects; the predictor runs it.
    """

    predictor: Predictor
    size_mb: float
    categories: tuple[str, ...] = ()
    instances: "InstanceParts | None" = None


def load_stage_model(cfg: DictConfig, doing: str | None = None) -> StageModel:
    """Load the model of a stage; torch is imported only for torch's own models.

    Args:
        cfg: the complete configuration; its ``checkpoint`` is a .ckpt file, a file of an exported model, or null.
        doing: the first words of a line that is printed with what the model is: ``predicting with``; None: no line.
    """
    if cfg.checkpoint is not None and Path(cfg.checkpoint).suffix in FORMATS:
        model = find_exported(Path(cfg.checkpoint))
        _announce(doing, str(cfg.checkpoint))
        if cfg.trainer.accelerator not in ("auto", "cpu"):
            log_line(
                f"trainer.accelerator={cfg.trainer.accelerator}: an exported model runs on the CPU", style="yellow"
            )
        predictor = load_predictor(model, threads=cfg.trainer.threads, multimask=cfg.prompt.multimask)
        return StageModel(predictor, model.size_mb)
    from vpexp.devices import choose_device
    from vpexp.inference.torch_model import load_checkpoint_model, load_sam, read_checkpoint
    from vpexp.inference.torch_predictor import TorchPredictor

    settings: Any = OmegaConf.to_object(cfg.model)
    weights_dir = find_weights_dir(cfg)
    checkpoint = read_checkpoint(Path(cfg.checkpoint)) if cfg.checkpoint is not None else None
    if checkpoint is None:
        _announce(doing, f"{settings.name}, not fine-tuned (model.weights={settings.weights})")
        sam = load_sam(settings, seed=cfg.seed, weights_dir=weights_dir)
    else:
        _announce(doing, str(checkpoint.path))
        sam = load_checkpoint_model(checkpoint, settings, weights_dir=weights_dir)
    size_mb = FLOAT_BYTES * sum(parameter.numel() for parameter in sam.parameters()) / 1e6
    predictor = TorchPredictor(sam.to(choose_device(cfg.trainer)), cfg.prompt.multimask)
    if checkpoint is None:
        return StageModel(predictor, size_mb)
    if checkpoint.instances is not None:
        predictor.instances = checkpoint.instances.build_model(predictor.device)
    return StageModel(predictor, size_mb, checkpoint.categories, checkpoint.instances)


def _announce(doing: str | None, what: str) -> None:
    if doing is not None:
        log_line(f"{doing} {what}")
