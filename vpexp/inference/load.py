"""One way in for everything that can predict."""

from os import PathLike
from pathlib import Path

import torch

from vpexp.environment import find_cache_dir
from vpexp.inference.checkpoint import find_checkpoint, load_checkpoint_model, read_checkpoint
from vpexp.inference.torch_predictor import TorchPredictor
from vpexp.models.load import load_model
from vpexp.models.registry import list_models
from vpexp.models.sam import Sam


def load_predictor(
    source: "str | PathLike[str] | Sam", *, device: str = "cpu", output_dir: str | PathLike[str] = "outputs"
) -> TorchPredictor:
    """Load a predictor.

    Args:
        source: a ``.ckpt`` file, a run folder, ``latest`` (what was trained last under ``output_dir``), a model's name
            (its own weights), or a ``Sam`` module.
        device: where a torch model runs.
        output_dir: where runs lie.

    Raises:
        CheckpointError, WeightsError: see ``find_checkpoint`` and ``load_model``.
    """
    if isinstance(source, Sam):
        sam = source.eval()
    elif str(source) in list_models():
        sam = load_model(str(source))
    else:
        path = find_checkpoint(str(source), Path(output_dir))
        checkpoint = read_checkpoint(path)
        sam = load_checkpoint_model(
            checkpoint, checkpoint.cfg.model, seed=int(checkpoint.cfg.seed), cache_dir=find_cache_dir()
        )
    return TorchPredictor(sam.to(torch.device(device)))
