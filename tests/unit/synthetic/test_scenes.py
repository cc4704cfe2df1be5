"""What every kind of scene promises."""

import numpy as np
import pytest

from vpexp.synthetic import SCENES, Scene
from vpexp.synthetic.canvas import MIN_AREA

SIZE = (144, 176)
COUNT = 12


@pytest.fixture(scope="module", params=sorted(SCENES))
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def scenes(kind) -> list[Scene]:
    return [SCENES[kind].draw(np.random.default_rng([3, index]), *SIZE) for index in range(COUNT)]


def _compute_box_area(mask):
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)


def test_draw__same_seed_same_scene(kind, scenes):
    again = SCENES[kind].draw(np.random.default_rng([3, 1]), *SIZE)
    np.testing.assert_array_equal(again.image_HW3, scenes[1].image_HW3)
    np.testing.assert_array_equal(np.array(again.masks), np.array(scenes[1].masks))
    assert again.labels == scenes[1].labels


def test_draw__other_seed_other_scene(scenes):
    assert not np.array_equal(scenes[0].image_HW3, scenes[1].image_HW3)


def test_draw__image_and_masks_have_the_size_asked_for(scenes):
    for scene in scenes:
        assert scene.image_HW3.shape == (*SIZE, 3)
        assert scene.image_HW3.dtype == np.uint8
        assert all(mask.shape == SIZE and mask.dtype == bool for mask in scene.masks)


def test_draw__every_image_has_objects_with_a_category(kind, scenes):
    for scene in scenes:
        assert len(scene.masks) == len(scene.labels) >= 3
        assert all(0 <= label < len(SCENES[kind].categories) for label in scene.labels)


def test_draw__visible_parts_are_disjoint_and_not_tiny(scenes):
    for scene in scenes:
        masks = np.array(scene.masks)
        assert masks.sum(axis=0).max() == 1
        assert masks.sum(axis=(1, 2)).min() >= MIN_AREA


def test_draw__all_categories_occur(kind):
    categories = SCENES[kind].categories
    seen: set[int] = set()
    for index in range(40):
        seen.update(SCENES[kind].draw(np.random.default_rng([7, index]), 64, 64).labels)
        if len(seen) == len(categories):
            break
    assert seen == set(range(len(categories)))


def test_draw__box_does_not_tell_the_outline(scenes):
    # F1 of the filled boxes, pixels summed over objects
    pixels = sum(int(mask.sum()) for scene in scenes for mask in scene.masks)
    box_pixels = sum(int(_compute_box_area(mask)) for scene in scenes for mask in scene.masks)
    assert 0.5 < 2 * pixels / (pixels + box_pixels) < 0.8


def test_draw__image_tells_objects_from_their_ground(scenes):
    # the colours just inside and outside of an outline differ, for nearly every object
    differences = []
    for scene in scenes:
        image = scene.image_HW3.astype(float)
        for mask in scene.masks:
            edges = mask[:, 1:] != mask[:, :-1]
            differences.append(np.abs(image[:, 1:] - image[:, :-1])[edges].mean())
    assert np.median(differences) > 10
    assert np.mean(np.array(differences) > 2) > 0.9


@pytest.mark.parametrize("size", [(32, 32), (40, 200), (250, 33)])
def test_draw__odd_sizes(kind, size):
    for seed in range(4):
        scene = SCENES[kind].draw(np.random.default_rng(seed), *size)
        assert scene.image_HW3.shape == (*size, 3)
        assert all(mask.any() for mask in scene.masks)
