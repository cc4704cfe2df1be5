"""vpexp: fine-tune, test and compare Segment Anything models on your own images.

Names are imported when they are first used, so that ``import vpexp`` and the command line answer at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vpexp.engine import Engine
    from vpexp.inference.load import load_model, load_predictor
    from vpexp.models.registry import list_models

_HOMES = {
    "Engine": "vpexp.engine",
    "list_models": "vpexp.models.registry",
    "load_model": "vpexp.inference.load",
    "load_predictor": "vpexp.inference.load",
}

__all__ = ["Engine", "list_models", "load_model", "load_predictor"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vpexp' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
