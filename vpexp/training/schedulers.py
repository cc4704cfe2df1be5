"""Learning-rate schedules, counted in optimizer steps; each is a configuration's ``_target_``."""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def _with_warmup(factor: Callable[[float], float], total_steps: int, warmup_steps: int) -> Callable[[int], float]:
    def compute_factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return factor(min(1.0, progress))

    return compute_factor


def build_constant(
    optimizer: Optimizer, *, total_steps: int, warmup_steps: int = 0, final_factor: float = 1.0
) -> LambdaLR:
    """Build a constant rate, after a linear warm-up if asked (``final_factor`` is not used)."""
    del final_factor
    return LambdaLR(optimizer, _with_warmup(lambda _: 1.0, total_steps, warmup_steps))


def build_linear(
    optimizer: Optimizer, *, total_steps: int, warmup_steps: int = 0, final_factor: float = 0.0
) -> LambdaLR:
    """Build a linear decay from the full rate to ``final_factor`` of it at ``total_steps``."""
    return LambdaLR(
        optimizer, _with_warmup(lambda progress: 1 - (1 - final_factor) * progress, total_steps, warmup_steps)
    )


def build_cosine(
    optimizer: Optimizer, *, total_steps: int, warmup_steps: int = 0, final_factor: float = 0.0
) -> LambdaLR:
    """Build a half-cosine decay to ``final_factor`` of the full rate (Loshchilov & Hutter 2017, without restarts)."""

    def factor(progress: float) -> float:
        return final_factor + (1 - final_factor) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, _with_warmup(factor, total_steps, warmup_steps))
