"""The right name that is closest to a wrong one."""

from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from typing import Any

from omegaconf import DictConfig, OmegaConf

LOWEST_LIKENESS = 0.55
LEAF_WEIGHT = 0.75


def list_keys(cfg: Any, prefix: str = "") -> Iterator[str]:
    """List all dotted keys of a configuration, sections included, in their order."""
    if not isinstance(cfg, DictConfig) or cfg._is_none() or cfg._is_missing() or cfg._is_interpolation():  # noqa: SLF001
        return
    for key in map(str, cfg):
        full_key = f"{prefix}{key}"
        yield full_key
        if not (OmegaConf.is_interpolation(cfg, key) or OmegaConf.is_missing(cfg, key)):
            yield from list_keys(cfg[key], f"{full_key}.")


def find_closest(wrong: str, right: Iterable[str]) -> str | None:
    """Find the dotted name that is most like ``wrong``, as a whole or in its last part; None where none is like it."""
    candidates = [name for name in right if not wrong.startswith(f"{name}.")]
    if not wrong.startswith("hydra"):
        candidates = [name for name in candidates if not name.startswith("hydra")]
    # Of equals, the one that lies less deep.
    ranked = [(_compute_likeness(wrong, name), -name.count("."), name) for name in candidates]
    likeness, _, closest = max(ranked, key=lambda rank: rank[:2], default=(0.0, 0, ""))
    return closest if likeness >= LOWEST_LIKENESS else None


def _compute_likeness(wrong: str, name: str) -> float:
    """From 0 (nothing in common) to 1 (equal); the last part counts most, where it lies a little."""
    (wrong_section, _, wrong_leaf), (section, _, leaf) = wrong.rpartition("."), name.rpartition(".")
    likeness = SequenceMatcher(a=wrong_leaf, b=leaf).ratio()
    if not (wrong_section or section):
        return likeness
    return LEAF_WEIGHT * likeness + (1 - LEAF_WEIGHT) * SequenceMatcher(a=wrong_section, b=section).ratio()


def format_suggestion(wrong: str, right: Iterable[str]) -> str:
    """Format the end of an error line: ``; did you mean 'data.root'?``, or nothing."""
    closest = find_closest(wrong, right)
    return f"; did you mean '{closest}'?" if closest else ""
