"""What predicts in a stage: the model that a configuration names, whatever runs it."""

from pathlib import Path

from vpexp.console import say
from vpexp.inference.predictor import Predictor
from vpexp.stages.context import RunContext

EXPORTED_SUFFIXES = (".xml", ".onnx")


def load_stage_predictor(context: RunContext, doing: str) -> Predictor:
    """Load what predicts, and say what it is; torch is imported only for torch's own models.

    Args:
        context: the run; its ``checkpoint`` is a .ckpt file, a file of an exported model, or null.
        doing: the first words of what is said: ``predicting with``.
    """
    cfg = context.cfg
    if cfg.checkpoint is not None and Path(cfg.checkpoint).suffix in EXPORTED_SUFFIXES:
        from vpexp.inference.load import load_predictor

        say(f"{doing} {cfg.checkpoint}")
        return load_predictor(cfg.checkpoint, threads=cfg.trainer.threads)
    from vpexp.inference.torch_predictor import TorchPredictor
    from vpexp.stages.assessment import choose_device
    from vpexp.stages.weights import load_configured_model

    sam, _ = load_configured_model(context, doing)
    return TorchPredictor(sam.to(choose_device(cfg)))
