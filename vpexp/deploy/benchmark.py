"""What quantization cost and gained: sizes and times before and after.

Shapes: N prompts.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from rich.table import Table

from vpexp.console import PlainTable, format_count
from vpexp.deploy.calibration import CalibrationImage
from vpexp.inference.exported import CLASSIFIER, DECODER, ENCODER, PROMPTER, ExportedModel, list_files
from vpexp.inference.predictor import Predictor

REPEATS = 9
WARM_UP = 2  # runs that are not counted


@dataclass(frozen=True, slots=True)
class Cost:
    """What a model costs.

    Attributes:
        encoder_mb: size of the image encoder's files in 10^6 bytes.
        decoder_mb: the same of the decoder.
        encoder_ms: median milliseconds to embed an image.
        decoder_ms: median milliseconds to decode all prompts of it in one call.
        prompter_mb: size of the prompter's files; None where there is none.
        classifier_mb: the same of the classifier, which is not quantized.
    """

    encoder_mb: float
    decoder_mb: float
    encoder_ms: float
    decoder_ms: float
    prompter_mb: float | None = None
    classifier_mb: float | None = None

    @property
    def total_mb(self) -> float:
        """Size of all parts."""
        return self.encoder_mb + self.decoder_mb + (self.prompter_mb or 0) + (self.classifier_mb or 0)


def measure_costs(
    models: tuple[ExportedModel, ExportedModel],
    predictors: tuple[Predictor, Predictor],
    image: CalibrationImage,
) -> tuple[Cost, Cost]:
    """Measure two models in turns, so that what else the machine does falls on both.

    Args:
        models: files of the one and the other.
        predictors: the same, opened.
        image: what is embedded, and whose first call is decoded.
    """
    embeddings = [predictor.embed(image.image_hw3) for predictor in predictors]
    encode = [partial(predictor.embed, image.image_hw3) for predictor in predictors]
    decode = [
        partial(predictor.decode_prompts, embedding, image.calls[0])
        for predictor, embedding in zip(predictors, embeddings, strict=True)
    ]
    encoder_ms, decoder_ms = _time_in_turns(encode), _time_in_turns(decode)
    first, second = (
        _build_cost(model, encoder, decoder)
        for model, encoder, decoder in zip(models, encoder_ms, decoder_ms, strict=True)
    )
    return first, second


def build_gain_table(before: Cost, after: Cost, names: tuple[str, str], prompts: int) -> Table:
    """Build the table of sizes and times, the other model beside the first.

    Args:
        before: of the exported model.
        after: of the quantized one.
        names: what stands above the two columns.
        prompts: how many were decoded in a call.
    """
    table = PlainTable(title="what quantization gained")
    table.add_column("")
    for name in (*names, "ratio"):
        table.add_column(name, justify="right")
    rows = [
        ("image encoder", "encoder_mb", "MB"),
        ("decoder", "decoder_mb", "MB"),
        *([] if before.prompter_mb is None else [("prompter", "prompter_mb", "MB")]),
        ("both" if before.prompter_mb is None else "all", "total_mb", "MB"),
        ("image encoder", "encoder_ms", "ms"),
        (f"decoder, {format_count(prompts, 'prompt')}", "decoder_ms", "ms"),
    ]
    for title, field, unit in rows:
        first, second = getattr(before, field), getattr(after, field)
        table.add_row(title, f"{first:.2f} {unit}", f"{second:.2f} {unit}", f"{second / first:.2f}")
    return table


def _build_cost(model: ExportedModel, encoder_ms: float, decoder_ms: float) -> Cost:
    sizes = {part: sum(one.stat().st_size for one in list_files(file)) / 1e6 for part, file in model.parts.items()}
    return Cost(sizes[ENCODER], sizes[DECODER], encoder_ms, decoder_ms, sizes.get(PROMPTER), sizes.get(CLASSIFIER))


def _time_in_turns(actions: Sequence[Callable[[], object]]) -> list[float]:
    """Give the median milliseconds of each."""
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(WARM_UP + REPEATS):
        for action, own in zip(actions, times, strict=True):
            started = time.perf_counter()
            action()
            own.append(1e3 * (time.perf_counter() - started))
    return [statistics.median(own[WARM_UP:]) for own in times]
