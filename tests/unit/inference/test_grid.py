"""The grid of points, and which of overlapping masks stay."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpexp.data.masks import decode_rle, encode_mask
from vpexp.inference.segment import FoundMask, build_grid, keep_best


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
