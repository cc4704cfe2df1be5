"""The bytes are pycocotools' own, whatever the mask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from vpexp.data.annotations import Region
from vpexp.data.masks import NOWHERE, encode_mask, encode_part, encode_region, find_region

SIDES = st.integers(1, 30)


def encode_by_pycocotools(mask_HW):
    return coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8))


@st.composite
def masks(draw):
    """Masks of some density inside of a part that may touch any border."""
    height, width = draw(SIDES), draw(SIDES)
    seed, density = draw(st.integers(0, 10**6)), draw(st.sampled_from([0, 0.02, 0.2, 0.5, 0.9, 1]))
    rows, columns = (sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in (height, width))
    mask_HW = np.zeros((height, width), dtype=bool)
    part = (slice(*rows), slice(*columns))
    mask_HW[part] = np.random.default_rng(seed).random(mask_HW[part].shape) < density
    return mask_HW


@settings(max_examples=300)
@given(masks())
def test_encode_part__equals_pycocotools(mask_HW):
    height, width = mask_HW.shape
    expected = encode_by_pycocotools(mask_HW)
    region = find_region(mask_HW)
    assert encode_mask(mask_HW) == expected
    for known in (region, Region(0, 0, height, width)) if region.area else (region,):
        assert encode_part(mask_HW[known.slices], known, height, width) == expected
        assert encode_mask(mask_HW, known) == expected


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (50, 1), (300, 400), (401, 399)])
def test_encode_part__of_every_kind(height, width):
    rows, columns = np.mgrid[:height, :width]
    centre = np.hypot(rows - height / 2, columns - width / 2) < 100
    pixel = np.zeros((height, width), dtype=bool)
    pixel[height - 1, width // 2] = True
    border = (rows == 0) | (columns == 0) | (rows == height - 1) | (columns == width - 1)
    for mask_HW in (
        rows < 0,
        rows >= 0,
        (rows + columns) % 2 == 0,
        rows % 2 == 1,
        columns % 2 == 1,
        centre,
        pixel,
        border,
    ):
        assert encode_mask(mask_HW) == encode_by_pycocotools(mask_HW)
        assert encode_mask(mask_HW.astype(np.uint8)) == encode_by_pycocotools(mask_HW)


def test_encode_part__runs_longer_than_a_megapixel():
    mask_HW = np.zeros((3000, 4000), dtype=bool)
    mask_HW[:, 1500:3200] = True
    mask_HW[7, 10] = mask_HW[2999, 3999] = True
    assert encode_mask(mask_HW) == encode_by_pycocotools(mask_HW)


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_find_region__tight_bounds(mask_HW):
    region = find_region(mask_HW)
    assert mask_HW[region.slices].sum() == mask_HW.sum()
    rows, columns = np.nonzero(mask_HW)
    if not rows.size:
        assert region == NOWHERE
        assert region.area == 0
    else:
        assert region == Region(rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)


@given(SIDES, SIDES, st.data())
def test_encode_region__equals_a_filled_mask(height, width, data):
    (top, bottom), (left, right) = (
        sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n)))) for n in (height, width)
    )
    mask_HW = np.zeros((height, width), dtype=bool)
    mask_HW[top:bottom, left:right] = True
    assert encode_region(Region(top, left, bottom, right), height, width) == encode_by_pycocotools(mask_HW)
