"""The nodes before the encoder do to an image of any size what vpexp does outside."""

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops
from PIL import Image

from vpexp.data.geometry import MEAN, STD, compute_resized_size, normalize_and_pad, resize_image
from vpexp.deploy.preprocessing import PREFIX, accept_any_size
from vpexp.inference.graph_predictor import get_core

SIZE = 64
FITTING = [(64, 64), (50, 64), (64, 41), (1, 64), (64, 1)]  # only padding is missing
RESIZED = [
    *((128, 128), (160, 120), (120, 160), (333, 211), (65, 63), (300, 64)),  # larger
    *((63, 65), (20, 30), (31, 17), (63, 63), (1, 1), (2, 1)),  # smaller
    *((1, 50), (50, 1), (1, 5000), (5000, 1), (7, 999), (3000, 40)),  # extreme
]


def build_pass_through(size):
    images = ops.parameter([1, 3, size, size], np.float32)
    return openvino.Model([ops.add(images, ops.constant(np.float32(0)))], [images], "nothing")


@pytest.fixture(scope="module")
def fitting():
    return accept_any_size(build_pass_through(SIZE), SIZE)


@pytest.fixture(scope="module")
def fit(fitting):
    compiled = get_core().compile_model(fitting, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images_13HW: compiled(images_13HW)[0]


def draw_image(height, width):
    """Smooth colours under noise, as photos are."""
    rng = np.random.default_rng(height * 7 + width)
    coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)).resize((width, height))
    noise = rng.integers(-20, 21, (height, width, 3))
    return np.clip(np.asarray(coarse, dtype=np.int64) + noise, 0, 255).astype(np.uint8)


def normalize(image_HW3):
    """As a client does that leaves the size alone."""
    normalized = (image_HW3.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
    return np.ascontiguousarray(normalized.transpose(2, 0, 1)[None])


def to_grey_levels(square_3SS):
    return square_3SS * np.array(STD, np.float64).reshape(3, 1, 1)


@pytest.mark.parametrize(("height", "width"), FITTING)
def test_accept_any_size__without_resizing_not_a_bit_changes(fit, height, width):
    image_HW3 = draw_image(height, width)
    np.testing.assert_array_equal(fit(normalize(image_HW3))[0], normalize_and_pad(image_HW3, SIZE))


@pytest.mark.parametrize(("height", "width"), RESIZED)
def test_accept_any_size__resized_as_vpexp_resizes_within_a_grey_level(fit, height, width):
    image_HW3 = draw_image(height, width)
    resized_h, resized_w = compute_resized_size(height, width, SIZE)
    by_pillow = Image.fromarray(image_HW3).resize((resized_w, resized_h), Image.Resampling.BILINEAR)

    got = fit(normalize(image_HW3))[0]

    expected = normalize_and_pad(np.asarray(by_pillow), SIZE)
    np.testing.assert_array_equal(expected, normalize_and_pad(resize_image(image_HW3, SIZE), SIZE))
    difference = np.abs(to_grey_levels(got - expected))
    assert difference.max() < 1.001
    assert np.mean(difference > 0.5) < 0.02  # where halves are rounded
    assert not got[:, resized_h:].any()
    assert not got[:, :, resized_w:].any()


def test_accept_any_size__what_is_prepared_already_passes(fit):
    prepared = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32) * 3
    np.testing.assert_array_equal(fit(prepared), prepared)


def test_accept_any_size__half_is_rounded_up_exactly(fit):
    """The rows of 147 x 6272 become 1.5, so two; in floating point one."""
    assert compute_resized_size(147, 6272, SIZE) == (2, 64)
    fitted = fit(normalize(np.full((147, 6272, 3), 255, dtype=np.uint8)))[0]
    assert np.abs(fitted).sum(axis=(0, 2)).astype(bool).tolist() == [True, True] + [False] * (SIZE - 2)


def test_accept_any_size__shapes_and_names(fitting):
    assert fitting.inputs[0].get_partial_shape().to_string() == "[1,3,?,?]"
    assert fitting.outputs[0].get_partial_shape().to_string() == f"[1,3,{SIZE},{SIZE}]"
    own = {"Parameter", "Result"}
    names = [node.get_friendly_name() for node in fitting.get_ops() if node.get_type_name() not in own]
    added = [name for name in names if name.startswith(PREFIX)]
    assert len(names) == len(set(names))
    assert len(names) - len(added) == 2  # the sum and its zero are the encoder here
    types = {node.get_type_name() for node in fitting.get_ops() if node.get_friendly_name().startswith(PREFIX)}
    assert {"Interpolate", "Pad", "Select"} <= types
