"""No pixel above 0 lies outside of the region, and inside of it pixels are those of the whole computation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from vpexp.data.geometry import compute_resized_size
from vpexp.data.masks import NOWHERE
from vpexp.inference.upscaling import plan_upscaling
from vpexp.models.sam import upscale_logits

SIZES = st.integers(1, 400)


def draw_logits(image_size, smoothness, level, seed):
    """Blobs of low-resolution logits; the level says how little of them is above 0."""
    logits_hw = np.random.default_rng(seed).normal(size=(image_size // 4, image_size // 4))
    logits_hw = ndimage.gaussian_filter(logits_hw, smoothness)
    return (logits_hw - level * logits_hw.max()).astype(np.float32)


def upscale_all(logits_hw, image_size, original_hw):
    resized_hw = compute_resized_size(*original_hw, image_size)
    logits_11hw = torch.from_numpy(logits_hw)[None, None]
    whole_HW = upscale_logits(logits_11hw, image_size=image_size, resized_hw=resized_hw, original_hw=original_hw)[0]
    return whole_HW.numpy(), plan_upscaling(image_size // 4, image_size, resized_hw, original_hw)


@settings(max_examples=150)
@given(
    st.sampled_from([64, 128, 256]),
    st.tuples(SIZES, SIZES),
    st.tuples(st.sampled_from([0, 1, 3]), st.sampled_from([-1, 0, 0.6, 0.9, 1]), st.integers(0, 999)),
)
def test_upscale__equals_the_whole(image_size, original_hw, drawing):
    height, width = original_hw
    logits_hw = draw_logits(image_size, *drawing)
    whole_HW, upscaling = upscale_all(logits_hw, image_size, (height, width))
    region = upscaling.find_region(logits_hw)
    found_HW = np.zeros((height, width), dtype=bool)
    if region.area:
        part_hw = upscaling.upscale(logits_hw, region)
        found_HW[region.slices] = part_hw > 0
        np.testing.assert_allclose(part_hw, whole_HW[region.slices], atol=1e-6 * np.abs(logits_hw).max())
    clear_HW = np.abs(whole_HW) > 1e-6 * np.abs(logits_hw).max()
    np.testing.assert_array_equal(found_HW[clear_HW], (whole_HW > 0)[clear_HW])
    assert not (whole_HW > 0)[~found_HW & clear_HW].any()


@pytest.mark.parametrize("original_hw", [(1365, 2048), (333, 777), (2100, 900), (1024, 1024)])
def test_upscale__at_full_size(original_hw):
    logits_hw = draw_logits(1024, 6, 0.3, 0)
    logits_hw[:30] = logits_hw[:, 90:] = -1
    whole_HW, upscaling = upscale_all(logits_hw, 1024, original_hw)
    region = upscaling.find_region(logits_hw)
    assert region.top > 0
    found_HW = np.zeros(original_hw, dtype=bool)
    found_HW[region.slices] = upscaling.upscale(logits_hw, region) > 0
    assert np.count_nonzero(found_HW != (whole_HW > 0)) == 0
    assert found_HW.any()


@pytest.mark.parametrize("original_hw", [(400, 300), (45, 90), (200, 31)])
def test_find_region__one_logit_reaches_its_neighbourhood(original_hw):
    for place in [(0, 0), (3, 5), (15, 15), (9, 31), (31, 31)]:
        logits_hw = np.full((32, 32), -1e-6, dtype=np.float32)
        logits_hw[place] = 10
        whole_HW, upscaling = upscale_all(logits_hw, 128, original_hw)
        region = upscaling.find_region(logits_hw)
        outside_HW = np.ones(original_hw, dtype=bool)
        outside_HW[region.slices] = False
        assert not (whole_HW > 0)[outside_HW].any()
        assert region.area <= 0.2 * whole_HW.size
        if place == (31, 31):
            assert region == NOWHERE  # it lies in the padding


def test_find_region__nothing_above_0():
    _, upscaling = upscale_all(np.zeros((32, 32), np.float32), 128, (100, 90))
    for value in (0, -1, np.nan, -np.inf):
        assert upscaling.find_region(np.full((32, 32), value, np.float32)) == NOWHERE
