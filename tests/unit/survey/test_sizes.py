from pathlib import Path

import numpy as np
import pytest

from tests.references.surveys import build_image, build_split
from vpexp.data.masks import encode_mask
from vpexp.survey.measure import compute_sides, summarize_images, summarize_objects

SMALL, LARGE = ((10, 10, 20, 20), 0), ((50, 0, 150, 100), 1)  # 100 pixels; 10,000, from top to bottom


def test_summarize_objects__areas_and_shares():
    split = build_split("train", [build_image(Path("a.png"), [SMALL, LARGE]), build_image(Path("b.png"), [SMALL])])

    sizes = summarize_objects(split, image_size=100)

    assert sizes is not None
    assert sizes.median_area == 100
    assert sizes.median_share == 100 / (100 * 200)
    assert (sizes.small, sizes.medium, sizes.large) == (2 / 3, 0, pytest.approx(1 / 3))
    assert sizes.at_border == pytest.approx(1 / 3)
    assert sizes.rectangles == 1.0
    assert sizes.hardly_seen == pytest.approx(2 / 3)  # 10 px in an image of 200: 5 px in one of 100
    assert sizes.in_parts == 0.0


def test_compute_sides__scale_with_the_longest_side_of_each_image():
    split = build_split(
        "train", [build_image(Path("a.png"), [SMALL]), build_image(Path("b.png"), [SMALL], size=(400, 100))]
    )

    np.testing.assert_allclose(compute_sides(split, 100), [5.0, 2.5])


def test_summarize_objects__counts_objects_in_parts():
    image = build_image(Path("a.png"), [SMALL, LARGE])
    mask_HW = np.zeros((100, 200), dtype=np.bool_)
    mask_HW[10:14, 10:20] = mask_HW[16:20, 10:20] = True
    two_parts = encode_mask(mask_HW)
    object.__setattr__(image, "masks", (two_parts, image.masks[1]))

    sizes = summarize_objects(build_split("train", [image]), 100)

    assert sizes is not None
    assert sizes.in_parts == 0.5
    assert sizes.rectangles == 0.5


def test_summarize_images__by_area():
    sizes = [(100, 200), (100, 200), (50, 40), (300, 300)]
    split = build_split("val", [build_image(Path(f"{i}.png"), [((0, 0, 9, 9), 0)], s) for i, s in enumerate(sizes)])

    found = summarize_images(split)

    assert found is not None
    assert (found.smallest, found.median, found.largest) == ((40, 50), (200, 100), (300, 300))
    assert (found.most_frequent, found.most_frequent_count, found.different) == ((200, 100), 2, 3)


def test_summaries__of_nothing_are_none():
    empty = build_split("train", [])

    assert summarize_images(empty) is None
    assert summarize_objects(empty, 100) is None
