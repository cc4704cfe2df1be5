"""Prompts from masks: always where they should be, whatever the mask looks like."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from vpexp.config.schema import PromptConfig
from vpexp.data.annotations import AnnotatedImage
from vpexp.data.masks import compute_box, encode_mask
from vpexp.data.prompts import (
    Prompts,
    build_evaluation_prompts,
    draw_point_inside,
    draw_training_prompts,
    find_deepest_point,
    jitter_boxes,
    prompts_from_boxes,
    prompts_from_points,
)

any_mask = st_numpy.arrays(
    np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.booleans(), fill=st.nothing()
).filter(lambda mask_HW: bool(mask_HW.any()))
quick = settings(max_examples=60)


def annotate(masks, name="a.png"):
    rles = tuple(encode_mask(mask_HW) for mask_HW in masks)
    return AnnotatedImage(
        image_id=name,
        path=Path(name),
        height=masks[0].shape[0],
        width=masks[0].shape[1],
        masks=rles,
        boxes_N4=np.array([compute_box(rle) for rle in rles], dtype=np.float32).reshape(-1, 4),
        labels_N=np.zeros(len(rles), dtype=np.int64),
        object_ids=tuple(str(i) for i in range(len(rles))),
    )


def deepest(mask_HW):
    rle = encode_mask(mask_HW)
    return tuple(int(value) for value in find_deepest_point(rle, compute_box(rle)))


def measure_depth(mask_HW, row, column):
    """Distance of a pixel to the nearest one outside, the surroundings of the image included; by brute force."""
    padded = np.pad(mask_HW, 1)
    outside = np.argwhere(~padded) - 1
    return float(np.sqrt(((outside - [row, column]) ** 2).sum(axis=1)).min())


def picture(*rows):
    return np.array([[c == "#" for c in row] for row in rows])


@quick
@given(any_mask)
def test_find_deepest_point__is_inside_and_nothing_is_deeper(mask_HW):
    column, row = deepest(mask_HW)
    assert mask_HW[row, column]
    depths = [measure_depth(mask_HW, r, c) for r, c in np.argwhere(mask_HW)]
    assert measure_depth(mask_HW, row, column) == pytest.approx(max(depths))


def test_find_deepest_point__ring_with_a_hole():
    ring = np.ones((9, 9), dtype=bool)
    ring[2:7, 2:7] = False
    column, row = deepest(ring)
    assert ring[row, column]  # the centre of mass lies in the hole


def test_find_deepest_point__concave_mask():
    corner = picture("#........", "#........", "#........", "###......", "####.....", "#########")
    assert deepest(corner) == (1, 4)


def test_find_deepest_point__one_pixel_at_every_border():
    for row, column in ((0, 0), (0, 6), (4, 0), (4, 6), (2, 3)):
        mask_HW = np.zeros((5, 7), dtype=bool)
        mask_HW[row, column] = True
        assert deepest(mask_HW) == (column, row)


def test_find_deepest_point__border_of_the_image_counts_as_outline():
    assert deepest(np.ones((5, 9), dtype=bool)) == (2, 2)  # the first of the five deepest pixels
    assert deepest(np.ones((9, 9), dtype=bool)) == (4, 4)


@quick
@given(any_mask, st.integers(0, 2**32 - 1))
def test_draw_point_inside__hits_the_mask(mask_HW, seed):
    column, row = draw_point_inside(encode_mask(mask_HW), np.random.default_rng(seed)).astype(int)
    assert mask_HW[row, column]


def test_draw_point_inside__reaches_every_pixel():
    mask_HW = picture("#..#", "..#.")
    rng = np.random.default_rng(0)
    drawn = {tuple(draw_point_inside(encode_mask(mask_HW), rng).astype(int).tolist()) for _ in range(100)}
    assert drawn == {(0, 0), (3, 0), (2, 1)}


@quick
@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 4), max_size=5),
    st.floats(0, 3),
    st.integers(0, 2**32 - 1),
)
def test_jitter_boxes__contain_the_exact_box_and_stay_inside_the_image(height, width, corners, jitter, seed):
    x_N2 = np.sort(np.array([[a, b] for a, _, b, _ in corners], dtype=np.float32).reshape(-1, 2) * width, axis=1)
    y_N2 = np.sort(np.array([[a, b] for _, a, _, b in corners], dtype=np.float32).reshape(-1, 2) * height, axis=1)
    boxes_N4 = np.stack([x_N2[:, 0], y_N2[:, 0], x_N2[:, 1], y_N2[:, 1]], axis=1)
    moved_N4 = jitter_boxes(boxes_N4, jitter, (height, width), np.random.default_rng(seed))
    assert moved_N4.shape == boxes_N4.shape
    assert moved_N4.dtype == np.float32
    assert (moved_N4[:, :2] <= boxes_N4[:, :2]).all()
    assert (moved_N4[:, 2:] >= boxes_N4[:, 2:]).all()
    assert (moved_N4 >= 0).all()
    assert (moved_N4 <= [width, height, width, height]).all()
    sides_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
    assert (np.abs(moved_N4 - boxes_N4) <= jitter * np.concatenate([sides_N2, sides_N2], axis=1) + 1e-2).all()


def test_jitter_boxes__moves_each_side_by_its_own_share():
    boxes_N4 = np.tile(np.array([400, 400, 500, 450], dtype=np.float32), (2000, 1))
    shift = np.abs(jitter_boxes(boxes_N4, 0.4, (1000, 1000), np.random.default_rng(0)) - boxes_N4)
    np.testing.assert_allclose(shift.max(axis=0), [40, 20, 40, 20], rtol=0.02)
    np.testing.assert_allclose(shift.mean(axis=0), [20, 10, 20, 10], rtol=0.05)
    assert np.abs(np.corrcoef(shift.T) - np.eye(4)).max() < 0.1


def test_jitter_boxes__zero_is_exact():
    boxes_N4 = np.array([[1, 2, 3, 4]], dtype=np.float32)
    assert np.array_equal(jitter_boxes(boxes_N4, 0.0, (5, 5), np.random.default_rng(0)), boxes_N4)


def test_prompts__point_form():
    boxes = prompts_from_boxes(np.array([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=np.float32))
    assert boxes.coords_NP2.tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert boxes.labels_NP.tolist() == [[2, 3], [2, 3]]
    points = prompts_from_points(np.array([[1, 2], [3, 4]], dtype=np.float32))
    assert points.coords_NP2[:, 0].tolist() == [[1, 2], [3, 4]]
    assert points.labels_NP.tolist() == [[1, -1], [1, -1]]
    for prompts in (boxes, points):
        assert prompts.coords_NP2.dtype == prompts.labels_NP.dtype == np.float32
        assert len(prompts) == 2
        assert len(prompts.select(slice(0, 1))) == 1


def test_prompts__none_at_all():
    assert prompts_from_boxes(np.zeros((0, 4), np.float32)).coords_NP2.shape == (0, 2, 2)
    assert prompts_from_points(np.zeros((0, 2), np.float32)).labels_NP.shape == (0, 2)


MASKS = (
    picture("###.....", "###.....", "........", "........"),
    picture("........", "........", "....####", "....#..#"),
    picture("........", "......#.", "........", "........"),
)


@pytest.mark.parametrize("seed", range(20))
def test_draw_training_prompts__points_are_in_their_own_objects(seed):
    image = annotate(MASKS)
    chosen_N = np.array([2, 0])
    prompts = draw_training_prompts(image, chosen_N, PromptConfig(type="point"), np.random.default_rng(seed))
    assert prompts.labels_NP.tolist() == [[1, -1], [1, -1]]
    for index, (column, row) in zip(chosen_N, prompts.coords_NP2[:, 0].astype(int), strict=True):
        assert MASKS[index][row, column]


def test_draw_training_prompts__boxes_of_the_chosen_objects():
    image = annotate(MASKS)
    prompts = draw_training_prompts(image, np.array([1, 0]), PromptConfig(), np.random.default_rng(0))
    assert prompts.coords_NP2.reshape(-1, 4).tolist() == [[4, 2, 8, 4], [0, 0, 3, 2]]
    loose = draw_training_prompts(image, np.array([1, 0]), PromptConfig(jitter=0.5), np.random.default_rng(0))
    assert not np.array_equal(loose.coords_NP2, prompts.coords_NP2)
    assert image.boxes_N4.tolist() == [[0, 0, 3, 2], [4, 2, 8, 4], [6, 1, 7, 2]]  # drawing changes no annotation


def test_draw_training_prompts__both_gives_a_box_or_a_point():
    image = annotate(MASKS)
    chosen_N = np.tile(np.arange(3), 60)
    prompts = draw_training_prompts(image, chosen_N, PromptConfig(type="both"), np.random.default_rng(0))
    is_box_N = prompts.labels_NP[:, 0] == 2
    assert 0.35 < is_box_N.mean() < 0.65
    assert (prompts.labels_NP[is_box_N] == [2, 3]).all()
    assert (prompts.labels_NP[~is_box_N] == [1, -1]).all()
    np.testing.assert_array_equal(prompts.coords_NP2[is_box_N].reshape(-1, 4), image.boxes_N4[chosen_N[is_box_N]])
    for index, (column, row) in zip(chosen_N[~is_box_N], prompts.coords_NP2[~is_box_N, 0].astype(int), strict=True):
        assert MASKS[index][row, column]


@pytest.mark.parametrize("kind", ["box", "point", "both"])
def test_draw_training_prompts__same_seed_same_prompts(kind):
    image = annotate(MASKS)
    recipe = PromptConfig(type=kind, jitter=0.3)
    draws = [draw_training_prompts(image, np.arange(3), recipe, np.random.default_rng(s)) for s in (1, 1, 2)]
    assert np.array_equal(draws[0].coords_NP2, draws[1].coords_NP2)
    assert np.array_equal(draws[0].labels_NP, draws[1].labels_NP)
    assert not np.array_equal(draws[0].coords_NP2, draws[2].coords_NP2)


@pytest.mark.parametrize("kind", ["box", "point", "both"])
def test_build_evaluation_prompts__are_always_the_same(kind):
    recipe = PromptConfig(type=kind, test_jitter=0.3, jitter=0.9, max_per_image=1)
    first, second = (build_evaluation_prompts(annotate(MASKS), recipe) for _ in range(2))
    assert len(first) == 3  # max_per_image is training's
    assert np.array_equal(first.coords_NP2, second.coords_NP2)
    assert np.array_equal(first.labels_NP, second.labels_NP)


def test_build_evaluation_prompts__box_wins():
    prompts: Prompts = build_evaluation_prompts(annotate(MASKS), PromptConfig(type="both", jitter=0.5))
    assert (prompts.labels_NP == [2, 3]).all()
    np.testing.assert_array_equal(prompts.coords_NP2.reshape(-1, 4), annotate(MASKS).boxes_N4)


def test_build_evaluation_prompts__jitter_differs_by_image_and_object():
    recipe = PromptConfig(test_jitter=0.4)
    masks = (picture("........", "..##....", "..##....", "........"),) * 2
    one, other = (build_evaluation_prompts(annotate(masks, name), recipe).coords_NP2 for name in ("a.png", "b.png"))
    assert not np.array_equal(one, other)
    assert not np.array_equal(one[0], one[1])


def test_build_evaluation_prompts__points_are_the_deepest():
    prompts = build_evaluation_prompts(annotate(MASKS), PromptConfig(type="point"))
    assert prompts.coords_NP2[:, 0].astype(int).tolist() == [list(deepest(mask_HW)) for mask_HW in MASKS]
    assert (prompts.labels_NP == [1, -1]).all()


@pytest.mark.parametrize("name", ["a\udcff.png", "\ud800.png"])
def test_build_evaluation_prompts__name_that_is_not_utf_8(name):
    assert len(build_evaluation_prompts(annotate(MASKS, name), PromptConfig(test_jitter=0.4))) == 3
