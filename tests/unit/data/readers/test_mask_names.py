"""Which mask belongs to which image, by their names alone."""

import pytest

from vpexp.data.readers.semantic import align_names, find_common_start


def pair(images, masks):
    """Pair names that are written without endings; returns image -> mask."""
    by_image, by_mask, _ = align_names({name: [name] for name in images}, {name: [name] for name in masks})
    return {by_image[name][0]: files[0] for name, files in by_mask.items() if name in by_image}


@pytest.mark.parametrize("before", ["", "mask_", "gt-"])
@pytest.mark.parametrize(
    "after", ["_mask", "_masks", "_seg", "_label", "-mask", ".labels", "_cp_masks", "_Segmentation"]
)
def test_align_names__an_addition(before, after):
    images = ["img_1", "img_11", "img_2", "other"]
    masks = {name: f"{before}{name}{after}" for name in images}
    assert pair(images, masks.values()) == masks
    assert pair(images, [masks["img_11"]]) == {"img_11": masks["img_11"]}  # one mask, most images unlabelled
    assert pair(["img_1"], masks.values()) == {"img_1": masks["img_1"]}


def test_align_names__in_folders():
    images = ["left/1", "left/2", "right/1"]
    assert pair(images, ["left/1_mask", "right/1_mask"]) == {"left/1": "left/1_mask", "right/1": "right/1_mask"}


def test_align_names__both_have_endings_of_their_own():
    images = [f"aachen_{n:03}_leftImg8bit" for n in range(12)]
    masks = [f"aachen_{n:03}_gtFine_labelIds" for n in range(0, 12, 2)]
    assert pair(images, masks) == dict(zip(images[::2], masks, strict=True))
    assert pair(["x_rgb", "y_rgb", "zz_rgb"], ["x_gt", "y_gt"]) == {"x_rgb": "x_gt", "y_rgb": "y_gt"}


def test_align_names__alike_names_come_first():
    assert pair(["a", "b", "c"], ["a", "a_mask", "b_mask", "c_mask"]) == {"a": "a", "b": "b_mask", "c": "c_mask"}


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["1", "2"], ["11", "21"]),  # other numbers
        (["cell"], ["cellular"]),  # another word
        (["1"], ["2_1"]),  # nothing says that this is the mask of image 1
        (["scan"], ["scan_b"]),
        (["left/1"], ["right/1_mask"]),
    ],
)
def test_align_names__no_pair_is_made_up(images, masks):
    assert pair(images, masks) == {}


@pytest.mark.parametrize(
    ("texts", "expected"),
    [(["train/", "val/"], ""), (["deep/train/", "deep/test/"], "deep/t"), (["same"], "same"), (["ab", "abc"], "ab")],
)
def test_find_common_start__letter_by_letter(texts, expected):
    assert find_common_start(texts) == expected
