"""The parts of a model as ONNX files."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
from vpexp.errors import ConfigError
from vpexp.inference.exported import CLASSIFIER, DECODER, ENCODER, EXPORTED_NAME, PROMPTER, ExportedModel
from vpexp.inference.graph_predictor import ENCODER_INPUTS
from vpexp.models.mask_decoder import MASK_TOKENS
from vpexp.models.sam import Sam

OPSET = 17  # LayerNormalization is one operator from here on
Axes = Mapping[str, Mapping[int, str]]
"""Of each input the axes whose length may change, with the names of these lengths."""
Shapes = Mapping[str, tuple[int | str, ...]]
"""Of each output its shape: lengths, or the names of those that may change."""
PROMPT_AXES: Axes = {
    "point_coords": {0: "N", 1: "P"},
    "point_labels": {0: "N", 1: "P"},
    "mask_input": {0: "M"},
    "has_mask_input": {0: "M"},
    "orig_size": {},
}
SMALLEST_HALVED = 256  # elements; smaller constants are shapes and scales


def list_decoder_axes(interface: Interface) -> Axes:
    """List the decoder's inputs."""
    return {**{name: {} for name in interface.names}, **PROMPT_AXES}


def write_onnx(sam: Sam, folder: Path, info: ExportInfo, *, precisions: dict[str, str]) -> ExportedModel:
    """Write a model as ONNX files, one a part; arguments as for ``write_openvino``.

    Raises:
        ConfigError: the package onnx is not installed.
    """
    low, interface = sam.image_size // 4, sam.interface
    maps: Shapes = {one.name: (1, *one.get_shape(sam.image_size)) for one in interface.maps}
    masks: Shapes = {
        "upscaled_masks": ("N", 1, "H", "W"),
        "iou_predictions": ("N", 1),
        "low_res_masks": ("N", 1, low, low),
        "token_masks": ("N", MASK_TOKENS, low, low),
        "token_ious": ("N", MASK_TOKENS),
    }
    parts: dict[str, tuple[nn.Module, Axes, Shapes]] = {
        ENCODER: (ExportableEncoder(sam), {name: {} for name in ENCODER_INPUTS}, maps),
        DECODER: (ExportableDecoder(sam, info.multimask), list_decoder_axes(interface), masks),
    }
    if (instances := info.instances) is not None:
        cells = sum((sam.image_size // cell) ** 2 for cell in instances.prompter.cells)
        count = min(instances.prompter.limit, cells)
        boxes: Shapes = {"boxes": (count, 4), "scores": (count,)}
        named_inputs: Axes = {interface.names[0]: {}, "images": {}}
        parts[PROMPTER] = ExportablePrompter(instances.prompter, sam), named_inputs, boxes
        if instances.classifier is not None:
            axes, named = {"crops": {0: "K"}, "extents": {0: "K"}}, {"probabilities": ("K", len(instances.labels))}
            parts[CLASSIFIER] = ExportableClassifier(instances.classifier), axes, named
    model = ExportedModel.plan(folder / f"{EXPORTED_NAME}_", ".onnx", parts)
    for part, (module, inputs, outputs) in parts.items():
        model_info = build_model_info(info, part, precisions[part], sam.interface)
        write_graph(module, model.parts[part], inputs, outputs, model_info, halve=precisions[part] == "FP16")
    return model


def write_graph(
    module: nn.Module, file: Path, inputs: Axes, outputs: Shapes, model_info: Mapping[str, str], *, halve: bool = False
) -> None:
    """Write a module as an ONNX file and check it.

    Args:
        module: has ``build_example()``, inputs to trace with.
        file: where it goes.
        inputs: by name, in the order of the module.
        outputs: by name, in the order of the module.
        model_info: entries of the metadata, as Model API writes them.
        halve: store weights as float16.

    Raises:
        ConfigError: the package onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise ConfigError("an export to ONNX needs the package onnx: pip install 'vpexp[onnx]'") from error
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of each Python number, all of them constants of the model
        # The exporter by tracing: the other one cannot give masks of a size that an input says.
        torch.onnx.export(
            module.eval(),
            module.build_example(),  # type: ignore[operator]
            file,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: dict(axes) for name, axes in inputs.items() if axes},
            opset_version=OPSET,
            dynamo=False,
        )
    graph = onnx.load(file)
    _name_shapes(graph, outputs)
    if halve:
        _halve_weights(graph)
    for key, value in model_info.items():
        graph.metadata_props.add(key=f"model_info {key}", value=value)
    onnx.save(graph, file)
    onnx.checker.check_model(file)


def _name_shapes(graph: Any, outputs: Shapes) -> None:
    """Report the shapes of the outputs, which the exporter cannot tell."""
    for port in graph.graph.output:
        port.type.tensor_type.ClearField("shape")
        for length in outputs[port.name]:
            dimension = port.type.tensor_type.shape.dim.add()
            if isinstance(length, int):
                dimension.dim_value = length
            else:
                dimension.dim_param = length


def _halve_weights(graph: Any) -> None:
    """Store float32 weights as float16; a Cast brings them back, so that all is computed in float32."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in graph.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.size < SMALLEST_HALVED:
            continue
        if np.abs(values).max() > np.finfo(np.float16).max:
            continue  # it would become infinite
        name = weight.name
        halved = numpy_helper.from_array(values.astype(np.float16), f"{name}_fp16")
        weight.CopyFrom(halved)
        casts.append(helper.make_node("Cast", [f"{name}_fp16"], [name], name=f"{name}_cast", to=TensorProto.FLOAT))
    for place, cast in enumerate(casts):
        graph.graph.node.insert(place, cast)
