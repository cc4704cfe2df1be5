"""What exported models share: both runtimes answer as torch does, on images of any size."""

import subprocess
import sys

import numpy as np
import pytest

from tests.references.exports import assert_same_predictions, crop, draw_vineyard
from vpexp.data.prompts import Prompts
from vpexp.inference import predictor as predictor_module
from vpexp.inference.load import load_predictor
from vpexp.inference.torch_predictor import TorchPredictor

SIZES = [(50, 80), (80, 50), (64, 64), (200, 31), (20, 30), (1, 40), (40, 1), (1, 1), (300, 400)]


@pytest.fixture(scope="module", params=["openvino", "onnx"])
def format_(request):
    return request.param


@pytest.fixture(scope="module")
def debug(format_, request):
    return load_predictor(request.getfixturevalue("debug_ir" if format_ == "openvino" else "debug_onnx"), threads=1)


@pytest.fixture(scope="module")
def micro(format_, request):
    return load_predictor(request.getfixturevalue("micro_ir" if format_ == "openvino" else "micro_onnx"), threads=1)


@pytest.fixture(scope="module")
def debug_torch(debug_sam):
    return TorchPredictor(debug_sam)


def draw_image(height, width):
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def draw_prompts(count, height, width):
    """Boxes, points inside and out, and filled up places, one after the other."""
    coords = np.sort(np.random.default_rng(count).random((count, 3, 2)) * [width, height], axis=1).astype(np.float32)
    rows = np.array([[2, 3, -1], [1, -1, -1], [1, 0, 1], [2, 3, 0]], np.float32)
    return Prompts(coords, rows[np.arange(count) % len(rows)])


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_decode_prompts__equals_torch_at_any_size(debug, debug_torch, height, width):
    image_HW3, prompts = draw_image(height, width), draw_prompts(6, height, width)
    expected = debug_torch.decode_prompts(debug_torch.embed(image_HW3), prompts)
    got = debug.decode_prompts(debug.embed(image_HW3), prompts)
    assert got.masks.shape == (6, height, width)
    assert_same_predictions(expected, got, most_flipped=1e-3)  # random weights: many logits are about zero


def test_decode_prompts__trained_model_flips_no_pixel(micro, micro_sam, vineyard, tmp_path):
    reference = TorchPredictor(micro_sam)
    larger = draw_vineyard(tmp_path, image_size=640, count=1)[0]
    flipped = inside = 0
    for drawn in (*vineyard, crop(vineyard[0], 170, 256), crop(larger, 640, 480)):
        expected_embedding, embedding = reference.embed(drawn.image_HW3), micro.embed(drawn.image_HW3)
        for prompts in (drawn.boxes, drawn.points):
            expected = reference.decode_prompts(expected_embedding, prompts)
            got = micro.decode_prompts(embedding, prompts)
            assert_same_predictions(expected, got)
            flipped += np.count_nonzero(expected.masks != got.masks)
            inside += np.count_nonzero(expected.masks)
    assert inside > 50_000
    assert round(1e4 * flipped / inside) == 0


def test_decode__boxes_points_and_both(debug, debug_torch):
    image_HW3 = draw_image(50, 80)
    ours, theirs = debug.embed(image_HW3), debug_torch.embed(image_HW3)
    boxes, points = np.array([[2, 3, 40, 30], [10, 5, 79, 49]]), np.array([[[5, 6]], [[30, 20]]])
    for prompts in (
        {"boxes": boxes},
        {"points": points},
        {"points": points, "point_labels": np.array([[1], [0]])},
        {"boxes": boxes, "points": points},
    ):
        assert_same_predictions(debug_torch.decode(theirs, **prompts), debug.decode(ours, **prompts), most_flipped=1e-3)


def test_decode__refines_earlier_masks_as_torch_does(debug, debug_torch):
    image_HW3, boxes_N4 = draw_image(50, 80), np.array([[2, 3, 40, 30], [10, 5, 70, 45]])
    theirs = debug_torch.embed(image_HW3)
    earlier = debug_torch.decode(theirs, boxes=boxes_N4).low_res
    expected = debug_torch.decode(theirs, boxes=boxes_N4, mask_input=earlier)
    got = debug.decode(debug.embed(image_HW3), boxes=boxes_N4, mask_input=earlier)
    assert_same_predictions(expected, got, most_flipped=1e-3)
    assert np.abs(expected.low_res - earlier).max() > 1e-2


