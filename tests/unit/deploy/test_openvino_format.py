"""The two IRs: ports, shapes, metadata, weights, and numbers."""

from xml.etree import ElementTree as ET

import numpy as np
import openvino
import pytest
import torch
from openvino import opset13 as ops

from tests.references.exports import LABELS, export
from vpexp.data.geometry import compute_resized_size
from vpexp.data.interface import SAM
from vpexp.deploy.graph import ExportableDecoder, ExportInfo, build_model_info
from vpexp.deploy.openvino_format import _build_decoder, save_graph
from vpexp.inference.exported import ExportedModel, read_metadata
from vpexp.inference.graph_predictor import DECODER_OUTPUTS, get_core, list_ports
from vpexp.models.registry import build_sam_debug
from vpexp.models.weights import compute_state_hash

SIZE, LOW = 64, 16
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.fixture(scope="module")
def core():
    return get_core()


@pytest.fixture(scope="module")
def graphs(core, debug_ir):
    return {"image_encoder": core.read_model(debug_ir.encoder), "decoder": core.read_model(debug_ir.decoder)}


@pytest.fixture(scope="module")
def decode(core, graphs):
    compiled = core.compile_model(graphs["decoder"], "CPU", EXACT)

    def run(inputs):
        results = compiled(dict(zip(list_ports(SAM)["decoder"][0], inputs, strict=True)))
        return [results[name] for name in DECODER_OUTPUTS]

    return run


def draw_inputs(prompts, points, masks, *, has_mask, original_hw=(48, 61), mask_size=LOW):
    rng = np.random.default_rng(prompts * 10 + points)
    labels = np.tile(np.array([2, 3, 1, 0, -1], np.float32)[:points], (prompts, 1))
    labels[1::2] = [1, -1, 0, -1, 1][:points]
    return [
        rng.standard_normal((1, 256, 4, 4)).astype(np.float32),
        (rng.random((prompts, points, 2)) * SIZE).astype(np.float32),
        labels,
        rng.standard_normal((masks, 1, mask_size, mask_size)).astype(np.float32),
        np.full((masks, 1), has_mask, np.float32),
        np.array([original_hw], np.int64),
    ]


def decode_by_torch(sam, inputs):
    with torch.no_grad():
        return [tensor.numpy() for tensor in ExportableDecoder(sam, "auto")(*map(torch.from_numpy, inputs))]


@pytest.mark.parametrize(
    ("part", "inputs", "outputs"),
    [("image_encoder", *list_ports(SAM)["image_encoder"]), ("decoder", *list_ports(SAM)["decoder"])],
)
def test_write_openvino__one_name_a_port_in_order(graphs, part, inputs, outputs):
    graph = graphs[part]
    assert [port.get_names() for port in graph.inputs] == [{name} for name in inputs]
    assert [port.get_names() for port in graph.outputs] == [{name} for name in outputs]
    assert [port.get_node().get_friendly_name() for port in graph.inputs] == list(inputs)


def test_write_openvino__shapes_and_types(graphs):
    def describe(ports):
        return {
            port.get_any_name(): f"{port.get_partial_shape().to_string()} {port.get_element_type().to_string()}"
            for port in ports
        }

    assert describe(graphs["image_encoder"].inputs) == {"images": "[1,3,?,?] f32"}
    assert describe(graphs["image_encoder"].outputs) == {"image_embeddings": "[1,256,4,4] f32"}
    assert describe(graphs["decoder"].inputs) == {
        "image_embeddings": "[1,256,4,4] f32",
        "point_coords": "[?,?,2] f32",
        "point_labels": "[?,?] f32",
        "mask_input": "[?,1,?,?] f32",
        "has_mask_input": "[?,1] f32",
        "orig_size": "[1,2] i64",
    }
    ranks = {port.get_any_name(): len(port.get_partial_shape()) for port in graphs["decoder"].outputs}
    assert ranks == {"upscaled_masks": 4, "iou_predictions": 2, "low_res_masks": 4, "token_masks": 4, "token_ious": 2}
    assert all(port.get_element_type() == openvino.Type.f32 for port in graphs["decoder"].outputs)


