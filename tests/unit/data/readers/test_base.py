import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vpexp.data.masks import encode_mask
from vpexp.data.readers.base import ObjectMask, PlacedImage, gather_objects, make_unique, place_image
from vpexp.data.skipped import SkipCounts


def save(path, size=(20, 10), orientation=None):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new("RGB", size).save(path, exif=exif)
    return path


def test_place_image__turned_where_the_annotation_is(tmp_path):
    path = save(tmp_path / "a.jpg", orientation=6)
    skips = SkipCounts()
    stored = place_image("a", path, (10, 20), skips)
    turned = place_image("a", path, (20, 10), skips)
    unknown = place_image("a", path, None, skips)
    assert stored == PlacedImage("a", path, 10, 20, False)
    assert turned == unknown == PlacedImage("a", path, 20, 10, True)
    assert skips.counts == {}


def test_place_image__cannot_be_used(tmp_path):
    skips = SkipCounts()
    assert place_image("a", tmp_path / "gone.jpg", None, skips) is None
    assert place_image("b", save(tmp_path / "b.jpg"), (1, 2), skips) is None
    assert skips.counts == {"image file is missing": 1, "image size differs from annotation": 1}


def test_place_image__counts_wide_images(tmp_path):
    Image.fromarray(np.zeros((10, 20), dtype=np.uint16)).save(tmp_path / "a.png")
    skips = SkipCounts()
    place_image("a", tmp_path / "a.png", None, skips)
    assert [one.images for one in skips.remarks.values()] == [1]


def test_gather_objects__leaves_out_empty_masks(tmp_path):
    full, empty = np.ones((10, 20), dtype=bool), np.zeros((10, 20), dtype=bool)
    placed = PlacedImage("a", tmp_path / "a.jpg", 10, 20, False)
    skips = SkipCounts()
    objects = [ObjectMask("1", encode_mask(empty), 0), ObjectMask("2", encode_mask(full), 3)]
    image = gather_objects(placed, objects, skips)
    assert image.object_ids == ("2",)
    assert image.labels_N.dtype == np.int64
    assert image.boxes_N4.tolist() == [[0, 0, 20, 10]]
    assert skips.counts == {"no pixel of the mask inside the image": 1}
    assert gather_objects(placed, objects[:1], skips) is None
    assert skips.counts["image left without objects"] == 1


@given(st.lists(st.sampled_from(["7", "7#2", "a"])))
def test_make_unique__always(names):
    unique = make_unique(names)
    assert len(set(unique)) == len(names)
    assert all(new.startswith(old) for new, old in zip(unique, names, strict=True))
