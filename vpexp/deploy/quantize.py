"""INT8 by NNCF: an exported OpenVINO model in, one that is smaller and faster out, as exact as it has to be.

Weights are always stored with eight bits. With the method ``int8`` what flows through the network is rounded too, in
ranges that calibration found, so that the processor computes in whole numbers; with ``weights`` it stays as it was. Where too
much accuracy is lost, the part that loses more gets precision back, a step at a time.
"""

import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from vpexp.config.schema import PtqConfig
from vpexp.console import build_progress
from vpexp.deploy.calibration import CalibrationSet, PartInputs
from vpexp.deploy.ignored_scope import find_precise_nodes
from vpexp.deploy.openvino_format import name_ports, save_graph
from vpexp.inference.exported import (
    CLASSIFIER,
    DECODER,
    ENCODER,
    MODEL_TYPES,
    OPTIMIZED_NAME,
    PROMPTER,
    ExportedModel,
    list_files,
)
from vpexp.inference.graph_predictor import Arrays, lend_core

INT8, WEIGHTS, KEEP = "int8", "weights", "keep"
"""What is done to a part: weights and activations, weights only, nothing; from the fastest to the most exact."""

PRECISIONS = {INT8: "INT8", WEIGHTS: "INT8-weights"}
"""What ``model_info`` calls it."""

LARGE_TABLE = 4096  # bytes
COUNTED_NAME = re.compile(r"[A-Za-z]+_\d+")
SAFER = {INT8: WEIGHTS, WEIGHTS: KEEP}
Build = Callable[[Mapping[str, str]], ExportedModel]
Measure = Callable[[ExportedModel], float]


def quantize_model(
    source: ExportedModel,
    folder: Path,
    calibration: CalibrationSet,
    recipe: PtqConfig,
    methods: Mapping[str, str],
) -> ExportedModel:
    """Quantize encoder and decoder of an exported model; the same inputs give the same files, byte for byte.

    The decoder is calibrated on the embeddings of the encoder as it was quantized, which is what it will be given.

    Args:
        source: OpenVINO IR.
        folder: where ``optimized_model_*`` go.
        calibration: what both parts are calibrated on.
        recipe: how.
        methods: ``int8``, ``weights`` or ``keep`` (copied as it is) for ``image_encoder`` and ``decoder``.
    """
    target = ExportedModel.plan(folder / f"{OPTIMIZED_NAME}_", ".xml", (ENCODER, DECODER))
    folder.mkdir(parents=True, exist_ok=True)
    with _quiet_nncf(), lend_core() as core, build_progress() as progress:
        inputs: Sequence[PartInputs] = _Inputs(calibration)
        shared: dict[str, Any] = {"recipe": recipe, "progress": progress}
        quantize_part(core, source.encoder, target.encoder, inputs=inputs, method=methods[ENCODER], **shared)
        if methods[DECODER] == INT8:
            inputs = calibration.build_decoder_inputs(_embed(core, target.encoder, calibration, progress))
        quantize_part(core, source.decoder, target.decoder, inputs=inputs, method=methods[DECODER], **shared)
    return target


def add_prompter(
    source: ExportedModel, made: ExportedModel, calibration: CalibrationSet, recipe: PtqConfig, method: str
) -> ExportedModel:
    """Quantize the prompter of an exported model, and copy its classifier, if it has them.

    The prompter is calibrated on the embeddings of the encoder as it was quantized.

    Args:
        source: OpenVINO IR.
        made: what ``quantize_model`` made of it; the other parts are put beside it.
        calibration: as for ``quantize_model``.
        recipe: how.
        method: ``int8``, ``weights`` or ``keep``.
    """
    if source.prompter is None:
        return made
    target = ExportedModel.plan(made.folder / f"{OPTIMIZED_NAME}_", ".xml", source.parts)
    with _quiet_nncf(), lend_core() as core, build_progress() as progress:
        embeddings = _embed(core, made.encoder, calibration, progress) if method == INT8 else []
        inputs = _PrompterInputs(calibration, embeddings)
        shared: dict[str, Any] = {"recipe": recipe, "progress": progress}
        quantize_part(core, source.prompter, target.parts[PROMPTER], inputs=inputs, method=method, **shared)
    if source.classifier is not None:
        _copy_part(source.classifier, target.parts[CLASSIFIER])
    return target


def _copy_part(source: Path, target: Path) -> None:
    for file, copy in zip(list_files(source), list_files(target), strict=True):
        shutil.copyfile(file, copy)


def quantize_part(
    core: Any,
    source: Path,
    target: Path,
    *,
    inputs: Sequence[PartInputs],
    recipe: PtqConfig,
    method: str,
    progress: Progress,
) -> None:
    """Quantize one part, keeping its ports and its metadata.

    Args:
        core: an ``openvino.Core``.
        source: the ``.xml`` that is read.
        target: the ``.xml`` that is written.
        inputs: what the part is calibrated on; only ``int8`` looks at them.
        recipe: how.
        method: ``int8``, ``weights`` or ``keep``.
        progress: where a bar is shown.
    """
    if method == KEEP:
        _copy_part(source, target)
        return
    import nncf

    part = next(part for part in MODEL_TYPES if source.stem.endswith(part))
    graph = core.read_model(source)
    model_info = {key: str(value.value) for key, value in graph.get_rt_info()["model_info"].items()}
    ports = [tuple(port.get_any_name() for port in side) for side in (graph.inputs, graph.outputs)]
    ignored = nncf.IgnoredScope(names=find_precise_nodes(graph), validate=False)
    if method == WEIGHTS:
        quantized = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM, ignored_scope=ignored)
    else:
        tracked = _Tracked(inputs, progress, f"quantizing the {part.replace('_', ' ')}")
        quantized = nncf.quantize(
            graph, nncf.Dataset(tracked), subset_size=len(tracked), ignored_scope=ignored, **_build_arguments(recipe)
        )
    _halve_large_tables(quantized)
    _number_nodes(quantized)
    name_ports(quantized, *ports)
    save_graph(quantized, target, model_info | {"precision": PRECISIONS[method]})


