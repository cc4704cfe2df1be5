"""The two ONNX files: ports, shapes, metadata, weights, and numbers."""

import copy
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper

from tests.references.exports import LABELS, export
from vpexp.data.interface import SAM
from vpexp.deploy.graph import ExportableDecoder
from vpexp.errors import ConfigError
from vpexp.inference.exported import read_metadata
from vpexp.inference.graph_predictor import DECODER_OUTPUTS, list_ports
from vpexp.models.weights import compute_state_hash

SIZE, LOW = 64, 16


@pytest.fixture(scope="module")
def graphs(debug_onnx):
    return {"image_encoder": onnx.load(debug_onnx.encoder), "decoder": onnx.load(debug_onnx.decoder)}


@pytest.fixture(scope="module")
def decode(debug_onnx):
    session = onnxruntime.InferenceSession(str(debug_onnx.decoder), providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(
        list(list_ports(SAM)["decoder"][1]), dict(zip(list_ports(SAM)["decoder"][0], inputs, strict=True))
    )


def describe(values):
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values
    }


def draw_inputs(prompts, points, masks, *, has_mask, original_hw=(48, 61)):
    rng = np.random.default_rng(prompts * 10 + points)
    labels = np.tile(np.array([2, 3, 1, 0, -1], np.float32)[:points], (prompts, 1))
    labels[1::2] = [1, -1, 0, -1, 1][:points]
    return [
        rng.standard_normal((1, 256, 4, 4)).astype(np.float32),
        (rng.random((prompts, points, 2)) * SIZE).astype(np.float32),
        labels,
        rng.standard_normal((masks, 1, LOW, LOW)).astype(np.float32),
        np.full((masks, 1), has_mask, np.float32),
        np.array([original_hw], np.int64),
    ]


def test_write_onnx__names_in_order(graphs):
    for part, inputs, outputs in (
        ("image_encoder", *list_ports(SAM)["image_encoder"]),
        ("decoder", *list_ports(SAM)["decoder"]),
    ):
        assert tuple(port.name for port in graphs[part].graph.input) == inputs
        assert tuple(port.name for port in graphs[part].graph.output) == outputs
        onnx.checker.check_model(graphs[part], full_check=True)


def test_write_onnx__shapes(graphs):
    assert describe(graphs["image_encoder"].graph.input) == {"images": [1, 3, SIZE, SIZE]}
    assert describe(graphs["image_encoder"].graph.output) == {"image_embeddings": [1, 256, 4, 4]}
    assert describe(graphs["decoder"].graph.input) == {
        "image_embeddings": [1, 256, 4, 4],
        "point_coords": ["N", "P", 2],
        "point_labels": ["N", "P"],
        "mask_input": ["M", 1, LOW, LOW],
        "has_mask_input": ["M", 1],
        "orig_size": [1, 2],
    }
    outputs = describe(graphs["decoder"].graph.output)
    assert outputs["upscaled_masks"] == ["N", 1, "H", "W"]
    assert outputs["iou_predictions"] == ["N", 1]
    assert outputs["low_res_masks"] == ["N", 1, LOW, LOW]
    assert outputs["token_masks"] == ["N", 4, LOW, LOW]
    assert outputs["token_ious"] == ["N", 4]
    assert graphs["decoder"].graph.input[5].type.tensor_type.elem_type == TensorProto.INT64


def test_write_onnx__metadata(graphs, debug_onnx, debug_sam):
    properties = {entry.key: entry.value for entry in graphs["decoder"].metadata_props}
    assert properties["model_info model_type"] == "sam_decoder"
    assert properties["model_info task_type"] == "visual_prompting"
    metadata = read_metadata(debug_onnx)
    assert metadata.labels == LABELS
    assert (metadata.image_size, metadata.model_name, metadata.precision) == (64, "sam_debug", "FP32")
    assert metadata.source_hash == compute_state_hash(debug_sam)


@pytest.mark.parametrize(
    ("prompts", "points", "masks", "has_mask"),
    [(1, 1, 1, 0), (1, 2, 1, 0), (3, 2, 1, 0), (12, 5, 1, 0), (1, 2, 1, 1), (4, 3, 1, 1), (4, 3, 4, 1), (4, 3, 4, 0)],
)
def test_decoder__equals_torch(debug_sam, decode, *, prompts, points, masks, has_mask):
    inputs = draw_inputs(prompts, points, masks, has_mask=has_mask)
    with torch.no_grad():
        expected = [tensor.numpy() for tensor in ExportableDecoder(debug_sam, "auto")(*map(torch.from_numpy, inputs))]
    for name, ours, theirs in zip(DECODER_OUTPUTS, decode(inputs), expected, strict=True):
        assert ours.shape == theirs.shape, name
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * max(theirs.std(), 1), rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("original_hw", [(1, 1), (1, 500), (333, 3), (147, 6272), (700, 500), (17, 31)])
def test_decoder__original_size(debug_sam, decode, original_hw):
    inputs = draw_inputs(2, 2, 1, has_mask=0, original_hw=original_hw)
    with torch.no_grad():
        expected = ExportableDecoder(debug_sam, "auto")(*map(torch.from_numpy, inputs))[0].numpy()
    got = decode(inputs)[0]
    assert got.shape == (2, 1, *original_hw)
    np.testing.assert_allclose(got, expected, atol=1e-4 * expected.std(), rtol=1e-4)


def find_weight_types(graph):
    large = [weight for weight in graph.graph.initializer if numpy_helper.to_array(weight).size >= 256]
    return {TensorProto.DataType.Name(weight.data_type) for weight in large} - {"INT64"}


def test_write_onnx__fp16_halves_the_encoder_only(debug_sam, debug_onnx, tmp_path):
    half = export(debug_sam, "sam_debug", tmp_path, "onnx", precisions={"image_encoder": "FP16", "decoder": "FP32"})

    assert find_weight_types(onnx.load(half.encoder)) == {"FLOAT16"}
    assert find_weight_types(onnx.load(half.decoder)) == {"FLOAT"}
    assert 0.45 < half.encoder.stat().st_size / debug_onnx.encoder.stat().st_size < 0.65
    assert read_metadata(half).precision == "FP16+FP32"
    images = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
    full, halved = (
        onnxruntime.InferenceSession(str(model.encoder)).run(None, {"images": images})[0]
        for model in (debug_onnx, half)
    )
    assert halved.dtype == np.float32
    assert 0 < np.abs(full - halved).max() < 0.05 * full.std()


def test_write_onnx__weights_beyond_half_precision_stay_whole(debug_sam, tmp_path):
    """float16 ends at 65504: a larger weight would become infinite."""
    sam = copy.deepcopy(debug_sam)
    with torch.no_grad():
        sam.mask_decoder.iou_prediction_head.layers[0].weight[0, 0] = 1e5
    halved = {"image_encoder": "FP16", "decoder": "FP16"}
    graph = onnx.load(export(sam, "sam_debug", tmp_path, "onnx", precisions=halved).decoder)
    assert all(np.isfinite(numpy_helper.to_array(weight)).all() for weight in graph.graph.initializer)


def test_write_onnx__without_the_package_says_what_to_install(debug_sam, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"pip install 'vpexp\[onnx\]'"):
        export(debug_sam, "sam_debug", tmp_path, "onnx")
    assert not list(tmp_path.iterdir())
