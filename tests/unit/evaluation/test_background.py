"""Prompts on background touch no object, and what they return is compared with the objects by plain arrays."""

from pathlib import Path

import numpy as np
import pytest

from vpexp.data.annotations import AnnotatedImage
from vpexp.data.masks import compute_box, encode_mask
from vpexp.evaluation.background import MILLIONTHS, BackgroundCounts, draw_background_prompts

HEIGHT, WIDTH = 60, 90


def build_image(masks, image_id="a.png"):
    rles = tuple(encode_mask(mask_HW) for mask_HW in masks)
    boxes_N4 = np.array([compute_box(rle) for rle in rles], dtype=np.float32)
    names = tuple(map(str, range(len(rles))))
    return AnnotatedImage(
        image_id, Path(image_id), *masks[0].shape, rles, boxes_N4, np.zeros(len(rles), np.int64), names
    )


def draw_box(left, top, right, bottom):
    mask_HW = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    mask_HW[top:bottom, left:right] = True
    return mask_HW


@pytest.fixture
def image():
    return build_image([draw_box(5, 5, 25, 20), draw_box(50, 30, 60, 55), draw_box(70, 2, 74, 6)])


def test_draw_background_prompts__are_as_large_as_the_objects_and_touch_none(image):
    found = draw_background_prompts(image, 16)
    covered_HW = np.any([draw_box(5, 5, 25, 20), draw_box(50, 30, 60, 55), draw_box(70, 2, 74, 6)], axis=0)
    sizes = found.boxes_M4[:, 2:] - found.boxes_M4[:, :2]
    np.testing.assert_array_equal(sizes, image.boxes_N4[:, 2:] - image.boxes_N4[:, :2])
    assert not any(covered_HW[t:b, l:r].any() for l, t, r, b in found.boxes_M4.astype(int))  # noqa: E741
    assert len(found.points_M2) == 3
    assert not any(covered_HW[y - 1 : y + 2, x - 1 : x + 2].any() for x, y in found.points_M2.astype(int))
    again = draw_background_prompts(image, 16)
    np.testing.assert_array_equal(found.boxes_M4, again.boxes_M4)
    assert len(draw_background_prompts(image, 2).boxes_M4) == 2


def test_draw_background_prompts__leaves_out_what_has_no_place():
    found = draw_background_prompts(build_image([draw_box(0, 0, 80, HEIGHT)]), 16)
    assert [len(found.boxes_M4), len(found.points_M2)] == [0, 1]
    assert draw_background_prompts(build_image([draw_box(0, 0, WIDTH, HEIGHT)]), 16).list_prompts() == {}


def test_background_counts__share_of_objects_returned_and_iou_with_the_box(image):
    counts = BackgroundCounts()
    prompts = draw_background_prompts(image, 2).list_prompts()["box"]
    left, top, right, bottom = prompts.coords_NP2[1].ravel().astype(int)
    half_HW = draw_box(left, top, right, top + (bottom - top) // 2)
    counts.update("box", prompts, [image.masks[0], encode_mask(half_HW)], image, image.image_id)
    sums = {name: by_image["a.png"] for name, by_image in counts.sums.items()}
    assert sums["box_hits"] == (MILLIONTHS, 2 * MILLIONTHS, 2 * MILLIONTHS), "the first mask is an object, not the box"
    expected = half_HW.sum() / draw_box(left, top, right, bottom).sum()
    assert sums["box_iou"][0] == pytest.approx(MILLIONTHS * expected, abs=1)


def test_background_counts__an_empty_mask_is_no_object(image):
    counts = BackgroundCounts()
    prompts = draw_background_prompts(image, 1).list_prompts()["point"]
    counts.update("point", prompts, [encode_mask(np.zeros((HEIGHT, WIDTH), np.bool_))], image, image.image_id)
    assert counts.sums == {"point_hits": {"a.png": (0, MILLIONTHS, MILLIONTHS)}}
