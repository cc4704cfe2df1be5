"""``trainer.blend``: weights between the start of a training and what it learnt, chosen on val.

Source: Wortsman et al. 2022 "Robust fine-tuning of zero-shot models" (WiSE-FT): the mean of both, weighted, keeps most of what was learnt
and loses less of what the start could do.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vpexp.console import PlainTable, console, log_line
from vpexp.files import replacing
from vpexp.inference.torch_model import PREFIX, apply_checkpoint, read_checkpoint
from vpexp.models.sam import Sam
from vpexp.models.tuning import DOWN, UP
from vpexp.stages.shared.context import RunContext
from vpexp.stages.shared.other_prompts import (
    NAMES,
    TRAINED,
    MeasureControls,
    Measures,
    compare_measures,
    get_loss,
)

Blending = Callable[[Path], tuple[Path, float]]
"""Takes the checkpoint of the best epoch; gives the one that competes with the start, and the best epoch's share in it."""

AUTO = "auto"
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Of what was learnt."""
KEPT_GAIN = 0.9
"""Share of the gain on the trained prompts that a mixture keeps at least."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """A mixture that was measured.

    Attributes:
        share: of the weights learnt; the rest is the start's.
        gain: on the trained prompts, against the start.
        loss: mean over the other measures of what each got worse by; what got better counts 0.
        losses: of each.
    """

    share: float
    gain: float
    loss: float
    losses: Mapping[str, float]


def mix_tensors(start: Mapping[str, Tensor], tuned: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Mix weights of the same names: ``(1 - share) start + share tuned``.

    Of a low-rank adapter, which is a product, only one factor is scaled, so that what it adds is. Numbers that are no floats, as counters,
    are those of ``tuned``.
    """
    mixed = {}
    for name, value in tuned.items():
        if name.endswith(UP):
            mixed[name] = share * value
        elif name.endswith(DOWN) or not value.is_floating_point():
            mixed[name] = value
        else:
            mixed[name] = torch.lerp(start[name].to(value), value, share)
    return mixed


def measure_mixture(share: float, before: Measures, after: Measures) -> Mixture:
    """Compare what a mixture reaches with the start."""
    gains = compare_measures(before, after)
    losses = {kind: max(0.0, get_loss(kind, gain)) for kind, gain in gains.items() if kind != TRAINED}
    return Mixture(share, gains[TRAINED].difference, sum(losses.values()) / max(1, len(losses)), losses)


def choose_mixture(mixtures: Sequence[Mixture]) -> Mixture:
    """Choose among mixtures, the last of which is what was learnt, unmixed.

    Of those that keep 90 % of its gain it is the one that loses least elsewhere; of equals, the one that gains most. Where what was learnt
    gained nothing it is the one that gains most.
    """
    tuned = mixtures[-1]
    if tuned.gain <= 0:
        return max(mixtures, key=lambda mixture: mixture.gain)
    able = [mixture for mixture in mixtures if mixture.gain >= KEPT_GAIN * tuned.gain]
    return min(able, key=lambda mixture: (mixture.loss, -mixture.gain))


def build_blending(context: RunContext, sam: Sam, before: Measures, measure_controls: MeasureControls) -> Blending:
    """Build what finds the mixture of a checkpoint with the start that ``trainer.blend`` asks for: its checkpoint, and its share."""
    wanted, folder = context.cfg.trainer.blend, context.folder

    def blend_with_start(best: Path) -> tuple[Path, float]:
        if wanted is None:
            return best, 1.0
        if not (before and folder.start_checkpoint.is_file()):
            log_line(
                "trainer.blend: the start of this run is no longer there: nothing is mixed",
                style="yellow",
            )
            return best, 1.0
        tuned = read_checkpoint(best)

        def measure(state: Mapping[str, Tensor]) -> Measures:
            own = {name.removeprefix(PREFIX): value for name, value in state.items()}
            apply_checkpoint(sam, replace(tuned, state=own))
            return measure_controls("mixture", background=False)

        share, record = blend(
            wanted, folder.start_checkpoint, best, folder.blend_checkpoint, before=before, measure=measure
        )
        folder.update_run_json(blend=record)
        return (best if share == 1.0 else folder.blend_checkpoint), share

    return blend_with_start


def blend(
    wanted: str | float,
    start: Path,
    tuned: Path,
    target: Path,
    *,
    before: Measures,
    measure: Callable[[Mapping[str, Tensor]], Measures],
) -> tuple[float, dict[str, Any]]:
    """Find the mixture, write its checkpoint, and say what it bought.

    Args:
        wanted: ``trainer.blend``: auto, or the share of what was learnt.
        start: checkpoint of the start.
        tuned: checkpoint of the best epoch.
        target: where the mixture's checkpoint goes.
        before: what the start reaches.
        measure: loads the tensors of a checkpoint and measures them.

    Returns:
        The share of what was learnt, 1.0 where nothing is mixed (there is no file then), and a record for ``run.json``.
    """
    first, content = (torch.load(path, map_location="cpu", weights_only=True) for path in (start, tuned))

    def mix(share: float) -> dict[str, Tensor]:
        return mix_tensors(first["state_dict"], content["state_dict"], share)

    mixtures = [
        measure_mixture(share, before, measure(mix(share)))
        for share in (SHARES if wanted == AUTO else (float(wanted), 1.0))
    ]
    chosen = choose_mixture(mixtures) if wanted == AUTO else mixtures[0]
    _print_mixtures(mixtures, chosen)
    if chosen.share == 1.0:
        target.unlink(missing_ok=True)  # a training that was stopped and goes on may have left one
        log_line(
            "trainer.blend: no mixture with the start loses less and keeps 90 % of the gain; what was learnt stays as it is"
        )
    else:
        with replacing(target) as draft:
            torch.save(content | {"state_dict": mix(chosen.share)}, draft)
        log_line(_describe(chosen, mixtures[-1]))
    tried = {
        f"{mixture.share:g}": {"gain": mixture.gain, "loss": mixture.loss, **mixture.losses} for mixture in mixtures
    }
    return chosen.share, {"share": chosen.share, "tried": tried}


def _describe(chosen: Mixture, tuned: Mixture) -> str:
    kept = f" ({chosen.gain / tuned.gain:.0%} of the gain)" if tuned.gain > 0 else ""
    worst = [
        f"{NAMES[kind]} loses {chosen.losses[kind]:.4f} instead of {loss:.4f}"
        for kind, loss in tuned.losses.items()
        if loss > 0
    ]
    return (
        f"trainer.blend: {chosen.share:g} of what was learnt and {1 - chosen.share:g} of the start: {NAMES[TRAINED]} "
        f"{chosen.gain:+.4f} instead of {tuned.gain:+.4f}{kept}; {', '.join(worst) or 'nothing else had lost'}"
    )


def _print_mixtures(mixtures: Sequence[Mixture], chosen: Mixture) -> None:
    title = "mixtures with the start, against the start: F1 on val"
    table = PlainTable(title=title, min_width=len(title))
    for column in ("learnt", "gain as trained", "mean loss elsewhere", ""):
        table.add_column(column, justify="right")
    for mixture in mixtures:
        mark = "chosen" if mixture is chosen else ""
        table.add_row(f"{mixture.share:g}", f"{mixture.gain:+.4f}", f"{mixture.loss:.4f}", mark)
    console.print(table)