def _build_arguments(recipe: PtqConfig) -> dict[str, Any]:
    """Translate a recipe into arguments of ``nncf.quantize``."""
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        OverflowFix,
    )
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    overflow_fixes = {
        "enable": OverflowFix.ENABLE,
        "first_layer": OverflowFix.FIRST_LAYER,
        "disable": OverflowFix.DISABLE,
    }
    ranges = {"minmax": RangeEstimatorParametersSet.MINMAX, "mean": RangeEstimatorParametersSet.MEAN_MINMAX}
    advanced = AdvancedQuantizationParameters(
        overflow_fix=overflow_fixes[recipe.overflow_fix],
        disable_bias_correction=recipe.bias_correction == "none",
        activations_range_estimator_params=ranges[recipe.activation_range],
    )
    if not recipe.smooth_quant:
        advanced.smooth_quant_alphas = AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
    return {
        "preset": nncf.QuantizationPreset(recipe.preset),
        "model_type": nncf.ModelType.TRANSFORMER if recipe.model_type else None,
        "fast_bias_correction": recipe.bias_correction != "full",
        "advanced_parameters": advanced,
    }


def _embed(core: Any, encoder: Path, calibration: CalibrationSet, progress: Progress) -> list[Arrays]:
    """Compute the maps of all calibration images, by name, the embedding [1, 256, S/16, S/16] first."""
    graph = core.read_model(encoder)
    graph.reshape([1, 3, calibration.image_size, calibration.image_size])
    compiled = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    tracked = _Tracked(_Inputs(calibration), progress, "encoding images for the decoder")
    names = [port.get_any_name() for port in graph.outputs]
    return [{name: results[name].copy() for name in names} for results in map(compiled, tracked)]


def _halve_large_tables(graph: Any) -> None:
    """Store the biases of attention, which quantization leaves alone, as float16: they are half of a small encoder.

    They are added to the attention's scores, where the rounding of float16 is far below that of INT8.
    """
    from openvino import opset13 as ops

    for node in graph.get_ordered_ops():
        if node.get_type_name() != "ScaledDotProductAttention":
            continue
        for port in node.inputs():
            source = port.get_source_output().get_node()
            is_table = source.get_type_name() == "Constant" and source.get_element_type().get_type_name() == "f32"
            if is_table and source.data.nbytes >= LARGE_TABLE:
                halved = ops.constant(source.data.astype(np.float16))
                halved.set_friendly_name(f"{source.get_friendly_name()}/halved")
                port.replace_source_output(ops.convert(halved, "f32").output(0))


def _number_nodes(graph: Any) -> None:
    """Name the nodes that OpenVINO named by a counter of the whole process by their place: same model, same file."""
    for place, node in enumerate(graph.get_ordered_ops()):
        if COUNTED_NAME.fullmatch(node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{place}")


class _Inputs(Sequence[PartInputs]):
    """The encoder's inputs, made when they are asked for: together they would fill the memory."""

    def __init__(self, calibration: CalibrationSet) -> None:
        self.calibration = calibration

    def __len__(self) -> int:
        return len(self.calibration)

    def __getitem__(self, index: Any) -> Any:
        return self.calibration.build_encoder_inputs(index)


class _PrompterInputs(Sequence[PartInputs]):
    """The prompter's inputs, made when they are asked for, as the encoder's."""

    def __init__(self, calibration: CalibrationSet, embeddings: Sequence[Arrays]) -> None:
        self.calibration, self.embeddings = calibration, embeddings

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, index: Any) -> Any:
        name, embedding_1CEE = next(iter(self.embeddings[index].items()))
        return self.calibration.build_encoder_inputs(index) | {name: embedding_1CEE}


class _Tracked:
    """Inputs that move a progress bar when they are looked at; NNCF goes through them several times."""

    def __init__(self, inputs: Sequence[PartInputs], progress: Progress, description: str) -> None:
        self.inputs = inputs
        self.progress = progress
        self.description = description
        self.passes = 0

    def __len__(self) -> int:
        return len(self.inputs)

    def __iter__(self) -> Iterator[PartInputs]:
        self.passes += 1
        again = f", pass {self.passes}" if self.passes > 1 else ""
        task = self.progress.add_task(f"{self.description}{again}", total=len(self.inputs))
        try:
            for inputs in self.inputs:
                yield inputs
                self.progress.advance(task)
        finally:
            self.progress.remove_task(task)


@contextmanager
def _quiet_nncf() -> Iterator[None]:
    """Keep NNCF's notes and bars from the terminal: it prints on rich's own console, which is not ours."""
    import nncf
    import rich

    logging.getLogger(nncf.__name__).setLevel(logging.ERROR)
    console = rich.get_console()
    quiet, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = quiet


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
