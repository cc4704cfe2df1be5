import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vpexp.data.masks import encode_mask
from vpexp.data.readers.base import ObjectMask, PlacedImage, gather_objects, make_unique, place_image
from vpexp.data.skipped import SkipLedger


def save(path, size=(20, 10), orientation=None):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new("RGB", size).save(path, exif=exif)
    return path


def test_place_image__turned_where_the_annotation_is(tmp_path):
    path = save(tmp_path / "a.jpg", orientation=6)
    ledger = SkipLedger()
    stored = place_image("a", path, (10, 20), ledger)
    turned = place_image("a", path, (20, 10), ledger)
    unknown = place_image("a", path, None, ledger)
    assert stored == PlacedImage("a", path, 10, 20, False)
    assert turned == unknown == PlacedImage("a", path, 20, 10, True)
    assert ledger.counts == {}


def test_place_image__cannot_be_used(tmp_path):
    ledger = SkipLedger()
    assert place_image("a", tmp_path / "gone.jpg", None, ledger) is None
    assert place_image("b", save(tmp_path / "b.jpg"), (1, 2), ledger) is None
    assert ledger.counts == {"image file is missing": 1, "image size differs from annotation": 1}


def test_place_image__counts_wide_images(tmp_path):
    Image.fromarray(np.zeros((10, 20), dtype=np.uint16)).save(tmp_path / "a.png")
    ledger = SkipLedger()
    place_image("a", tmp_path / "a.png", None, ledger)
    assert [one.images for one in ledger.remarks.values()] == [1]


def test_gather_objects__leaves_out_empty_masks(tmp_path):
    full, empty = np.ones((10, 20), dtype=bool), np.zeros((10, 20), dtype=bool)
    placed = PlacedImage("a", tmp_path / "a.jpg", 10, 20, False)
    ledger = SkipLedger()
    objects = [ObjectMask("1", encode_mask(empty), 0), ObjectMask("2", encode_mask(full), 3)]
    image = gather_objects(placed, objects, ledger)
    assert image.object_ids == ("2",)
    assert image.labels_N.dtype == np.int64
    assert image.boxes_N4.tolist() == [[0, 0, 20, 10]]
    assert ledger.counts == {"no pixel of the mask inside the image": 1}
    assert gather_objects(placed, objects[:1], ledger) is None
    assert ledger.counts["image left without objects"] == 1


@given(st.lists(st.sampled_from(["7", "7#2", "a"])))
def test_make_unique__always(names):
    unique = make_unique(names)
    assert len(set(unique)) == len(names)
    assert all(new.startswith(old) for new, old in zip(unique, names, strict=True))
