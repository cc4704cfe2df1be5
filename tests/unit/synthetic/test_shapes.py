import numpy as np
import pytest
from scipy import ndimage

from vpexp.synthetic import draw_shapes
from vpexp.synthetic.shapes import SHAPES


@pytest.fixture(scope="module")
def scenes():
    return [draw_shapes(np.random.default_rng([1, index]), 192, 192) for index in range(30)]


def test_draw_shapes__sizes_span_from_8_pixels_to_half_of_the_image(scenes):
    sides = [
        max(np.ptp(np.flatnonzero(mask.any(axis=axis))) + 1 for axis in (0, 1))
        for scene in scenes
        for mask in scene.masks
    ]
    assert min(sides) <= 10
    assert max(sides) >= 90
    # log-uniform: as many below the geometric mean as above, but tiny ones are dropped
    assert 0.25 < np.mean(np.array(sides) < 28) < 0.7


def test_draw_shapes__holes_and_parts_occur(scenes):
    masks = [mask for scene in scenes for mask in scene.masks]
    holes = [ndimage.label(np.pad(~mask, 1, constant_values=True))[1] - 1 for mask in masks]
    parts = [ndimage.label(mask, np.ones((3, 3)))[1] for mask in masks]
    assert np.mean(np.array(holes) > 0) > 0.04
    assert np.mean(np.array(parts) > 1) > 0.04


def test_draw_shapes__a_share_looks_like_microscopy(scenes):
    cell = SHAPES.categories.index("cell")
    with_cells = [cell in scene.labels for scene in scenes]
    assert 0.1 < np.mean(with_cells) < 0.45
    assert all(set(scene.labels) == {cell} for scene, found in zip(scenes, with_cells, strict=True) if found)