def test_write_openvino__metadata_read_by_openvino(graphs, debug_ir, debug_sam):
    for part, model_type in (("image_encoder", "sam_image_encoder"), ("decoder", "sam_decoder")):

        def read(key, graph=graphs[part]):
            return graph.get_rt_info(["model_info", key]).astype(str)

        assert read("model_type") == model_type
        assert read("task_type") == "visual_prompting"
        assert read("image_size") == "64"
        assert read("mean_values") == "123.675 116.28 103.53"
        assert read("labels").split() == ["grape_bunch", "a_\"quoted\"_<b>_&_'c'", "Größe_葡萄"]
    metadata = read_metadata(debug_ir)
    assert metadata.labels == LABELS
    assert (metadata.image_size, metadata.model_name, metadata.precision) == (64, "sam_debug", "FP32")
    assert metadata.source_hash == compute_state_hash(debug_sam)


@pytest.mark.parametrize("labels", [(), (" ", "x"), ("line\nbreak", "tab\t", "]]>", "-->"), ("a" * 500,)])
def test_save_graph__odd_labels(tmp_path, labels):
    model = ExportedModel(tmp_path / "m_image_encoder.xml", tmp_path / "m_decoder.xml", "openvino")
    for part, file in (("image_encoder", model.encoder), ("decoder", model.decoder)):
        images = ops.parameter([1], np.float32)
        graph = openvino.Model([ops.relu(images)], [images])
        save_graph(graph, file, build_model_info(ExportInfo("sam_debug", 64, labels, "abc", "auto"), part, "FP32"))
    assert read_metadata(model).labels == labels


