"""Both parts of a model as ONNX files."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vpexp.deploy.graph import ExportableDecoder, ExportableEncoder, ExportInfo, build_model_info
from vpexp.errors import ConfigError
from vpexp.inference.exported import DECODER, ENCODER, EXPORTED_NAME, ExportedModel
from vpexp.inference.graph_predictor import DECODER_INPUTS, DECODER_OUTPUTS, ENCODER_INPUTS, ENCODER_OUTPUTS
from vpexp.models.mask_decoder import MASK_TOKENS
from vpexp.models.sam import Sam

OPSET = 17  # LayerNormalization is one operator from here on
PROMPT_AXES = {
    "point_coords": {0: "N", 1: "P"},
    "point_labels": {0: "N", 1: "P"},
    "mask_input": {0: "M"},
    "has_mask_input": {0: "M"},
    "upscaled_masks": {0: "N", 2: "H", 3: "W"},
    "iou_predictions": {0: "N"},
    "low_res_masks": {0: "N"},
    "token_masks": {0: "N"},
    "token_ious": {0: "N"},
}
SMALLEST_HALVED = 256  # elements; smaller constants are shapes and scales


def write_onnx(sam: Sam, folder: Path, info: ExportInfo, *, precisions: dict[str, str]) -> ExportedModel:
    """Write a model as two ONNX files; arguments as for ``write_openvino``.

    Raises:
        ConfigError: the package onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise ConfigError("export.format=onnx needs the package onnx: pip install 'vpexp[onnx]'") from error
    model = ExportedModel(
        folder / f"{EXPORTED_NAME}_{ENCODER}.onnx", folder / f"{EXPORTED_NAME}_{DECODER}.onnx", "onnx"
    )
    encoder, decoder = ExportableEncoder(sam), ExportableDecoder(sam, info.multimask)
    _trace(encoder, model.encoder, ENCODER_INPUTS, ENCODER_OUTPUTS, {})
    _trace(decoder, model.decoder, DECODER_INPUTS, DECODER_OUTPUTS, PROMPT_AXES)
    for part, file in ((ENCODER, model.encoder), (DECODER, model.decoder)):
        graph = onnx.load(file)
        _name_shapes(graph, sam)
        if precisions[part] == "FP16":
            _halve_weights(graph)
        for key, value in build_model_info(info, part, precisions[part]).items():
            graph.metadata_props.add(key=f"model_info {key}", value=value)
        onnx.save(graph, file)
        onnx.checker.check_model(file)
    return model


def _trace(
    module: ExportableEncoder | ExportableDecoder,
    file: Path,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    axes: dict[str, dict[int, str]],
) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of each Python number, all of them constants of the model
        # The exporter by tracing: the other one cannot give masks of a size that an input says.
        torch.onnx.export(
            module.eval(),
            module.build_example(),
            file,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )


def _name_shapes(graph: Any, sam: Sam) -> None:
    """Report the shapes of the outputs, which the exporter cannot tell."""
    side, low = sam.embedding_size, sam.image_size // 4
    shapes: dict[str, tuple[int | str, ...]] = {
        "image_embeddings": (1, sam.embedding_channels, side, side),
        "upscaled_masks": ("N", 1, "H", "W"),
        "iou_predictions": ("N", 1),
        "low_res_masks": ("N", 1, low, low),
        "token_masks": ("N", MASK_TOKENS, low, low),
        "token_ious": ("N", MASK_TOKENS),
    }
    for port in graph.graph.output:
        for dimension, length in zip(port.type.tensor_type.shape.dim, shapes[port.name], strict=True):
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
