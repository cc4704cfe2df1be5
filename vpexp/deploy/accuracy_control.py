"""Give back as much precision as it takes to keep a model's accuracy, to the part that needs it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vpexp.deploy.quantize import INT8, KEEP, WEIGHTS
from vpexp.inference.exported import DECODER, ENCODER, ExportedModel

SAFER = {INT8: WEIGHTS, WEIGHTS: KEEP}

Build = Callable[[Mapping[str, str]], ExportedModel]
Measure = Callable[[ExportedModel], float]


@dataclass(frozen=True, slots=True)
class Trial:
    """One combination that was measured.

    Attributes:
        methods: what was done to each part: ``int8``, ``weights`` or ``keep``.
        score: what was measured; higher is better.
        drop: how much was lost.
    """

    methods: Mapping[str, str]
    score: float
    drop: float


@dataclass(frozen=True, slots=True)
class ControlledModel:
    """A quantized model, and what its accuracy is.

    Attributes:
        model: its files.
        methods: what was done to each part.
        reference: the score before; None where nothing was measured.
        score: the score now.
        trials: all that was measured on the way, in order.
    """

    model: ExportedModel
    methods: Mapping[str, str]
    reference: float | None = None
    score: float | None = None
    trials: list[Trial] = field(default_factory=list)


def quantize_within(
    source: ExportedModel,
    build: Build,
    measure: Measure,
    *,
    methods: Mapping[str, str],
    max_drop: float,
    report: Callable[[Trial], None],
) -> ControlledModel:
    """Make parts safer until no more than ``max_drop`` is lost.

    While too much is lost, each part is measured with the other one as it was exported, and the one that alone loses
    more goes one step down: from INT8 to weights only, from there to what was exported. With both parts as they were
    exported nothing is lost, so it ends.

    Args:
        source: the model as it was exported.
        build: quantizes both parts by the methods that it is given.
        measure: scores a model; higher is better.
        methods: where to begin.
        max_drop: most that may be lost of the score.
        report: is given each trial when it is done.
    """
    reference = measure(source)
    done: dict[tuple[str, ...], tuple[ExportedModel, Trial]] = {}

    def try_out(chosen: Mapping[str, str]) -> tuple[ExportedModel, Trial]:
        key = tuple(chosen[part] for part in (ENCODER, DECODER))
        if key not in done:
            model = build(chosen)
            score = measure(model)
            done[key] = model, Trial(dict(chosen), score, reference - score)
            report(done[key][1])
        return done[key]

    def measure_drop(part: str) -> float:
        alone = dict.fromkeys(methods, KEEP) | {part: current[part]}
        return try_out(alone)[1].drop

    current = dict(methods)
    model, trial = try_out(current)
    while trial.drop > max_drop:
        movable = [part for part in (ENCODER, DECODER) if current[part] in SAFER]
        if not movable:
            break  # both parts are copies: a score that moves by itself is not ours to mend
        worst = movable[0] if len(movable) == 1 else max(movable, key=measure_drop)
        current[worst] = SAFER[current[worst]]
        model, trial = try_out(current)
    return ControlledModel(model, current, reference, trial.score, [trial for _, trial in done.values()])
