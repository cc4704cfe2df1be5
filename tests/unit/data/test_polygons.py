import numpy as np
import pytest
from scipy import ndimage

from vpexp.data.masks import decode_rle, polygons_to_rle
from vpexp.data.writers.json_files import trace_contours


def _draw_masks(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        height, width = (int(side) for side in rng.integers(2, 30, 2))
        coarse = rng.random((height // 4 + 2, width // 4 + 2))
        yield rng.random((height, width)) < rng.choice([0.2, 0.5, 0.8])
        yield ndimage.zoom(coarse, 4, order=1)[:height, :width] > 0.5


def test_trace_contours__rectangle():
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:7] = True
    outer, holes = trace_contours(mask)
    assert not holes
    assert sorted(map(tuple, outer[0].tolist())) == [(2, 1), (2, 4), (7, 1), (7, 4)]


def test_trace_contours__empty():
    assert trace_contours(np.zeros((3, 3), bool)) == ([], [])


def test_trace_contours__counts_parts_and_holes():
    for mask in _draw_masks(60):
        outer, holes = trace_contours(mask)
        ground = np.pad(~mask, 1, constant_values=True)
        assert len(outer) == ndimage.label(mask)[1]
        assert len(holes) == ndimage.label(ground, np.ones((3, 3)))[1] - 1


def test_trace_contours__polygons_give_back_the_mask():
    checked = 0
    for mask in _draw_masks(60):
        outer, holes = trace_contours(mask)
        if outer and not holes:
            polygons = [polygon.ravel().tolist() for polygon in outer]
            np.testing.assert_array_equal(decode_rle(polygons_to_rle(polygons, *mask.shape)), mask)
            checked += 1
    assert checked > 20


@pytest.mark.parametrize("flip", [False, True])
def test_trace_contours__pixels_that_touch_at_a_corner_are_two_parts(flip):
    mask = np.eye(2, dtype=bool)
    outer, holes = trace_contours(mask[::-1] if flip else mask)
    assert len(outer) == 2
    assert not holes
