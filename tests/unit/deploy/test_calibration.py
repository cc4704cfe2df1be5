"""What quantization is calibrated on: training images, asked by boxes and points, many at once and one alone."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vpexp.config.schema import PromptConfig
from vpexp.data.prompts import NO_POINT
from vpexp.deploy.calibration import MAX_PROMPTS, read_calibration_set
from vpexp.errors import DataError


def read(images, *, count=6, seed=0, image_size=64):
    return read_calibration_set(images, image_size=image_size, recipe=PromptConfig(), count=count, seed=seed)


def test_read_calibration_set__same_seed_same_inputs(calibrate):
    first, again, other = calibrate(64), calibrate(64), calibrate(64, seed=1)
    assert [image.image_id for image in first.images] == [image.image_id for image in again.images]
    for image, same in zip(first.images, again.images, strict=True):
        np.testing.assert_array_equal(image.image_hw3, same.image_hw3)
        for call, same_call in zip(image.calls, same.calls, strict=True):
            np.testing.assert_array_equal(call.coords_NP2, same_call.coords_NP2)
    assert [image.image_id for image in first.images] != [image.image_id for image in other.images]


def test_read_calibration_set__asks_boxes_and_points_together_and_alone(calibrate, training_images):
    calibration = calibrate(64)
    counts = {image.image_id: len(image) for image in training_images}
    for image in calibration.images:
        boxes, box, points, point = (call.labels_NP for call in image.calls)
        objects = min(counts[image.image_id], MAX_PROMPTS)
        assert boxes.shape == points.shape == (objects, 2)
        assert set(boxes[:, 0]) == {2.0}
        assert set(points[:, 1]) == {NO_POINT}
        assert box.shape == (1, 2)
        assert point.shape == (1, 1)  # as the Model API sends it


def test_read_calibration_set__points_are_pixels_of_the_resized_image(calibrate):
    for image in calibrate(64).images:
        for call in image.calls:
            assert call.coords_NP2.dtype == np.float32
            assert call.coords_NP2.min() >= 0
            assert call.coords_NP2.max() <= 64


def test_read_calibration_set__takes_no_more_than_asked(calibrate):
    assert len(calibrate(64, count=2)) == 2


def test_read_calibration_set__replaces_what_cannot_be_read(tmp_path, training_images):
    broken = tmp_path / "broken.jpg"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(broken)
    broken.write_bytes(broken.read_bytes()[:200])
    images = [replace(training_images[0], image_id="broken", path=broken), *training_images[1:3]]
    calibration = read(images, count=3)
    assert {image.image_id for image in calibration.images} == {image.image_id for image in training_images[1:3]}
    assert list(calibration.unreadable) == ["broken"]


def test_read_calibration_set__no_objects(training_images):
    with pytest.raises(DataError, match="nothing to calibrate on"):
        read([])


def test_read_calibration_set__nothing_can_be_read(tmp_path, training_images):
    missing = replace(training_images[0], path=tmp_path / "gone.jpg")
    with pytest.raises(DataError, match=r"none of the 1 images of the train split can be read"):
        read([missing])


def test_build_encoder_inputs__are_what_a_predictor_sends(calibrate):
    calibration = calibrate(64)
    images = calibration.build_encoder_inputs(0)["images"]
    assert images.shape == (1, 3, 64, 64)
    assert images.dtype == np.float32
    assert images.min() > -3
    assert images.max() < 3


def test_build_decoder_inputs__one_entry_a_call(calibrate):
    calibration = calibrate(64, count=2)
    embeddings = [{"image_embeddings": np.full((1, 256, 4, 4), value, np.float32)} for value in (1, 2)]
    inputs = calibration.build_decoder_inputs(embeddings)
    assert [entry["image_embeddings"].flat[0] for entry in inputs] == [1] * 4 + [2] * 4
    for entry in inputs:
        assert entry["mask_input"].shape == (1, 1, 16, 16)
        assert entry["orig_size"].tolist() == [[64, 64]]
        assert len(entry["point_coords"]) == len(entry["point_labels"])
