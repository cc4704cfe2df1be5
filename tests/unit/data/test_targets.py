"""Targets: masks on the grid of the loss lie where the resized image shows the object, and survive being packed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vpexp.data.batch import build_targets, rasterize_target
from vpexp.data.geometry import compute_resized_size, resize_image
from vpexp.data.masks import encode_mask

SIZE = 64
RESOLUTIONS = {1: "input", 4: "low"}


def put_into_square(mask_HW, resized_hw, stride):
    """Rasterize, and put the grid into the model's square as the logits lie in it."""
    target_RC = rasterize_target(encode_mask(mask_HW), resized_hw, RESOLUTIONS[stride])
    assert target_RC.dtype == np.uint8
    assert target_RC.shape == tuple(-(-side // stride) for side in resized_hw)
    square = np.zeros((SIZE // stride, SIZE // stride), dtype=np.uint8)
    square[: target_RC.shape[0], : target_RC.shape[1]] = target_RC
    return square


def compute_iou(one, other):
    return (one & other).sum() / max(1, (one | other).sum())


def average_cells(values_HW, cells_h, cells_w):
    """Mean over each cell of a grid laid over the image, exactly; by integrating the image."""
    height, width = values_HW.shape
    integral = np.zeros((height + 1, width + 1))
    integral[1:, 1:] = values_HW.cumsum(0).cumsum(1)

    def at(rows, columns):
        across = np.stack([np.interp(columns, np.arange(width + 1), line) for line in integral])
        return np.stack([np.interp(rows, np.arange(height + 1), line) for line in across.T]).T

    grid = at(np.linspace(0, height, cells_h + 1), np.linspace(0, width, cells_w + 1))
    sums = grid[1:, 1:] - grid[:-1, 1:] - grid[1:, :-1] + grid[:-1, :-1]
    return sums * cells_h * cells_w / (height * width)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 40), (17, 64)])
def test_rasterize_target__without_resizing_is_the_mask(height, width):
    mask_HW = np.random.default_rng(0).random((height, width)) > 0.5
    target = put_into_square(mask_HW, (height, width), 1)
    assert target.shape == (SIZE, SIZE)
    np.testing.assert_array_equal(target[:height, :width], mask_HW)
    assert not target[height:].any()
    assert not target[:, width:].any()


@settings(max_examples=60)
@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([1, 4]), st.integers(0, 1000))
def test_rasterize_target__a_pixel_is_in_where_most_of_it_is(height, width, stride, seed):
    rng = np.random.default_rng(seed)
    mask_HW = np.zeros((height, width), dtype=bool)
    for _ in range(3):
        top, left = rng.integers(height), rng.integers(width)
        mask_HW[top : top + rng.integers(1, height + 1), left : left + rng.integers(1, width + 1)] ^= True
    resized_h, resized_w = compute_resized_size(height, width, SIZE)
    target = put_into_square(mask_HW, (resized_h, resized_w), stride)
    assert target.shape == (SIZE // stride, SIZE // stride)
    # Independently: the share of each pixel of the square that the mask covers, then of each cell of stride pixels.
    square = np.zeros((SIZE, SIZE))
    square[:resized_h, :resized_w] = average_cells(mask_HW.astype(float), resized_h, resized_w)
    cells = SIZE // stride
    share = square.reshape(cells, stride, cells, stride).mean(axis=(1, 3))
    clear = np.abs(share - 0.5) > 0.3  # the filter looks beyond the pixel's edges
    if target.sum() == 1:  # the only pixel of an object smaller than that, which has a test of its own
        clear &= target == 0
    np.testing.assert_array_equal(target[clear].astype(bool), (share > 0.5)[clear])
    covered_h, covered_w = -(-resized_h // stride), -(-resized_w // stride)
    assert not target[covered_h:].any()
    assert not target[:, covered_w:].any()


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize(("height", "width"), [(480, 640), (333, 100), (40, 50), (900, 150)])
def test_rasterize_target__lines_up_with_the_resized_image(height, width, stride):
    """A picture of the mask goes the image's way (bilinear), its target the mask's: both must show the same place."""
    rows, columns = np.mgrid[:height, :width]
    mask_HW = ((rows / height - 0.4) / 0.35) ** 2 + ((columns / width - 0.55) / 0.4) ** 2 < 1
    image_HW3 = np.repeat(mask_HW[:, :, None].astype(np.uint8) * 255, 3, axis=2)
    resized_hw3 = resize_image(image_HW3, SIZE)
    square = np.zeros((SIZE, SIZE))
    square[: resized_hw3.shape[0], : resized_hw3.shape[1]] = resized_hw3[:, :, 0] / 255
    cells = SIZE // stride
    seen = square.reshape(cells, stride, cells, stride).mean(axis=(1, 3)) >= 0.5
    target = put_into_square(mask_HW, resized_hw3.shape[:2], stride).astype(bool)
    assert compute_iou(seen, target) > (0.93 if min(height, width) >= 100 else 0.75)
    centre_seen, centre_target = (np.argwhere(m).mean(axis=0) for m in (seen, target))
    assert np.abs(centre_seen - centre_target).max() < 0.25


def test_rasterize_target__objects_neither_grow_nor_shrink():
    rng = np.random.default_rng(0)
    area, exact_area = 0.0, 0.0
    for _ in range(60):
        height, width = rng.integers(64, 200, 2)
        rows, columns = np.mgrid[:height, :width]
        middle, radius = rng.uniform(0.3, 0.7, 2), rng.uniform(0.1, 0.3, 2)
        mask_HW = ((rows / height - middle[0]) / radius[0]) ** 2 + ((columns / width - middle[1]) / radius[1]) ** 2 < 1
        resized_h, resized_w = compute_resized_size(height, width, SIZE)
        area += put_into_square(mask_HW, (resized_h, resized_w), 1).sum()
        exact_area += mask_HW.mean() * resized_h * resized_w
    assert area == pytest.approx(exact_area, rel=3e-3)


def test_rasterize_target__object_smaller_than_a_pixel_is_one_pixel():
    mask_HW = np.zeros((1000, 1000), dtype=bool)
    mask_HW[505, 303] = True
    target = put_into_square(mask_HW, (50, 50), 1)
    assert target.sum() >= 1
    rows, columns = np.nonzero(target)
    assert abs(rows.mean() - 505 / 20) <= 1
    assert abs(columns.mean() - 303 / 20) <= 1


def test_rasterize_target__mask_up_to_the_border_stops_there():
    target = put_into_square(np.ones((30, 60), dtype=bool), (32, 64), 4)
    assert target[:8].all()
    assert not target[8:].any()
    ragged = put_into_square(np.ones((27, 64), dtype=bool), (27, 64), 4)
    assert ragged[:7].all()  # the last row is covered by three of its four pixels
    assert not ragged[7:].any()
    thin = put_into_square(np.ones((25, 64), dtype=bool), (25, 64), 4)
    assert not thin[6:].any()  # and here by one of four


def test_rasterize_target__at_original_size_is_the_mask():
    mask_HW = np.random.default_rng(0).random((37, 91)) > 0.5
    np.testing.assert_array_equal(rasterize_target(encode_mask(mask_HW), (26, 64), "original"), mask_HW)


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 6), st.integers(0, 1000))
def test_mask_targets__unpack_what_was_packed(height, width, count, seed):
    rng = np.random.default_rng(seed)
    masks = rng.random((count, height, width)) > 0.5
    targets = build_targets([encode_mask(mask_HW) for mask_HW in masks], (height, width), "original")
    assert len(targets) == count
    assert targets.bits_NX.nbytes == count * -(-height * width // 8)
    np.testing.assert_array_equal(targets.unpack().numpy(), masks)
    np.testing.assert_array_equal(targets.unpack(slice(1, 3)).numpy(), masks[1:3])


def test_mask_targets__unpack_on_a_device_as_on_the_cpu():
    """The shifts that a GPU runs, on tensors that only claim to be elsewhere."""
    masks = np.random.default_rng(0).random((3, 5, 7)) > 0.5
    targets = build_targets([encode_mask(mask_HW) for mask_HW in masks], (5, 7), "original")
    shifts_8 = torch.arange(7, -1, -1, dtype=torch.uint8)
    assert targets.to(torch.device("meta")).unpack().shape == (3, 5, 7)
    shifted = ((targets.bits_NX[:, :, None] >> shifts_8) & 1).flatten(1)[:, :35].reshape(3, 5, 7)
    np.testing.assert_array_equal(shifted.numpy(), masks)
