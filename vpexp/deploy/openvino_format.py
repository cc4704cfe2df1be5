"""The parts of a model as OpenVINO IR, straight from torch; the encoder also without files, to fill the embedding cache."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vpexp.data.interface import Interface
from vpexp.deploy.graph import (
    ExportableClassifier,
    ExportableDecoder,
    ExportableEncoder,
    ExportablePrompter,
    ExportInfo,
    build_model_info,
)
from vpexp.deploy.preprocessing import accept_any_size
from vpexp.inference.exported import CLASSIFIER, DECODER, ENCODER, EXPORTED_NAME, PROMPTER, ExportedModel
from vpexp.inference.graph_predictor import get_core, list_ports
from vpexp.models.sam import Sam
from vpexp.runtime import find_thread_limit

MODEL_API_MASK_SIZE = 256  # the side of the empty mask that Model API sends, whatever the model's own


def write_openvino(sam: Sam, folder: Path, info: ExportInfo, *, precisions: dict[str, str]) -> ExportedModel:
    """Write a model as IRs, one a part.

    Args:
        sam: in eval mode, float32, on the CPU.
        folder: where the files go.
        info: what goes into the metadata; its ``instances`` are written too.
        precisions: FP32 or FP16 of each part: how weights are stored; FP16 is computed in float32 too.
    """
    graphs = {ENCODER: build_encoder(sam), DECODER: _build_decoder(sam, info.multimask)}
    if (instances := info.instances) is not None:
        graphs[PROMPTER] = _build_part(PROMPTER, ExportablePrompter(instances.prompter, sam), sam.interface)
        if instances.classifier is not None:
            classifier = ExportableClassifier(instances.classifier)
            graphs[CLASSIFIER] = _build_part(CLASSIFIER, classifier, sam.interface)
    model = ExportedModel.plan(folder / f"{EXPORTED_NAME}_", ".xml", graphs)
    for part, file in model.parts.items():
        model_info = build_model_info(info, part, precisions[part], sam.interface)
        save_graph(graphs[part], file, model_info, halve=precisions[part] == "FP16")
    return model


def save_graph(graph: Any, file: Path, model_info: dict[str, str], *, halve: bool = False) -> None:
    """Write an ``openvino.Model`` with its metadata; ``halve`` stores weights as float16."""
    import openvino

    for key, value in model_info.items():
        graph.set_rt_info(value, ["model_info", key])
    openvino.save_model(graph, str(file), compress_to_fp16=halve)


def name_ports(graph: Any, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    """Give every port exactly one tensor name: clients hand arrays on by name, and take the first."""
    for ports, names in ((graph.inputs, inputs), (graph.outputs, outputs)):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
            port.get_node().set_friendly_name(name)


def convert_encoder(sam: Sam) -> Any:
    """Convert the whole encoder to an ``openvino.Model`` of one input, images of the model's own size; its outputs are the maps."""
    return convert_module(ExportableEncoder(sam), [[1, 3, sam.image_size, sam.image_size]])


def build_encoder(sam: Sam) -> Any:
    """Convert the encoder to an ``openvino.Model`` of one input, images of any size; its outputs are the maps."""
    graph = accept_any_size(convert_encoder(sam), sam.image_size, sam.interface.resize)
    name_ports(graph, *list_ports(sam.interface)[ENCODER])
    graph.validate_nodes_and_infer_types()
    return graph


def _build_decoder(sam: Sam, multimask: str) -> Any:
    low, ports = sam.image_size // 4, list_ports(sam.interface)[DECODER]
    decoder = ExportableDecoder(sam, multimask)
    graph = convert_module(decoder, decoder.list_shapes())
    if low != MODEL_API_MASK_SIZE:
        graph = _accept_any_mask(graph, low, ports[0].index("mask_input"))
    name_ports(graph, *ports)
    graph.validate_nodes_and_infer_types()
    return graph


def _build_part(part: str, module: ExportablePrompter | ExportableClassifier, interface: Interface) -> Any:
    """Convert what finds boxes, of one image, or what names masks, of any number."""
    shapes = [list(tensor.shape) for tensor in module.build_example()]
    if part == CLASSIFIER:
        shapes = [[-1, *shape[1:]] for shape in shapes]
    graph = convert_module(module, shapes)
    _spell_out_group_norms(graph)
    name_ports(graph, *list_ports(interface)[part])
    graph.validate_nodes_and_infer_types()
    return graph


