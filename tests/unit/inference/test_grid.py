"""The grid of points, and which of overlapping masks stay."""

import importlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from tests.references.exports import draw_vineyard
from tests.references.official import build_official_sam, import_segment_anything
from vpexp.data.masks import decode_rle, encode_mask
from vpexp.inference.load import load_predictor
from vpexp.inference.segment import (
    FoundMask,
    GridFilter,
    build_grid,
    keep_best,
    remove_small_regions,
    segment,
    segment_grid,
)


def test_build_grid__middle_pixels_row_by_row():
    prompts = build_grid(height=4, width=6, points_per_side=2)
    assert prompts.coords_NP2[:, 0].tolist() == [[1, 1], [4, 1], [1, 3], [4, 3]]
    assert prompts.labels_NP.tolist() == [[1, -1]] * 4
    assert build_grid(5, 5, 1).coords_NP2[:, 0].tolist() == [[2, 2]]
    # the middle of 8 pixels is the edge between two: the right one
    assert build_grid(8, 8, 1).coords_NP2[:, 0].tolist() == [[4, 4]]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 100), (16, 5), (2, 2)])
def test_build_grid__small_images_have_every_pixel_once(height, width):
    points = [tuple(point) for point in build_grid(height, width, 16).coords_NP2[:, 0].tolist()]
    assert len(points) == len(set(points)) == min(height, 16) * min(width, 16)


@given(height=st.integers(1, 5000), width=st.integers(1, 5000), side=st.integers(1, 40))
def test_build_grid__inside_and_evenly_spaced(height, width, side):
    points_N2 = build_grid(height, width, side).coords_NP2[:, 0]
    for values, length in ((np.unique(points_N2[:, 0]), width), (np.unique(points_N2[:, 1]), height)):
        assert len(values) == min(side, length)
        assert values[0] >= 0
        assert values[-1] <= length - 1
        # the same room before the first, after the last, and half of that between two; to the pixel
        assert abs(values[0] - (length - 1 - values[-1])) <= 1
        steps = np.diff(values)
        assert steps.size == 0 or steps.max() - steps.min() <= 1


def make_mask(prompt, score, left, right, size=(20, 40)):
    mask_HW = np.zeros(size, dtype=bool)
    mask_HW[2:12, left:right] = True
    return FoundMask(encode_mask(mask_HW), score, prompt)


def test_keep_best__of_overlapping_masks_the_best():
    masks = [
        make_mask(0, 0.8, 0, 10),
        make_mask(1, 0.9, 1, 11),  # IoU 9/11 with the first
        make_mask(2, 0.7, 20, 30),
        make_mask(3, 0.75, 20, 24),  # inside the third, IoU 0.4
    ]
    assert [mask.prompt for mask in keep_best(masks, 0.7)] == [1, 3, 2]
    assert [mask.prompt for mask in keep_best(masks, 0.82)] == [1, 0, 3, 2]  # 9/11 is below
    assert [mask.prompt for mask in keep_best(masks, 0.39)] == [1, 3]
    assert [mask.prompt for mask in keep_best(masks, 1.0)] == [1, 0, 3, 2]


def test_keep_best__a_mask_that_lost_suppresses_none():
    chain = [make_mask(0, 0.9, 0, 10), make_mask(1, 0.8, 3, 13), make_mask(2, 0.7, 6, 16)]  # neighbours 7/13
    assert [mask.prompt for mask in keep_best(chain, 0.5)] == [0, 2]


def test_keep_best__equal_scores_keep_the_first_prompt():
    masks = [make_mask(number, 0.5, 0, 10) for number in range(3)]
    assert [mask.prompt for mask in keep_best(masks, 0.9)] == [0]
    assert [mask.prompt for mask in keep_best(masks, 1.0)] == [0, 1, 2]
    assert keep_best([], 0.5) == []


@given(st.data())
def test_keep_best__is_what_the_matrix_of_all_pairs_says(data):
    count = data.draw(st.integers(1, 12))
    masks = []
    for number in range(count):
        left = data.draw(st.integers(0, 30))
        masks.append(
            make_mask(number, data.draw(st.sampled_from([0.5, 0.6, 0.7])), left, left + data.draw(st.integers(1, 9)))
        )
    limit = data.draw(st.sampled_from([0.0, 0.3, 0.7]))
    kept = keep_best(masks, limit)
    pixels = {mask.prompt: decode_rle(mask.rle) for mask in masks}

    def measure(a, b):
        return (pixels[a.prompt] & pixels[b.prompt]).sum() / (pixels[a.prompt] | pixels[b.prompt]).sum()

    expected = []
    for mask in sorted(masks, key=lambda mask: (-mask.score, mask.prompt)):
        if all(measure(mask, better) <= limit + 1e-12 for better in expected):
            expected.append(mask)
    assert [mask.prompt for mask in kept] == [mask.prompt for mask in expected]


