"""The torch predictor computes what the model computes, in whatever chunks."""

import numpy as np
import pytest
import torch

from vpexp.data.geometry import compute_resized_size, normalize_and_pad, resize_image
from vpexp.inference import predictor as predictor_module
from vpexp.inference.torch_predictor import TorchPredictor
from vpexp.models.registry import build_sam_debug
from vpexp.models.sam import upscale_logits

SIZES = [(50, 80), (80, 50), (64, 64), (200, 31), (20, 30)]


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    return build_sam_debug(64)


@pytest.fixture
def predictor(sam):
    return TorchPredictor(sam)


def draw_image(height, width):
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def draw_boxes(count, height, width):
    rng = np.random.default_rng(count)
    corners = np.sort(rng.random((count, 2, 2)) * [width, height], axis=1)
    return corners.reshape(count, 4).astype(np.float32)


@torch.no_grad()
def run_directly(sam, image_HW3, coords_NP2, labels_NP):
    height, width = image_HW3.shape[:2]
    resized_hw = compute_resized_size(height, width, 64)
    scale = torch.tensor([resized_hw[1] / width, resized_hw[0] / height])
    images = torch.from_numpy(normalize_and_pad(resize_image(image_HW3, 64), 64))[None]
    coords_NP2 = torch.as_tensor(coords_NP2, dtype=torch.float32) * scale
    labels_NP = torch.as_tensor(labels_NP, dtype=torch.float32)
    decoded = sam.decode(
        sam.encode_image(images), torch.zeros(len(labels_NP), dtype=torch.int64), coords_NP2, labels_NP
    )
    logits = upscale_logits(
        decoded.low_res_logits_NKHW, image_size=64, resized_hw=resized_hw, original_hw=(height, width)
    )
    return logits.numpy(), decoded.iou_NK[:, 0].numpy(), decoded.low_res_logits_NKHW[:, 0].numpy()


def assert_same(prediction, direct):
    logits, iou, low_res = direct
    assert prediction.masks.shape == logits.shape
    assert prediction.masks.dtype == bool
    clear = np.abs(logits) > 1e-4
    np.testing.assert_array_equal(prediction.masks[clear], (logits > 0)[clear])
    np.testing.assert_allclose(prediction.iou, iou, atol=1e-5)
    np.testing.assert_allclose(prediction.low_res, low_res, atol=1e-4)
    assert prediction.iou.dtype == prediction.low_res.dtype == np.float32


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_decode__boxes_equal_the_model(sam, predictor, height, width):
    image_HW3, boxes_N4 = draw_image(height, width), draw_boxes(4, height, width)
    prediction = predictor.decode(predictor.embed(image_HW3), boxes=boxes_N4)
    direct = run_directly(sam, image_HW3, boxes_N4.reshape(4, 2, 2), np.tile([2, 3], (4, 1)))
    assert_same(prediction, direct)
    assert prediction.masks.shape == (4, height, width)
    assert prediction.low_res.shape == (4, 16, 16)
    assert np.std(direct[0], axis=0).mean() > 1e-3  # the prompts make a difference


@pytest.mark.parametrize(("height", "width"), SIZES[:2])
def test_decode__points_equal_the_model(sam, predictor, height, width):
    image_HW3 = draw_image(height, width)
    points_NP2 = np.random.default_rng(0).random((3, 2, 2)) * [width - 1, height - 1]
    labels_NP = np.array([[1, 0], [1, 1], [1, 0]])
    prediction = predictor.decode(predictor.embed(image_HW3), points=points_NP2, point_labels=labels_NP)
    assert_same(prediction, run_directly(sam, image_HW3, points_NP2, labels_NP))
    unlabelled = predictor.decode(predictor.embed(image_HW3), points=points_NP2[1:2])
    np.testing.assert_allclose(unlabelled.iou, prediction.iou[1:2], atol=1e-5)


def test_decode__boxes_and_points_together(sam, predictor):
    image_HW3, boxes_N4 = draw_image(50, 80), draw_boxes(2, 50, 80)
    points_NP2, labels_NP = np.array([[[10, 10]], [[40, 20]]]), np.array([[1], [0]])
    embedding = predictor.embed(image_HW3)
    both = predictor.decode(embedding, boxes=boxes_N4, points=points_NP2, point_labels=labels_NP)
    coords_NP2 = np.concatenate([points_NP2, boxes_N4.reshape(2, 2, 2)], axis=1)
    assert_same(both, run_directly(sam, image_HW3, coords_NP2, np.array([[1, 2, 3], [0, 2, 3]])))
    assert np.abs(both.low_res - predictor.decode(embedding, boxes=boxes_N4).low_res).max() > 1e-3


