"""The most memory that a process of training steps ever holds, its children not counted (there are none).

Resident set size at its peak, libraries and weights included, after ``STEPS`` steps on 2 images with 12 objects each; and
of ours on one image with 500 objects, where the plain implementation would need tens of gigabytes.
"""

from dataclasses import replace
from pathlib import Path

from scripts.benchmarks.duel import Comparison, compare, open_side
from scripts.benchmarks.settings import Settings

STEPS = 2
GB = 1e9


def measure(settings: Settings, crowd: Path) -> dict[str, Comparison]:
    """Measure both sides, each in a fresh process.

    Args:
        settings: for both sides.
        crowd: a data set whose first training image has very many objects.
    """
    crowded = replace(settings, data=crowd, batch_size=1)
    for some in (settings, crowded):
        with open_side("train_step", "ours", some):  # fills the cache: what follows is a step after the fill
            pass
    checked = f"{STEPS} steps of train_step"
    ours, plain = (_measure(side, settings, STEPS) for side in ("ours", "plain"))
    return {
        "memory": compare(ours, plain, unit="GB", checked=checked),
        "memory_500_objects": compare(_measure("ours", crowded, 1), None, unit="GB", checked="1 step"),
    }


def measure_tuned(settings: Settings) -> Comparison:
    """Measure steps in which the last two blocks of the encoder learn, from what is kept and from pixels."""
    ours, plain = (_measure(side, settings, STEPS, work="tune_step") for side in ("last_2", "plain_last_2"))
    return compare(ours, plain, unit="GB", checked=f"{STEPS} steps of tune_step, after the fill")


def _measure(name: str, settings: Settings, steps: int, work: str = "train_step") -> float:
    with open_side(work, name, settings) as side:
        for _ in range(steps):
            side.turn()
        return side.peak() / GB
