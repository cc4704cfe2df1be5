"""The plan: what is there, what is missing, what has no room."""

import os
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.data.test_batch import save_scene
from vpexp.embeddings.plan import plan_embeddings
from vpexp.embeddings.store import EmbeddingStore, compute_image_key

SHAPE = (2, 2, 2)
PLENTY = 10**6


@pytest.fixture
def store(tmp_path):
    return EmbeddingStore(tmp_path / "embeddings", "ab" * 16, SHAPE)


@pytest.fixture
def images(tmp_path):
    return [save_scene(tmp_path / f"{i}.png", width=60 + i) for i in range(5)]


def compute_key(image):
    return compute_image_key(image.path.read_bytes(), exif_transpose=image.exif_transpose)


def write(store, *images):
    for image in images:
        store.write(compute_key(image), np.zeros(SHAPE, np.float32))


def test_plan__what_is_missing_in_order(store, images):
    write(store, images[1], images[3])
    plan = plan_embeddings(store, images, max_bytes=PLENTY)
    assert plan.missing == [images[0], images[2], images[4]]
    assert (plan.found, plan.damaged, plan.not_kept, plan.unreadable) == (2, 0, 0, 0)
    assert plan.keys == {(image.path, False): compute_key(image) for image in images}


def test_plan__the_same_image_under_two_names_is_one(store, images, tmp_path):
    copy = replace(images[0], path=tmp_path / "copy.png")
    copy.path.write_bytes(images[0].path.read_bytes())
    plan = plan_embeddings(store, [images[0], copy, images[0]], max_bytes=PLENTY)
    assert plan.missing == [images[0]]
    assert len(plan.keys) == 2
    assert len(set(plan.keys.values())) == 1


def test_plan__a_changed_file_is_another_image(store, images):
    write(store, images[0])
    save_scene(images[0].path, width=61)
    assert plan_embeddings(store, images[:1], max_bytes=PLENTY).missing == images[:1]


def test_plan__cut_off_entries_are_missing(store, images):
    write(store, *images)
    os.truncate(store.find_path(compute_key(images[2])), 30)
    plan = plan_embeddings(store, images, max_bytes=PLENTY)
    assert plan.missing == [images[2]]
    assert (plan.found, plan.damaged) == (4, 1)


def test_plan__files_that_cannot_be_read_are_left_out(store, images, tmp_path):
    gone = replace(images[0], path=tmp_path / "gone.png")
    plan = plan_embeddings(store, [gone, images[1]], max_bytes=PLENTY)
    assert plan.missing == [images[1]]
    assert plan.unreadable == 1
    assert (gone.path, False) not in plan.keys


def test_plan__keeps_as_many_as_fit_those_that_are_there_first(store, images):
    write(store, images[4])
    plan = plan_embeddings(store, images, max_bytes=3 * store.entry_bytes + 1)
    assert plan.missing == [images[0], images[1]]
    assert (plan.found, plan.not_kept) == (1, 2)
    assert plan.needed_bytes == 5 * store.entry_bytes
    assert set(plan.keys) == {(images[i].path, False) for i in (0, 1, 4)}
    assert store.has(compute_key(images[4]))


def test_plan__entries_of_others_make_room(store, images):
    other = EmbeddingStore(store.root, "cd" * 16, SHAPE)
    write(other, *images)
    plan = plan_embeddings(store, images[:2], max_bytes=5 * store.entry_bytes)
    assert plan.evicted == 2
    assert sum(other.has(compute_key(image)) for image in images) == 3


def test_plan__what_is_used_counts_as_new(store, images):
    write(store, *images[:3])
    for index, image in enumerate(images[:3]):
        os.utime(store.find_path(compute_key(image)), (index, index))
    plan_embeddings(store, images[:1], max_bytes=PLENTY)
    plan_embeddings(EmbeddingStore(store.root, "cd" * 16, SHAPE), images[3:4], max_bytes=3 * store.entry_bytes)
    assert [store.has(compute_key(image)) for image in images[:3]] == [True, False, True]
