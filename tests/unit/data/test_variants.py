"""Turning images with their objects, against numpy's own turning of the expanded arrays."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from vpexp.data.annotations import AnnotatedImage, ImagePlace, Region
from vpexp.data.masks import compute_box, decode_rle, encode_mask
from vpexp.data.variants import (
    change_photo,
    draw_variant,
    list_variant_places,
    list_variants,
    turn_annotations,
    turn_boxes,
    turn_mask,
    turn_pixels,
)


def turn_by_pillow(pixels, variant):
    """Turn an image by another library's words for it."""
    picture = Image.fromarray(pixels)
    if variant >= 4:
        picture = ImageOps.mirror(picture)
    return np.asarray(picture.rotate(90 * (variant % 4), expand=True))


@st.composite
def masks(draw):
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    bits = draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask_HW = np.array(bits).reshape(height, width)
    mask_HW[draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))] = True
    return mask_HW


@pytest.mark.parametrize(
    ("augment", "expected"), [([], 1), (["flip"], 2), (["turn"], 4), (["flip", "turn"], 8), (["photo"], 1)]
)
def test_list_variants__are_different_images(augment, expected):
    pixels_HW = np.arange(9, dtype=np.uint8).reshape(3, 3)
    variants = list_variants(augment)
    assert variants[0] == 0
    assert len({turn_pixels(pixels_HW, variant).tobytes() for variant in variants}) == len(variants) == expected


@pytest.mark.parametrize("variant", range(8))
def test_turn_pixels__is_what_pillow_does(variant):
    pixels_HW3 = np.random.default_rng(0).integers(0, 256, (5, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(turn_pixels(pixels_HW3, variant), turn_by_pillow(pixels_HW3, variant))


@settings(max_examples=150, deadline=None)
@given(masks(), st.integers(0, 7))
def test_turn_mask__is_the_turned_array(mask_HW, variant):
    turned = turn_mask(encode_mask(mask_HW), variant)
    expected_HW = turn_pixels(mask_HW, variant)
    np.testing.assert_array_equal(decode_rle(turned), expected_HW)
    assert turned == encode_mask(expected_HW)
    box_4 = turn_boxes(compute_box(encode_mask(mask_HW))[None], *mask_HW.shape, variant)[0]
    np.testing.assert_array_equal(box_4, compute_box(turned))


def test_turn_annotations__turns_everything_in_the_frame_of_its_window():
    mask_HW = np.zeros((4, 6), dtype=bool)
    mask_HW[1:3, 0:5] = True
    rle, window = encode_mask(mask_HW), Region(10, 20, 14, 26)
    image = AnnotatedImage(
        "a.png", Path("a.png"), 4, 6, (rle,), compute_box(rle)[None], np.zeros(1, np.int64), ("0",), window=window
    )
    turned = turn_annotations(image, 1)
    assert (turned.height, turned.width, turned.window) == (6, 4, window)
    assert turned.place == ImagePlace(Path("a.png"), False, window, 1)
    np.testing.assert_array_equal(decode_rle(turned.masks[0]), np.rot90(mask_HW))
    np.testing.assert_array_equal(turned.boxes_N4[0], [1, 1, 3, 6])
    assert turn_annotations(image, 0) is image


def test_draw_variant__hangs_on_seed_epoch_and_index_alone():
    variants = list_variants(["flip", "turn"])
    drawn = [draw_variant(variants, 3, epoch, index) for epoch in range(20) for index in range(20)]
    assert drawn == [draw_variant(variants, 3, epoch, index) for epoch in range(20) for index in range(20)]
    assert np.bincount(drawn, minlength=8).min() > 25  # of 50 that are expected
    assert drawn != [draw_variant(variants, 4, epoch, index) for epoch in range(20) for index in range(20)]


def test_list_variant_places__leaves_out_the_image_itself():
    places = [ImagePlace(Path("a"), False), ImagePlace(Path("b"), True)]
    found = list_variant_places(places, list_variants(["flip"]))
    assert found == [ImagePlace(Path("a"), False, None, 4), ImagePlace(Path("b"), True, None, 4)]


def test_change_photo__keeps_the_picture_and_changes_its_colours():
    ramp_hw3 = np.linspace(40, 200, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    first, again, other = (change_photo(ramp_hw3, 0, epoch, 5) for epoch in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert first.dtype == np.uint8
    assert (first != other).mean() > 0.5
    assert np.corrcoef(first.ravel(), ramp_hw3.ravel())[0, 1] > 0.9