@pytest.mark.parametrize(
    ("prompts", "points", "masks", "has_mask"),
    [(1, 1, 1, 0), (1, 2, 1, 0), (3, 2, 1, 0), (12, 5, 1, 0), (1, 2, 1, 1), (4, 3, 1, 1), (4, 3, 4, 1), (4, 3, 4, 0)],
)
def test_decoder__equals_torch(debug_sam, decode, *, prompts, points, masks, has_mask):
    inputs = draw_inputs(prompts, points, masks, has_mask=has_mask)
    for name, got, expected in zip(DECODER_OUTPUTS, decode(inputs), decode_by_torch(debug_sam, inputs), strict=True):
        assert got.shape == expected.shape, name
        np.testing.assert_allclose(got, expected, atol=1e-4 * max(expected.std(), 1), rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("original_hw", [(1, 1), (1, 500), (333, 3), (64, 64), (147, 6272), (700, 500), (17, 31)])
def test_decoder__original_size(debug_sam, decode, original_hw):
    inputs = draw_inputs(2, 2, 1, has_mask=0, original_hw=original_hw)
    got, expected = decode(inputs)[0], decode_by_torch(debug_sam, inputs)[0]
    assert got.shape == (2, 1, *original_hw)
    np.testing.assert_allclose(got, expected, atol=1e-4 * expected.std(), rtol=1e-4)


def test_decoder__mask_input_of_another_size_is_resized(debug_sam, decode):
    """Model API always sends 256 x 256."""
    inputs = draw_inputs(2, 2, 1, has_mask=1, mask_size=256)
    got = decode(inputs)
    resized = torch.nn.functional.interpolate(torch.from_numpy(inputs[3]), (LOW, LOW), mode="bilinear")
    expected = decode_by_torch(debug_sam, [*inputs[:3], resized.numpy(), *inputs[4:]])
    np.testing.assert_allclose(got[2], expected[2], atol=1e-3 * expected[2].std())


def test_encoder__equals_torch_at_its_own_size(core, debug_sam, graphs):
    images = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
    got = core.compile_model(graphs["image_encoder"], "CPU", EXACT)(images)[0]
    with torch.no_grad():
        expected = debug_sam.encode_image(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_encoder__takes_any_size(core, graphs):
    compiled = core.compile_model(graphs["image_encoder"], "CPU", EXACT)
    for height, width in ((64, 64), (200, 90), (30, 50), (1, 7)):
        assert compute_resized_size(height, width, SIZE)
        assert compiled(np.zeros((1, 3, height, width), np.float32))[0].shape == (1, 256, 4, 4)


def test_encoder__nodes_that_fit_the_image_are_named(graphs):
    names = {node.get_friendly_name(): node.get_type_name() for node in graphs["image_encoder"].get_ops()}
    fitting = {kind for name, kind in names.items() if name.startswith("fit_image/")}
    assert {"Interpolate", "Pad", "Select"} <= fitting
    assert not {"Convolution", "MatMul"} & fitting
    assert not [name for name, kind in names.items() if kind == "Interpolate" and not name.startswith("fit_image/")]


def test_encoder__at_its_own_size_nothing_is_left_of_the_fitting(core, debug_ir):
    graph = core.read_model(debug_ir.encoder)
    graph.reshape([1, 3, SIZE, SIZE])
    compiled = core.compile_model(graph, "CPU", EXACT)
    types = {node.get_rt_info()["layerType"].astype(str) for node in compiled.get_runtime_model().get_ops()}
    assert not {"Interpolate", "Select", "Eltwise"} & types


def find_weight_types(file):
    """Element type -> bytes of the constants of 256 elements and more."""
    sizes = {}
    for data in ET.parse(file).getroot().iterfind("layers/layer[@type='Const']/data"):
        elements = np.prod([int(side) for side in data.get("shape").split(",") if side.strip()])
        if elements >= 256:
            sizes[data.get("element_type")] = sizes.get(data.get("element_type"), 0) + int(data.get("size"))
    return sizes


def test_write_openvino__fp16_halves_the_encoder_only(debug_sam, debug_ir, tmp_path):
    before = compute_state_hash(debug_sam)
    half = export(debug_sam, "sam_debug", tmp_path, "openvino", precisions={"image_encoder": "FP16", "decoder": "FP32"})

    assert "f32" not in find_weight_types(half.encoder)
    assert find_weight_types(half.encoder)["f16"] == find_weight_types(debug_ir.encoder)["f32"] / 2
    assert find_weight_types(half.decoder) == find_weight_types(debug_ir.decoder)
    assert "f16" not in find_weight_types(half.decoder)
    full_bytes, half_bytes = (model.encoder.with_suffix(".bin").stat().st_size for model in (debug_ir, half))
    assert 0.45 < half_bytes / full_bytes < 0.6
    assert half.size_mb < debug_ir.size_mb
    assert read_metadata(half).precision == "FP16+FP32"
    assert compute_state_hash(debug_sam) == before
    assert not debug_sam.training
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"exported_model_{part}.{suffix}" for part in ("decoder", "image_encoder") for suffix in ("bin", "xml")
    ]


def test_write_openvino__weights_are_stored_once(debug_sam, debug_ir):
    for part, file in ((debug_sam.image_encoder, debug_ir.encoder), (debug_sam.mask_decoder, debug_ir.decoder)):
        parameters = 4 * sum(parameter.numel() for parameter in part.parameters())
        assert file.with_suffix(".bin").stat().st_size < 1.25 * parameters + 200_000


def test_build_decoder__at_1024_the_mask_input_is_what_model_api_sends():
    graph = _build_decoder(build_sam_debug(1024), "auto")
    shapes = {port.get_any_name(): port.get_partial_shape().to_string() for port in graph.inputs}
    assert shapes["mask_input"] == "[?,1,256,256]"
    assert shapes["image_embeddings"] == "[1,256,64,64]"
