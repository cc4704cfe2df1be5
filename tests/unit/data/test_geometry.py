import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vpexp.data.geometry import (
    MEAN,
    STD,
    compute_resized_size,
    normalize_and_pad,
    resize_image,
    scale_boxes,
    scale_points,
)

SIDES = st.integers(1, 5000)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (1365, 2048, (683, 1024)),  # 682.5 is rounded up
        (1536, 2048, (768, 1024)),
        (270, 480, (576, 1024)),
        (2048, 1365, (1024, 683)),
        (64, 64, (1024, 1024)),
        (1, 5000, (1, 1024)),  # never less than a pixel
    ],
)
def test_compute_resized_size__official_values(height, width, expected):
    assert compute_resized_size(height, width, 1024) == expected


@given(SIDES, SIDES, st.sampled_from([64, 256, 1024]))
def test_compute_resized_size__longest_side_is_the_image_size(height, width, image_size):
    resized = compute_resized_size(height, width, image_size)
    assert max(resized) == image_size
    assert min(resized) >= 1


@given(SIDES, SIDES, st.lists(st.tuples(st.floats(0, 5000), st.floats(0, 5000)), max_size=5))
def test_scale_points__and_back(height, width, points):
    resized = compute_resized_size(height, width, 1024)
    points_N2 = np.array(points, dtype=np.float64).reshape(-1, 2)
    there = scale_points(points_N2, (height, width), resized)
    back = scale_points(there, resized, (height, width))
    assert there.dtype == back.dtype == np.float32
    np.testing.assert_allclose(back, points_N2, rtol=1e-5, atol=1e-3)


def test_scale_points__each_axis_by_its_own_factor():
    scaled = scale_points(np.array([[2048.0, 1365.0], [0.0, 0.0]]), (1365, 2048), (683, 1024))
    np.testing.assert_allclose(scaled, [[1024, 683], [0, 0]])


@given(SIDES, SIDES)
def test_scale_boxes__corners_as_points(height, width):
    resized = compute_resized_size(height, width, 256)
    boxes_N4 = np.array([[0, 0, width, height], [1.5, 2.5, 3.5, 4.5]], dtype=np.float32)
    scaled = scale_boxes(boxes_N4, (height, width), resized)
    np.testing.assert_allclose(scaled[0], [0, 0, resized[1], resized[0]], rtol=1e-5)
    np.testing.assert_allclose(scaled[:, :2], scale_points(boxes_N4[:, :2], (height, width), resized))
    np.testing.assert_allclose(scale_boxes(scaled, resized, (height, width)), boxes_N4, rtol=1e-4, atol=1e-3)


def test_scale_boxes__no_box():
    assert scale_boxes(np.zeros((0, 4), dtype=np.float32), (10, 20), (5, 10)).shape == (0, 4)


def test_resize_image__is_pil_bilinear():
    image_HW3 = np.random.default_rng(0).integers(0, 256, (90, 121, 3), dtype=np.uint8)
    resized = resize_image(image_HW3, 64)
    expected = np.asarray(Image.fromarray(image_HW3).resize((64, 48), Image.Resampling.BILINEAR))
    assert resized.dtype == np.uint8
    np.testing.assert_array_equal(resized, expected)


def test_resize_image__of_the_right_size_is_a_copy():
    image_HW3 = np.zeros((64, 32, 3), dtype=np.uint8)
    resized = resize_image(image_HW3, 64)
    resized[:] = 1
    assert not image_HW3.any()


def test_normalize_and_pad__pads_after_normalising():
    image_hw3 = np.full((3, 5, 3), 200, dtype=np.uint8)
    padded = normalize_and_pad(image_hw3, 8)
    assert padded.shape == (3, 8, 8)
    assert padded.dtype == np.float32
    expected = (200 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(padded[:, :3, :5], np.broadcast_to(expected[:, None, None], (3, 3, 5)), rtol=1e-6)
    assert not padded[:, 3:].any()
    assert not padded[:, :, 5:].any()
