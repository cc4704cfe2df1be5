"""What predicts in a stage: the model that a configuration names, whatever runs it."""

from pathlib import Path
from typing import TYPE_CHECKING

from vpexp.console import say
from vpexp.inference.predictor import Predictor
from vpexp.stages.shared.context import RunContext

if TYPE_CHECKING:
    from vpexp.inference.torch_model import Checkpoint
    from vpexp.models.sam import Sam

EXPORTED_SUFFIXES = (".xml", ".onnx")


def load_configured_model(context: RunContext, doing: str) -> "tuple[Sam, Checkpoint | None]":
    """Load the model on the CPU, in eval mode, and say what it is.

    Args:
        context: the run; its ``checkpoint`` is a .ckpt file or null.
        doing: the first word of the line printed: ``testing``.
    """
    from vpexp.inference.torch_model import build_model, load_checkpoint_model, read_checkpoint

    cfg = context.cfg
    if cfg.checkpoint is None:
        say(f"{doing} {cfg.model.name} as it came (model.weights={cfg.model.weights})")
        return build_model(cfg.model, seed=cfg.seed, cache_dir=context.cache_dir), None
    checkpoint = read_checkpoint(Path(cfg.checkpoint))
    say(f"{doing} {checkpoint.path}")
    seed = int(checkpoint.cfg.seed)
    return load_checkpoint_model(checkpoint, cfg.model, seed=seed, cache_dir=context.cache_dir), checkpoint


def load_stage_predictor(context: RunContext, doing: str) -> Predictor:
    """Load what predicts, and say what it is; torch is imported only for torch's own models.

    Args:
        context: the run; its ``checkpoint`` is a .ckpt file, a file of an exported model, or null.
        doing: the first words of the line printed: ``predicting with``.
    """
    cfg = context.cfg
    if cfg.checkpoint is not None and Path(cfg.checkpoint).suffix in EXPORTED_SUFFIXES:
        from vpexp.inference.load import load_predictor

        say(f"{doing} {cfg.checkpoint}")
        return load_predictor(cfg.checkpoint, threads=cfg.trainer.threads)
    from vpexp.inference.torch_predictor import TorchPredictor
    from vpexp.stages.shared.evaluate import choose_device

    sam, _ = load_configured_model(context, doing)
    return TorchPredictor(sam.to(choose_device(cfg)))
