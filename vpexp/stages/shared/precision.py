"""What a training computes in: decided once a run, and said in one line."""

import torch

from vpexp.console import log_line
from vpexp.devices import AUTO, SINGLE, Precision, choose_precision, find_native_bfloat16
from vpexp.stages.shared.context import RunContext

RECORD = "precision"
"""Of ``run.json``: what ``trainer.precision`` came to."""


def decide_precision(context: RunContext, device: torch.device, *, tell: bool = True) -> Precision:
    """Decide what a training computes in.

    Where ``trainer.precision`` leaves it open, a run that goes on, here or on another machine, stays with what it began with.

    Args:
        context: the run.
        device: where it trains.
        tell: whether to write it down and say it: rank 0 does.
    """
    asked, native = str(context.cfg.trainer.precision), find_native_bfloat16(device)
    begun = context.folder.read_run_json().get(RECORD)
    chosen = choose_precision(asked, device, native)
    if asked == AUTO and begun is not None:
        chosen = Precision(str(begun), "as this run began")
    if not tell:
        return chosen
    if begun != chosen.name:
        context.folder.update_run_json(**{RECORD: chosen.name})
    name = {SINGLE: "float32"}.get(chosen.name, chosen.name)
    line, style = f"training on {device} in {name}: {chosen.reason}", None
    if chosen.is_bfloat16 and native is None:
        line += f", which {device} does not compute itself: slower than trainer.precision={SINGLE}"
        style = "yellow"
    log_line(line, style=style)
    return chosen
