"""Building a model with its weights, by name."""

import os

import torch

from vpexp.models.registry import get_model_info
from vpexp.models.sam import Sam
from vpexp.models.weights import load_weights, resolve_weights


def load_model(
    name: str,
    weights: str | os.PathLike[str] = "auto",
    image_size: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Sam:
    """Build a model by its name and load its weights; in eval mode, on the CPU, float32.

    ``weights`` is ``auto`` (the official or packaged file), ``random`` (drawn from torch's current seed; each
    module says from what distribution) or a path. A model without a file, sam_debug, always draws the same random
    weights with ``auto``. ``image_size`` is the side of the square model input, a multiple of 16.

    Raises:
        ConfigError: The name is unknown or the image size does not fit.
        WeightsError: The weights are missing, damaged, or of another model.
    """
    info = get_model_info(name)
    size = info.image_size if image_size is None else image_size
    path = resolve_weights(name, weights, cache_dir)
    if path is None and weights == "auto":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return info.build(size)
    sam = info.build(size)
    if path is not None:
        load_weights(sam, path)
    return sam
