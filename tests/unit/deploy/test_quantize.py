"""INT8 models: the same ports and metadata, the same masks up to rounding, a third of the size."""

import hashlib

import numpy as np
import pytest

from vpexp.config.schema import PtqConfig
from vpexp.data.geometry import scale_points
from vpexp.data.prompts import Prompts
from vpexp.deploy.quantize import INT8, KEEP, WEIGHTS, quantize_model
from vpexp.inference.exported import find_exported, read_metadata
from vpexp.inference.graph_predictor import OpenvinoPredictor, build_decoder_inputs, get_core

BOTH = {"image_encoder": INT8, "decoder": INT8}


@pytest.fixture(scope="module")
def debug_int8(debug_ir, calibrate, tmp_path_factory):
    return quantize_model(debug_ir, tmp_path_factory.mktemp("int8"), calibrate(64, 3), PtqConfig(), BOTH)


@pytest.fixture(scope="module")
def micro_int8(micro_ir, calibrate, tmp_path_factory):
    return quantize_model(micro_ir, tmp_path_factory.mktemp("int8"), calibrate(256, 4), PtqConfig(), BOTH)


@pytest.fixture(scope="module")
def micro_weights(micro_ir, calibrate, tmp_path_factory):
    methods = dict.fromkeys(BOTH, WEIGHTS)
    return quantize_model(micro_ir, tmp_path_factory.mktemp("weights"), calibrate(256, 1), PtqConfig(), methods)


def read_ports(file):
    graph = get_core().read_model(file)
    return [
        (port.get_names(), str(port.get_partial_shape()), str(port.get_element_type()))
        for port in (*graph.inputs, *graph.outputs)
    ]


def compute_overlap(expected, got):
    """Mean IoU of the masks of two predictors."""
    both = (expected.masks & got.masks).sum((1, 2))
    either = (expected.masks | got.masks).sum((1, 2))
    return float((both / np.maximum(either, 1)).mean())


def compare(reference, model, vineyard):
    """Find the mean IoU with the masks of the exported model, for boxes and for points."""
    first, second = OpenvinoPredictor(reference, threads=1), OpenvinoPredictor(model, threads=1)
    overlaps = []
    for prompts in ("boxes", "points"):
        found = [
            compute_overlap(
                first.decode_prompts(first.embed(drawn.image_HW3), getattr(drawn, prompts)),
                second.decode_prompts(second.embed(drawn.image_HW3), getattr(drawn, prompts)),
            )
            for drawn in vineyard
        ]
        overlaps.append(float(np.mean(found)))
    return overlaps


def test_quantize_model__keeps_ports(debug_ir, debug_int8):
    for part in ("encoder", "decoder"):
        ports = read_ports(getattr(debug_int8, part))
        assert ports == read_ports(getattr(debug_ir, part))
        assert all(len(names) == 1 for names, _, _ in ports)


def test_quantize_model__keeps_metadata(debug_ir, debug_int8):
    before, after = read_metadata(debug_ir), read_metadata(debug_int8)
    assert after.precision == "INT8"
    assert before.precision == "FP32"
    for field in ("image_size", "labels", "model_name", "source_hash"):
        assert getattr(after, field) == getattr(before, field)


def test_quantize_model__is_found_by_its_folder(debug_int8):
    assert find_exported(debug_int8.folder) == debug_int8
    assert debug_int8.is_quantized


@pytest.mark.slow
def test_quantize_model__same_inputs_same_bytes(debug_ir, debug_int8, calibrate, tmp_path):
    again = quantize_model(debug_ir, tmp_path, calibrate(64, 3), PtqConfig(), BOTH)
    for file, same in zip(debug_int8.files, again.files, strict=True):
        assert hashlib.sha256(file.read_bytes()).digest() == hashlib.sha256(same.read_bytes()).digest()


