"""Build the model that a configuration describes."""

from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_method
from omegaconf import DictConfig

from vpexp.errors import ConfigError
from vpexp.models.registry import list_models
from vpexp.models.sam import Sam
from vpexp.models.weights import load_weights, resolve_weights


def build_model(model_cfg: DictConfig, *, seed: int, cache_dir: Path) -> Sam:
    """Build a model and load its weights; in eval mode, on the CPU, float32.

    Args:
        model_cfg: the configuration's section ``model``. ``_target_`` may be a function of the user's own that takes
            ``image_size`` and returns a ``Sam``.
        seed: fixes random weights.
        cache_dir: where downloaded weights lie.

    Raises:
        ConfigError: ``_target_`` cannot be imported, or does not build a ``Sam``.
        WeightsError: the weights are missing, damaged, or of another model.
    """
    try:
        build = get_method(model_cfg["_target_"])
    except Exception as error:
        raise ConfigError(f"model._target_={model_cfg['_target_']} cannot be imported: {_first_line(error)}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sam: Any = build(image_size=int(model_cfg.image_size))
    if not isinstance(sam, Sam):
        raise ConfigError(f"model._target_={model_cfg['_target_']} returned a {type(sam).__name__}, not a Sam")
    weights = str(model_cfg.weights)
    if model_cfg.name in list_models():
        path = resolve_weights(model_cfg.name, weights, cache_dir / "weights")
    elif weights == "auto":
        raise ConfigError(f"model.weights=auto: vpexp knows no file for model {model_cfg.name}; give a path or random")
    else:
        path = None if weights == "random" else Path(weights)
    if path is not None:
        load_weights(sam, path)
    return sam.eval()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