def test_decode_prompts__no_prompts(debug):
    prediction = debug.decode(debug.embed(draw_image(50, 80)), boxes=np.zeros((0, 4)))
    assert prediction.masks.shape == (0, 50, 80)
    assert prediction.iou.shape == (0,)
    assert prediction.low_res.shape == (0, 16, 16)


def test_decode_prompts__chunks_equal_the_whole(monkeypatch, debug):
    image_HW3, prompts = draw_image(50, 80), draw_prompts(7, 50, 80)
    embedding = debug.embed(image_HW3)
    whole = debug.decode_prompts(embedding, prompts)
    counts = []
    run_decoder = debug._run_decoder
    monkeypatch.setattr(debug, "_run_decoder", lambda *args: counts.append(len(args[1])) or run_decoder(*args))
    monkeypatch.setattr(predictor_module, "CHUNK_PIXELS", 3 * 64 * 64)
    parts = debug.decode_prompts(embedding, prompts)
    assert counts == [3, 3, 1]
    np.testing.assert_allclose(parts.low_res, whole.low_res, atol=1e-4)
    np.testing.assert_allclose(parts.iou, whole.iou, atol=1e-5)
    assert np.mean(parts.masks != whole.masks) < 1e-3


def test_embed__an_embedding_outlives_the_next_image(debug):
    first = debug.embed(draw_image(50, 80))
    kept = np.array(first.features["image_embeddings"])
    prediction = debug.decode(first, boxes=np.array([[2, 3, 40, 30]]))
    masks, low_res = prediction.masks.copy(), prediction.low_res.copy()
    other = debug.embed(draw_image(80, 50))
    debug.decode(other, boxes=np.array([[9, 9, 20, 60]]))
    np.testing.assert_array_equal(first.features["image_embeddings"], kept)
    np.testing.assert_array_equal(prediction.low_res, low_res)
    np.testing.assert_array_equal(debug.decode(first, boxes=np.array([[2, 3, 40, 30]])).masks, masks)
    assert (first.original_hw, first.resized_hw) == ((50, 80), (40, 64))
    assert np.abs(other.features["image_embeddings"] - kept).max() > 1e-3


@pytest.mark.parametrize(
    "image", [np.zeros((8, 9), np.uint8), np.zeros((8, 9, 3), np.float32), np.zeros((0, 9, 3), np.uint8)]
)
def test_embed__what_is_no_rgb_image_is_told(debug, image):
    with pytest.raises(ValueError, match="an image must be uint8"):
        debug.embed(image)


def test_graph_predictor__says_what_it_is(debug, debug_ir, debug_onnx, format_):
    assert debug.image_size == debug.metadata.image_size == 64
    assert debug.model == (debug_ir if format_ == "openvino" else debug_onnx)


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("load", {"torch", "onnxruntime", "onnx", "openvino"}),
        ("exported", {"torch", "onnxruntime", "onnx", "openvino", "numpy"}),
        ("graph_predictor", {"torch", "onnxruntime", "onnx", "openvino"}),
    ],
)
def test_import__takes_no_other_backend_along(module, never):
    code = f"import sys, vpexp.inference.{module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not never & set(loaded)


@pytest.mark.parametrize(
    ("which", "never"), [("debug_ir", {"torch", "onnxruntime", "onnx"}), ("debug_onnx", {"torch", "openvino"})]
)
def test_load_predictor__predicts_without_any_other_backend(which, never, request):
    folder = request.getfixturevalue(which).folder
    code = f"""
import sys
import numpy as np
from vpexp.inference.load import load_predictor
predictor = load_predictor({str(folder)!r}, threads=1)
masks = predictor.decode(predictor.embed(np.zeros((30, 40, 3), np.uint8)), boxes=np.array([[1, 2, 30, 20]])).masks
assert masks.shape == (1, 30, 40)
print(*sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert not never & set(result.stdout.split())
