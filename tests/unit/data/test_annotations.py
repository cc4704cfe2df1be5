import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpexp.data.annotations import AnnotatedImage, ByteStrings, ImageTable, PackedImages, count_objects, list_places
from vpexp.data.masks import compute_box, encode_mask


def build_image(number, objects):
    rng = np.random.default_rng(number)
    height, width = 10 + number, 20
    masks = tuple(encode_mask(rng.random((height, width)) > 0.5) for _ in range(objects))
    return AnnotatedImage(
        image_id=f"{number}.png",
        path=Path(f"folder/ä\udcff/{number}.png"),
        height=height,
        width=width,
        masks=masks,
        boxes_N4=np.array([compute_box(mask) for mask in masks], dtype=np.float32).reshape(-1, 4),
        labels_N=rng.integers(0, 5, objects),
        object_ids=tuple(f"{number}-{place}" for place in range(objects)),
        exif_transpose=number % 2 == 1,
    )


IMAGES = tuple(build_image(number, objects) for number, objects in enumerate([2, 0, 3, 1, 0]))


def assert_same(one, other):
    for name in ("image_id", "path", "height", "width", "masks", "object_ids", "exif_transpose"):
        assert getattr(one, name) == getattr(other, name)
    for name in ("boxes_N4", "labels_N"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype == getattr(other, name).dtype


@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=5), max_size=6), st.data())
def test_byte_strings__any_range_of_any_text(texts, data):
    packed = ByteStrings.pack_texts(texts)
    packed.check(len(texts))
    start, end = sorted((data.draw(st.integers(0, len(texts))), data.draw(st.integers(0, len(texts)))))
    assert packed.take_texts(start, end) == texts[start:end]


def test_packed_images__are_as_good_as_a_tuple():
    images = PackedImages(ImageTable.pack(IMAGES))
    assert len(images) == len(IMAGES)
    for one, other in zip(images, IMAGES, strict=True):
        assert_same(one, other)
    assert_same(images[-2], IMAGES[-2])
    for part, other in zip(images[1:4][::2], IMAGES[1:4][::2], strict=True):
        assert_same(part, other)
    assert_same(images.select(np.array([3, 0]))[1], IMAGES[0])
    assert_same(pickle.loads(pickle.dumps(images))[2], IMAGES[2])  # as workers that are spawned get them
    with pytest.raises(IndexError):
        images[5]


def test_packed_images__a_change_of_an_image_stays_in_it():
    images = PackedImages(ImageTable.pack(IMAGES))
    images[0].boxes_N4[:] = 0
    images[0].masks[0]["size"].clear()
    assert_same(images[0], IMAGES[0])


@pytest.mark.parametrize("images", [IMAGES, PackedImages(ImageTable.pack(IMAGES))])
def test_count_objects__and_list_places(images):
    assert count_objects(images).tolist() == [2, 0, 3, 1, 0]
    assert count_objects(images[:0]).tolist() == []
    assert list_places(images[1:]) == [image.place for image in IMAGES[1:]]


def test_image_table__survives_arrays():
    for images in (IMAGES, ()):
        table = ImageTable.pack(images)
        again = PackedImages(ImageTable.from_arrays(table.to_arrays()))
        for one, other in zip(again, images, strict=True):
            assert_same(one, other)


@pytest.mark.parametrize("name", ImageTable.pack(IMAGES).to_arrays())
def test_image_table__columns_that_do_not_fit_are_refused(name):
    arrays = ImageTable.pack(IMAGES).to_arrays()
    with pytest.raises(ValueError, match=r"strings do not fit|different lengths"):
        ImageTable.from_arrays(arrays | {name: arrays[name][:-1]})
    del arrays[name]
    with pytest.raises(KeyError):
        ImageTable.from_arrays(arrays)