@pytest.mark.parametrize(("prompts", "points"), [(0, 2), (1, 1), (1, 2), (12, 2), (12, 3)])
def test_quantize_model__any_number_of_prompts_and_points(debug_int8, prompts, points):
    compiled = get_core().compile_model(debug_int8.decoder, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    labels = np.tile(np.array([[2, 3, -1], [1, -1, -1], [1, 0, 1]], np.float32), (4, 1))[:prompts, :points]
    rng = np.random.default_rng(0)
    channels = compiled.input("image_embeddings").shape[1]
    masks, iou, low_res, _, _ = compiled(
        {
            "image_embeddings": rng.standard_normal((1, channels, 4, 4), dtype=np.float32),
            "point_coords": rng.uniform(0, 64, (prompts, points, 2)).astype(np.float32),
            "point_labels": labels,
            "mask_input": np.zeros((1, 1, 16, 16), np.float32),
            "has_mask_input": np.zeros((1, 1), np.float32),
            "orig_size": np.array([[33, 47]]),
        }
    ).to_tuple()
    assert masks.shape == (prompts, 1, 33, 47)
    assert iou.shape == (prompts, 1)
    assert low_res.shape == (prompts, 1, 16, 16)
    assert np.isfinite(masks).all()


def test_quantize_model__nothing_is_rounded_where_it_must_not_be(micro_int8):
    decoder = get_core().read_model(micro_int8.decoder)
    rounded = {
        target.get_node().get_type_name()
        for node in decoder.get_ordered_ops()
        if node.get_type_name() == "FakeQuantize"
        for target in node.output(0).get_target_inputs()
    }
    assert rounded
    assert not rounded & {"Interpolate", "Sin", "Cos", "Convolution", "ConvolutionBackpropData"}
    encoder = get_core().read_model(micro_int8.encoder)
    sources = {
        node.input_value(0).get_node().get_friendly_name()
        for node in encoder.get_ordered_ops()
        if node.get_type_name() == "FakeQuantize"
    }
    assert sources
    assert not any(name.startswith(("fit_image/", "images")) for name in sources)


def test_quantize_model__masks_agree_at_a_third_of_the_size(micro_ir, micro_int8, vineyard):
    boxes, points = compare(micro_ir, micro_int8, vineyard)
    assert boxes > 0.97
    assert points > 0.93
    assert micro_int8.size_mb <= 0.37 * micro_ir.size_mb  # biases of attention are halved, all else is a quarter


def test_quantize_model__an_earlier_mask_is_understood(micro_ir, micro_int8, vineyard):
    # Calibration gives no masks: were their embedding rounded, its range would be nothing.
    drawn = vineyard[0]
    found = []
    for model in (micro_ir, micro_int8):
        predictor = OpenvinoPredictor(model, threads=1)
        embedding = predictor.embed(drawn.image_HW3)
        coords = scale_points(drawn.points.coords_NP2, embedding.original_hw, embedding.resized_hw)
        points = Prompts(coords, drawn.points.labels_NP)
        inputs = build_decoder_inputs(embedding.features, points, embedding.original_hw)
        inputs["mask_input"] = predictor.decode_prompts(embedding, drawn.boxes).low_res[:, None]
        inputs["has_mask_input"] = np.ones((len(drawn.points), 1), np.float32)
        compiled = get_core().compile_model(model.decoder, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found.append(compiled(inputs)["upscaled_masks"] > 0)
    assert (found[0] & found[1]).sum() / (found[0] | found[1]).sum() > 0.9


def test_quantize_model__weights_only(micro_ir, micro_weights, vineyard):
    assert read_metadata(micro_weights).precision == "INT8-weights"
    assert micro_weights.size_mb <= 0.37 * micro_ir.size_mb
    assert min(compare(micro_ir, micro_weights, vineyard)) > 0.98
    kinds = {node.get_type_name() for node in get_core().read_model(micro_weights.decoder).get_ordered_ops()}
    assert "FakeQuantize" not in kinds


def test_quantize_model__one_part_only_without_a_word(debug_ir, calibrate, tmp_path, capfd):
    calibration = calibrate(64, 1)
    capfd.readouterr()
    methods = {"image_encoder": KEEP, "decoder": INT8}
    made = quantize_model(debug_ir, tmp_path, calibration, PtqConfig(), methods)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")  # NNCF's notes and bars stay away
    for suffix in (".xml", ".bin"):
        kept, exported = made.encoder.with_suffix(suffix), debug_ir.encoder.with_suffix(suffix)
        assert kept.read_bytes() == exported.read_bytes()
    assert read_metadata(made).precision == "FP32+INT8"


@pytest.mark.parametrize(
    "recipe",
    [
        PtqConfig(preset="performance", overflow_fix="disable", bias_correction="none"),
        PtqConfig(model_type=None, overflow_fix="first_layer", smooth_quant=False, activation_range="mean"),
    ],
)
def test_quantize_model__other_recipes_make_other_models(debug_ir, debug_int8, calibrate, tmp_path, recipe):
    methods = {"image_encoder": INT8, "decoder": KEEP}
    made = quantize_model(debug_ir, tmp_path, calibrate(64, 3), recipe, methods)
    assert read_metadata(made).precision == "INT8+FP32"
    assert made.encoder.with_suffix(".bin").read_bytes() != debug_int8.encoder.with_suffix(".bin").read_bytes()
