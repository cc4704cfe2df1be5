"""Tiles: every pixel is covered, every object and prompt has its tile, and masks come back where they were."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpexp.data.annotations import AnnotatedImage, Region, count_objects, list_places
from vpexp.data.masks import (
    compute_area,
    compute_box,
    decode_rle,
    encode_mask,
    encode_region,
    move_mask,
)
from vpexp.data.prompts import Prompts, prompts_from_boxes
from vpexp.data.tiles import (
    TiledImages,
    Tiling,
    assign_objects,
    measure_prompts,
    move_prompts,
    place_prompts,
    put_back,
    see_mask,
    touches_seam,
)

sides = st.integers(1, 70)
tilings = st.builds(Tiling, st.integers(4, 40), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75]))


def build_image(masks, height, width):
    rles = tuple(encode_mask(mask_HW) for mask_HW in masks)
    return AnnotatedImage(
        image_id="a.png",
        path=Path("a.png"),
        height=height,
        width=width,
        masks=rles,
        boxes_N4=np.array([compute_box(rle) for rle in rles], np.float32).reshape(-1, 4),
        labels_N=np.arange(len(rles)),
        object_ids=tuple(str(index) for index in range(len(rles))),
    )


def draw_mask(height, width, seed):
    """Draw a mask with at least one pixel: some rectangles, and holes in them."""
    rng = np.random.default_rng(seed)
    mask_HW = np.zeros((height, width), bool)
    for value in (True, True, False):
        top, left = rng.integers(height), rng.integers(width)
        mask_HW[top : top + rng.integers(1, height + 1), left : left + rng.integers(1, width + 1)] = value
    mask_HW[rng.integers(height), rng.integers(width)] = True
    return mask_HW


@given(length=sides, tiling=tilings)
def test_plan_axis__covers_all_and_overlaps_enough(length, tiling):
    starts = tiling.plan_axis(length)
    size = min(tiling.side, length)
    assert starts[0] == 0
    assert starts[-1] + size == length
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (size - steps >= tiling.overlap * size - 1e-6).all()
    assert len(starts) <= 1 + -(-(length - size) // max(1, int(tiling.side * (1 - tiling.overlap))))


@given(height=sides, width=sides, tiling=tilings)
def test_plan__lies_in_the_image_and_covers_every_pixel(height, width, tiling):
    seen_HW = np.zeros((height, width), int)
    for tile in tiling.plan(height, width):
        assert (tile.bottom - tile.top, tile.right - tile.left) == (min(tiling.side, height), min(tiling.side, width))
        seen_HW[tile.slices] += 1
    assert seen_HW.min() >= 1


def test_plan__an_image_that_is_no_larger_is_one_tile():
    assert Tiling(64, 0.25).plan(64, 50) == [Region(0, 0, 64, 50)]


def test_plan_axis__the_last_tile_ends_with_the_image():
    assert Tiling(512, 0.25).plan_axis(1000).tolist() == [0, 384, 488]
    assert Tiling(10, 0.1).plan_axis(28).tolist() == [0, 9, 18], "0.9 is a little less than nine tenths"


@settings(max_examples=200)
@given(
    height=sides, width=sides, frame=st.tuples(*[st.integers(-80, 80)] * 2, sides, sides), seed=st.integers(0, 10**6)
)
def test_move_mask__is_what_the_frame_shows(height, width, frame, seed):
    top, left, rows, columns = frame
    mask_HW = draw_mask(height, width, seed)
    shown_hw = np.pad(mask_HW, 160)[160 + top : 160 + top + rows, 160 + left : 160 + left + columns]
    assert move_mask(encode_mask(mask_HW), *frame) == encode_mask(shown_hw)


@given(height=sides, width=sides, tiling=tilings, seed=st.integers(0, 10**6))
def test_assign_objects__to_the_tile_that_has_most_of_them(height, width, tiling, seed):
    masks = [draw_mask(height, width, seed + index) for index in range(3)]
    choice = assign_objects(build_image(masks, height, width), tiling)
    plan = tiling.plan(height, width)
    for mask_HW, window_4, is_whole in zip(masks, choice.windows_N4.tolist(), choice.is_whole_N, strict=True):
        chosen = Region(*window_4)
        assert chosen in plan
        assert mask_HW[chosen.slices].sum() == max(mask_HW[tile.slices].sum() for tile in plan)
        assert is_whole == (mask_HW[chosen.slices].sum() == mask_HW.sum()) or not is_whole


def test_assign_objects__of_tiles_that_have_all_the_one_with_most_around():
    mask_HW = np.zeros((40, 100), bool)
    mask_HW[10:14, 31:35] = True  # in the tiles that begin at 0, 20 and 30 (40 wide)
    choice = assign_objects(build_image([mask_HW], 40, 100), Tiling(40, 0.5))
    assert choice.windows_N4.tolist() == [[0, 20, 40, 60]]
    assert choice.is_whole_N.tolist() == [True]


@given(height=sides, width=sides, tiling=tilings, seed=st.integers(0, 10**6))
def test_cut__each_object_once_and_as_the_tile_shows_it(height, width, tiling, seed):
    masks = [draw_mask(height, width, seed + index) for index in range(4)]
    images = [build_image(masks, height, width), build_image(masks[:1], height, width)]
    tiles = TiledImages.cut(images, tiling)
    assert count_objects(tiles).sum() == 5
    assert [len(tile) for tile in tiles] == count_objects(tiles).tolist()
    assert list_places(tiles) == [tile.place for tile in tiles]
    assert len({tile.image_id for tile in tiles[: int(tiles.tile_ends_I[0])]}) == tiles.tile_ends_I[0]
    seen = []
    for tile, objects_N in tiles.cut_image(0)[1]:
        window = tile.window or Region(0, 0, height, width)
        assert (tile.height, tile.width) == masks[0][window.slices].shape
        seen += objects_N.tolist()
        assert tile.labels_N.tolist() == objects_N.tolist()
        for rle, box_4, index in zip(tile.masks, tile.boxes_N4, objects_N, strict=True):
            np.testing.assert_array_equal(decode_rle(rle), masks[index][window.slices])
            assert box_4.tolist() == compute_box(rle).tolist()
            assert compute_area(rle)
            shown = put_back(rle, window, height, width)
            assert see_mask(shown, window) == rle
    assert sorted(seen) == [0, 1, 2, 3]


def test_cut__a_tile_that_is_the_image_is_the_image():
    image = build_image([draw_mask(20, 30, 1)], 20, 30)
    (tile,) = TiledImages.cut([image], Tiling(32, 0.25))
    assert (tile.image_id, tile.window, tile.place) == ("a.png", None, image.place)


def test_cut__counts_what_no_tile_holds():
    long_HW = np.zeros((20, 100), bool)
    long_HW[5:9, 10:90] = True
    short_HW = np.zeros((20, 100), bool)
    short_HW[5:9, 36:44] = True
    tiles = TiledImages.cut([build_image([long_HW, short_HW], 20, 100)], Tiling(40, 0.25))
    assert tiles.cut_objects == 1


boxes = st.tuples(st.floats(0, 60), st.floats(0, 60), st.floats(0.5, 60), st.floats(0.5, 60))


@given(height=sides, width=sides, tiling=tilings, box=boxes, point=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_place_prompts__in_a_window_that_holds_them_whole(height, width, tiling, box, point):
    low = np.minimum([box[0], box[1]], [width - 0.5, height - 0.5])
    high = np.minimum(low + box[2:], [width, height])
    corner = np.array(point, np.float32) * (width, height)
    coords = np.array([[low, high, corner], [corner, corner, corner]], np.float32)
    prompts = Prompts(coords, np.array([[2, 3, 0], [1, -1, -1]], np.float32))
    choice = place_prompts(prompts, tiling, height, width)
    plan = tiling.plan(height, width)
    bounds_N4 = measure_prompts(prompts, height, width)
    for window_4, bounds_4, is_tile in zip(choice.windows_N4.tolist(), bounds_N4, choice.is_whole_N, strict=True):
        window = Region(*window_4)
        assert 0 <= window.top < window.bottom <= height
        assert 0 <= window.left < window.right <= width
        left, top, right, bottom = bounds_4
        assert window.left <= left <= right <= window.right
        assert window.top <= top <= bottom <= window.bottom
        assert (window in plan) or not is_tile
        assert window.bottom - window.top >= min(tiling.side, height)
        moved = move_prompts(prompts, window)
        assert moved.labels_NP is prompts.labels_NP
    assert choice.is_whole_N[1], "a point lies in a tile"
    grouped = [index for _, members in choice.group() for index in members.tolist()]
    assert sorted(grouped) == [0, 1]


def test_place_prompts__as_large_as_they_need():
    large = prompts_from_boxes(np.array([[10, 10, 90, 20], [35, 0, 65, 10]], np.float32))
    choice = place_prompts(large, Tiling(40, 0.0), 100, 200)
    assert choice.is_whole_N.tolist() == [False, False]
    assert choice.windows_N4.tolist() == [[0, 0, 100, 100], [0, 30, 40, 70]], "a square with room, and a tile around it"


@pytest.mark.parametrize(
    ("region", "is_cut"),
    [
        (Region(0, 5, 4, 9), False),  # at the image's own edge
        (Region(36, 5, 40, 9), True),
        (Region(5, 0, 9, 4), True),
        (Region(5, 36, 9, 40), False),
        (Region(5, 5, 9, 9), False),
    ],
)
def test_touches_seam__where_the_image_goes_on(region, is_cut):
    window = Region(0, 60, 40, 100)  # the top right tile of an image of 100 x 100
    assert touches_seam(encode_region(region, 40, 40), window, 100, 100) is is_cut