def suppress(boxes_K4, scores_K, categories_K, iou_threshold):
    """Do what ``torchvision.ops.batched_nms`` does for one category."""
    assert not categories_K.any()
    boxes_K4, kept = boxes_K4.float(), []
    for place in torch.sort(scores_K, descending=True, stable=True).indices.tolist():
        box = boxes_K4[place]
        for other in boxes_K4[kept]:
            shared = (torch.minimum(box[2:], other[2:]) - torch.maximum(box[:2], other[:2])).clamp(min=0).prod()
            union = (box[2:] - box[:2]).prod() + (other[2:] - other[:2]).prod() - shared
            if shared / union > iou_threshold:
                break
        else:
            kept.append(place)
    return torch.tensor(kept, dtype=torch.int64)


@pytest.fixture(scope="module")
def official(micro_sam):
    """segment-anything's own model around the same encoder, with the same weights."""
    official = build_official_sam(Encoder(micro_sam), micro_sam.image_size)
    official.prompt_encoder.load_state_dict(micro_sam.prompt_encoder.state_dict())
    official.mask_decoder.load_state_dict(micro_sam.mask_decoder.state_dict())
    return official


class Encoder(nn.Module):
    """An image encoder as segment-anything's ``SamPredictor`` takes it."""

    def __init__(self, sam):
        super().__init__()
        self.img_size, self.encode = sam.image_size, sam.encode_image

    def forward(self, images):
        return self.encode(images)


def generate(official, image_HW3, prompts, filters, monkeypatch):
    """Find everything with segment-anything's own code, at the same points."""
    generator = import_segment_anything().automatic_mask_generator
    transforms = importlib.import_module("segment_anything.utils.transforms")
    monkeypatch.setattr(generator, "batched_nms", suppress)
    monkeypatch.setattr(transforms, "to_pil_image", Image.fromarray)
    monkeypatch.setattr(transforms, "resize", lambda image, size: image.resize(size[::-1], Image.Resampling.BILINEAR))
    return generator.SamAutomaticMaskGenerator(
        official,
        points_per_side=None,
        point_grids=[prompts.coords_NP2[:, 0] / np.array(image_HW3.shape[1::-1])],
        pred_iou_thresh=filters.min_score,
        stability_score_thresh=filters.min_stability,
        stability_score_offset=filters.stability_offset,
        box_nms_thresh=filters.max_box_overlap,
        min_mask_region_area=filters.min_area,
    ).generate(image_HW3)


@pytest.mark.parametrize("image_size", [256, 333])
def test_segment_grid__equals_segment_anything(micro_sam, official, monkeypatch, tmp_path, image_size):
    image_HW3 = draw_vineyard(tmp_path, image_size=image_size, count=1)[0].image_HW3[: image_size * 3 // 4]
    predictor = load_predictor(micro_sam)
    embedding = predictor.embed(image_HW3)
    prompts = build_grid(*image_HW3.shape[:2], 8)
    for filters in (
        GridFilter(0.01, max_box_overlap=0.7),
        GridFilter(0.3, min_stability=0.8, stability_offset=0.5, max_box_overlap=0.7),
        GridFilter(0.3, min_stability=0.5, max_box_overlap=0.9, min_area=60),
    ):
        advanced: list[int] = []
        found = segment_grid(predictor, embedding, prompts, filters, advanced.append)

        expected = generate(official, image_HW3, prompts, filters, monkeypatch)
        expected = [
            entry for entry in expected if entry["area"]
        ]  # without a stability score to pass, it keeps empty masks
        assert sum(advanced) == len(prompts)
        assert len(found.masks) == len(expected) > 5
        for mask, other in zip(found.masks, expected, strict=True):
            assert np.count_nonzero(decode_rle(mask.rle) != other["segmentation"]) <= 2
            assert mask.score == pytest.approx(other["predicted_iou"], abs=1e-4)
            np.testing.assert_allclose(prompts.coords_NP2[mask.prompt, 0], other["point_coords"][0], atol=1e-3)


def test_segment_grid__seed_rule_gives_one_mask_a_point(micro_sam, tmp_path):
    image_HW3 = draw_vineyard(tmp_path, count=1)[0].image_HW3
    predictor = load_predictor(micro_sam, multimask="never")
    embedding, prompts = predictor.embed(image_HW3), build_grid(256, 256, 4)

    found = segment_grid(predictor, embedding, prompts, GridFilter(0.0), [].append)

    expected = segment(predictor, embedding, prompts, min_score=0.0).masks
    assert found.masks == sorted(expected, key=lambda mask: -mask.score)


def test_remove_small_regions__fills_holes_and_drops_islands():
    mask_HW = np.zeros((20, 30), bool)
    mask_HW[2:14, 2:14] = True
    mask_HW[5:7, 5:7] = False  # a hole of 4 pixels
    mask_HW[9, 9] = mask_HW[10, 10] = False  # one of 2, that touch at a corner
    mask_HW[17:19, 20:22] = True  # an island of 4 pixels

    whole_HW, changed = remove_small_regions(mask_HW, 5)
    assert changed
    assert whole_HW.sum() == whole_HW[2:14, 2:14].sum() == 144
    part_HW, _ = remove_small_regions(mask_HW, 3)
    assert part_HW.sum() == 144
    np.testing.assert_array_equal(part_HW[5:7, 5:7], False)
    assert remove_small_regions(mask_HW, 2)[1] is False
    small_HW, changed = remove_small_regions(mask_HW & (np.arange(30) > 15), 50)
    assert changed
    assert small_HW.sum() == 4  # the largest stays