def test_decode__ignored_points_change_nothing(predictor):
    embedding = predictor.embed(draw_image(50, 80))
    plain = predictor.decode(embedding, points=[[[10, 20]]])
    filled = predictor.decode(embedding, points=[[[10, 20], [70, 40]]], point_labels=[[1, -1]])
    np.testing.assert_allclose(filled.low_res, plain.low_res, atol=1e-5)


def test_decode__chunks_equal_the_whole(monkeypatch, sam, predictor):
    embedding, boxes_N4 = predictor.embed(draw_image(50, 80)), draw_boxes(7, 50, 80)
    whole = predictor.decode(embedding, boxes=boxes_N4)
    counts = []
    decode = sam.decode
    monkeypatch.setattr(sam, "decode", lambda *args, masks: counts.append(len(args[1])) or decode(*args, masks=masks))
    monkeypatch.setattr(predictor_module, "CHUNK_PIXELS", 3 * 64 * 64)
    parts = predictor.decode(embedding, boxes=boxes_N4)
    assert counts == [3, 3, 1]
    np.testing.assert_array_equal(parts.masks, whole.masks)
    np.testing.assert_allclose(parts.iou, whole.iou, atol=1e-6)
    np.testing.assert_allclose(parts.low_res, whole.low_res, atol=1e-5)


def test_decode__no_prompts(predictor):
    prediction = predictor.decode(predictor.embed(draw_image(50, 80)), boxes=np.zeros((0, 4)))
    assert prediction.masks.shape == (0, 50, 80)
    assert prediction.iou.shape == (0,)
    assert prediction.low_res.shape == (0, 16, 16)


def test_embed__keeps_sizes_and_no_graph(sam, predictor):
    embedding = predictor.embed(draw_image(50, 80))
    assert (embedding.original_hw, embedding.resized_hw) == ((50, 80), (40, 64))
    assert embedding.features.shape == (1, 256, 4, 4)
    assert not embedding.features.requires_grad
    assert predictor.image_size == sam.image_size == 64


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 9), np.uint8),
        np.zeros((8, 9, 4), np.uint8),
        np.zeros((8, 9, 3), np.float32),
        np.zeros((3, 64, 64), np.uint8),
        np.zeros((0, 9, 3), np.uint8),
    ],
)
def test_embed__what_is_no_rgb_image_is_told(predictor, image):
    with pytest.raises(ValueError, match="an image must be uint8"):
        predictor.embed(image)


def test_predict__image_and_mode_decide(sam, predictor):
    boxes_N4 = draw_boxes(1, 50, 80)
    one, other = (
        predictor.decode(predictor.embed(image), boxes=boxes_N4)
        for image in (draw_image(50, 80), np.zeros((50, 80, 3), np.uint8))
    )
    assert np.abs(one.low_res - other.low_res).max() > 1e-3
    assert predictor.device == torch.device("cpu")


def test_decode__earlier_masks_are_refined_in_chunks(sam, predictor, monkeypatch):
    image_HW3 = draw_image(50, 80)
    boxes_N4 = draw_boxes(5, 50, 80)
    embedding = predictor.embed(image_HW3)
    first = predictor.decode(embedding, boxes=boxes_N4)
    monkeypatch.setattr(predictor_module, "CHUNK_PIXELS", 2 * 64 * 64)

    refined = predictor.decode(embedding, boxes=boxes_N4, mask_input=first.low_res)

    coords_NP2 = torch.from_numpy(boxes_N4).reshape(5, 2, 2) * torch.tensor([64 / 80, 40 / 50])
    with torch.no_grad():
        direct = sam.decode(
            embedding.features,
            torch.zeros(5, dtype=torch.int64),
            coords_NP2,
            torch.tensor([[2.0, 3.0]] * 5),
            torch.from_numpy(first.low_res)[:, None],
        )
    np.testing.assert_allclose(refined.low_res, direct.low_res_logits_NKHW[:, 0].numpy(), atol=1e-5)
    assert np.abs(refined.low_res - first.low_res).max() > 1e-4


def test_decode__earlier_masks_of_another_model_are_refused(predictor):
    embedding = predictor.embed(draw_image(50, 80))
    with pytest.raises(ValueError, match=r"mask_input must have shape \[1, 16, 16\], not \[1, 256, 256\]"):
        predictor.decode(embedding, boxes=draw_boxes(1, 50, 80), mask_input=np.zeros((1, 256, 256)))
