"""The torch model that a configuration names: a checkpoint, or the model as it came."""

from pathlib import Path

from vpexp.console import say
from vpexp.inference.build import build_model
from vpexp.inference.checkpoint import Checkpoint, load_checkpoint_model, read_checkpoint
from vpexp.models.sam import Sam
from vpexp.stages.context import RunContext


def load_configured_model(context: RunContext, doing: str) -> tuple[Sam, Checkpoint | None]:
    """Load the model on the CPU, in eval mode, and say what it is.

    Args:
        context: the run; its ``checkpoint`` is a .ckpt file or null.
        doing: the first word of what is said: ``testing``.
    """
    cfg = context.cfg
    if cfg.checkpoint is None:
        say(f"{doing} {cfg.model.name} as it came (model.weights={cfg.model.weights})")
        return build_model(cfg.model, seed=cfg.seed, cache_dir=context.cache_dir), None
    checkpoint = read_checkpoint(Path(cfg.checkpoint))
    say(f"{doing} {checkpoint.path}")
    seed = int(checkpoint.cfg.seed)
    return load_checkpoint_model(checkpoint, cfg.model, seed=seed, cache_dir=context.cache_dir), checkpoint