def _spell_out_group_norms(graph: Any) -> None:
    """Replace GroupNormalization: OpenVINO 2026.4 crashes when it compiles one whose output a residual is added to."""
    from openvino import opset13 as ops

    for node in graph.get_ordered_ops():
        if node.get_type_name() != "GroupNormalization":
            continue
        data, scale, shift = (port.get_source_output() for port in node.inputs())
        shape, settings = list(node.get_output_shape(0)), node.get_attributes()
        groups = ops.constant([shape[0], settings["num_groups"], -1], np.int64)
        grouped = ops.reshape(data, groups, special_zero=False)
        axes = ops.constant([2], np.int64)
        normalized = ops.mvn(grouped, axes, True, settings["epsilon"], "inside_sqrt")
        whole = ops.reshape(normalized, ops.constant(shape, np.int64), special_zero=False)
        one_a_channel = ops.constant([1, -1, 1, 1], np.int64)
        scale, shift = (ops.reshape(value, one_a_channel, special_zero=False) for value in (scale, shift))
        moved = ops.add(ops.multiply(whole, scale), shift)
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(moved.output(0))


def convert_module(module: nn.Module, shapes: list[list[int]]) -> Any:
    """Convert a module that has ``build_example()`` to an ``openvino.Model``; -1 in the shapes of its inputs is any length."""
    import openvino

    example = module.build_example()  # type: ignore[operator]
    with torch.no_grad(), warnings.catch_warnings(), _keep_root_logger():
        warnings.simplefilter("ignore")  # tracing warns of each Python number, all of them constants of the model
        traced = torch.jit.trace(module.eval(), example, check_trace=False)  # type: ignore[no-untyped-call]
        graph = openvino.convert_model(traced, example_input=example, input=shapes)
    for node in graph.get_ops():
        if node.get_type_name() == "Interpolate":
            # The converter's mode takes the first pixel instead of the middle where one row or column remains.
            node.set_attribute("coordinate_transformation_mode", "half_pixel")
    return graph


@contextmanager
def _keep_root_logger() -> Iterator[None]:
    """Put the root logger back: OpenVINO's converter turns it down to errors, and leaves it so where it fails."""
    root = logging.getLogger()
    level, filters = root.level, root.filters.copy()
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters = filters


def _accept_any_mask(graph: Any, low: int, place: int) -> Any:
    """Let ``mask_input``, the input of that place, have any size; one of the model's own size passes unchanged."""
    import openvino
    from openvino import opset13 as ops

    parameters = graph.get_parameters()
    masks = ops.parameter([-1, 1, -1, -1], np.float32, name="mask_input")
    resized = ops.interpolate(
        masks,
        ops.constant([low, low], np.int64),
        mode="linear_onnx",
        shape_calculation_mode="sizes",
        axes=ops.constant([2, 3], np.int64),
    )
    for target in parameters[place].output(0).get_target_inputs():
        target.replace_source_output(resized.output(0))
    parameters[place] = masks
    return openvino.Model(graph.get_results(), parameters, "decoder")


def build_openvino_encoder(sam: Sam, *, threads: int | None = None) -> Callable[[NDArray[np.float32]], NDArray[Any]]:
    """Convert and compile the encoder, up to where it is cut, for the CPU, in float32: takes some ten seconds.

    Args:
        sam: in eval mode, float32, on the CPU.
        threads: CPU threads; None: OMP_NUM_THREADS, else OpenVINO's own choice.

    Returns:
        From float32 images [1, 3, S, S] to what is kept of them, float32 [1, *kept_shape].
    """
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    threads = threads or find_thread_limit()
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    cut, interface = sam.cut, sam.interface
    size = [1, 3, sam.image_size, sam.image_size]
    graph = convert_encoder(sam) if cut is None else convert_module(cut.trunk, [size])
    compiled = get_core().compile_model(graph, "CPU", settings)

    def encode(images_13SS: NDArray[np.float32]) -> NDArray[Any]:
        results = compiled({0: images_13SS})
        outputs = [results[place] for place in range(len(compiled.outputs))]
        if cut is None:
            return np.array(interface.pack(outputs))  # OpenVINO uses its output's memory again
        return np.concatenate([output.reshape(1, -1, 1, 1) for output in outputs], axis=1)

    return encode
