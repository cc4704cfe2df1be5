import numpy as np
import pytest

from vpexp.data.masks import encode_mask
from vpexp.inference.mask_crops import SIDE, crop_masks


def encode(size, top, left, height, width):
    mask_HW = np.zeros(size, dtype=bool)
    mask_HW[top : top + height, left : left + width] = True
    return encode_mask(mask_HW)


def test_crop_masks__has_the_mask_in_its_middle_and_what_surrounds_it():
    image_HW3 = np.full((100, 120, 3), (10, 20, 30), np.uint8)
    image_HW3[40:60, 50:90] = (200, 100, 50)
    found = crop_masks(image_HW3, [encode((100, 120), 40, 50, 20, 40)])
    crop_4PP = found.crops_K4PP[0]
    assert crop_4PP.shape == (4, SIDE, SIDE)
    assert crop_4PP[:, SIDE // 2, SIDE // 2].tolist() == [200, 100, 50, 255]
    assert crop_4PP[:, 2, SIDE // 2].tolist() == [10, 20, 30, 0]
    assert crop_4PP[3].mean() / 255 == pytest.approx(20 * 40 / 50**2, abs=0.02)
    assert found.extents_K2[0].tolist() == pytest.approx(np.log([20 * 40 / 12000, 2]).tolist())


def test_crop_masks__is_black_outside_of_the_image():
    image_HW3 = np.full((40, 40, 3), 255, np.uint8)
    corner, pixel = encode((40, 40), 0, 0, 20, 20), encode((40, 40), 39, 39, 1, 1)
    found = crop_masks(image_HW3, [corner, pixel])
    assert not found.crops_K4PP[0, :, 0].any()
    assert not found.crops_K4PP[0, :, :, 0].any()
    assert found.crops_K4PP[0, :, SIDE // 2, SIDE // 2].tolist() == [255] * 4
    assert found.crops_K4PP[1, 3].max() > 200


def test_crop_masks__of_no_masks():
    found = crop_masks(np.zeros((8, 8, 3), np.uint8), [])
    assert found.crops_K4PP.shape == (0, 4, SIDE, SIDE)
    assert found.extents_K2.shape == (0, 2)
