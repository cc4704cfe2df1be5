"""Segmenting tile by tile: prompts are answered in their tile, and objects on seams come out once and whole."""

import numpy as np
import pytest
from scipy import ndimage

from vpexp.data.annotations import Region
from vpexp.data.masks import compute_area, decode_rle, encode_mask, encode_region
from vpexp.data.prompts import prompts_from_boxes
from vpexp.data.tiles import Tiling, put_back, see_mask, touches_seam
from vpexp.inference.predictor import ImageEmbedding, Prediction
from vpexp.inference.segment import FoundMask, GridFilter
from vpexp.inference.tiled import TileMask, join_tiles, search_by_grid, search_image, segment_tiles
from vpexp.inference.upscaling import plan_upscaling

FILTERS = GridFilter(min_score=0.5, max_box_overlap=0.7, max_overlap=0.7)


class TouchedBlobs:
    """A predictor: the bright blob that a point lies on, or that a box is filled with; sizes of what was encoded are kept."""

    image_size = 64
    multimask = "never"

    def __init__(self):
        self.embedded = []

    def embed(self, image_HW3):
        self.embedded.append(image_HW3.shape[:2])
        labels_HW, _ = ndimage.label(image_HW3[:, :, 0] > 128)
        return ImageEmbedding(labels_HW, image_HW3.shape[:2], image_HW3.shape[:2])

    def plan_upscaling(self, embedding):
        return plan_upscaling(self.image_size // 4, self.image_size, embedding.resized_hw, embedding.original_hw)

    def decode_prompts(self, embedding, prompts, *, multimask=None):
        masks = np.zeros((len(prompts), *embedding.original_hw), dtype=bool)
        for mask_HW, coords_P2, label in zip(
            masks, prompts.coords_NP2.astype(int), prompts.labels_NP[:, 0], strict=True
        ):
            (x, y), (right, bottom) = coords_P2
            if label == 1 and embedding.features[y, x]:
                mask_HW[:] = embedding.features == embedding.features[y, x]
            elif label == 2:
                mask_HW[y:bottom, x:right] = embedding.features[y:bottom, x:right] > 0
        return Prediction(masks, np.full(len(masks), 0.9, np.float32), np.zeros((len(masks), 16, 16), np.float32))


def draw_blobs(height, width, *boxes):
    image_HW3 = np.zeros((height, width, 3), np.uint8)
    for left, top, right, bottom in boxes:
        image_HW3[top:bottom, left:right] = 255
    return image_HW3


def find_all(image_HW3, tiling, points=8):
    done, predictor = [], TouchedBlobs()
    search = search_by_grid(predictor, points, FILTERS, done.append)
    prompts, found = search_image(image_HW3, tiling, lambda part_hw3, _: predictor.embed(part_hw3), search, FILTERS)
    assert sum(done) == len(prompts)
    return predictor, prompts, found


@pytest.mark.parametrize(
    "blobs",
    [
        [(40, 10, 52, 22)],  # across the edge at 48 and whole in the tile that begins at 36
        [(20, 4, 76, 20)],  # longer than a tile: cut by the edges of each
        [(30, 30, 62, 62), (2, 2, 10, 10), (90, 90, 100, 100)],  # in four tiles, whole in none
    ],
)
def test_grid__objects_on_seams_come_out_once_and_whole(blobs):
    image_HW3 = draw_blobs(100, 100, *blobs)
    predictor, prompts, found = find_all(image_HW3, Tiling(48, 0.25))
    assert set(predictor.embedded) == {(48, 48)}
    assert len(found.masks) == len(blobs)
    union_HW = np.zeros((100, 100), bool)
    for mask in found.masks:
        mask_HW = decode_rle(mask.rle)
        assert mask_HW.sum() in [(right - left) * (bottom - top) for left, top, right, bottom in blobs]
        x, y = prompts.coords_NP2[mask.prompt, 0].astype(int)
        assert mask_HW[y, x], "the prompt is one that gave the mask"
        union_HW |= mask_HW
    np.testing.assert_array_equal(union_HW, image_HW3[:, :, 0] > 0)
    assert found.overlapping > 0


def test_grid__without_tiles_and_in_one_tile_is_the_same():
    image_HW3 = draw_blobs(40, 60, (3, 3, 20, 20), (30, 10, 55, 35))
    (_, whole, expected), (_, one, found) = find_all(image_HW3, None), find_all(image_HW3, Tiling(64, 0.25))
    assert found == expected
    np.testing.assert_array_equal(whole.coords_NP2, one.coords_NP2)


def test_join_tiles__neighbours_that_seams_cut_stay_two():
    left, right = np.zeros((20, 40), bool), np.zeros((20, 40), bool)
    left[2:8, 10:24] = True  # ends at the edge of the left tile
    right[7:18, 16:30] = True  # begins at that of the right one, and shares a row with it
    masks = [
        TileMask(FoundMask(encode_mask(left), 0.8, 0), Region(0, 0, 20, 24), is_cut=True),
        TileMask(FoundMask(encode_mask(right), 0.9, 1), Region(0, 16, 20, 40), is_cut=True),
    ]
    assert [mask.prompt for mask in join_tiles(masks, [mask.window for mask in masks], FILTERS)] == [1, 0]


def test_join_tiles__parts_are_united_in_whatever_order_they_come():
    """Of three tiles in a row the outer two have no pixel in common; the one between them, which comes last, joins them."""
    parts = []
    for left, score in ((0, 0.9), (24, 0.8), (12, 0.7)):
        mask_HW = np.zeros((10, 40), bool)
        mask_HW[3:6, max(left, 2) : min(left + 16, 38)] = True
        parts.append(
            TileMask(FoundMask(encode_mask(mask_HW), score, left), Region(0, left, 10, left + 16), is_cut=True)
        )
    (kept,) = join_tiles(parts, [part.window for part in parts], FILTERS)
    assert (kept.score, kept.prompt) == (0.9, 0)
    whole_HW = np.zeros((10, 40), bool)
    whole_HW[3:6, 2:38] = True
    np.testing.assert_array_equal(decode_rle(kept.rle), whole_HW)


def test_join_tiles__a_part_of_a_whole_one_is_left_out_whatever_it_scores():
    whole, part = np.zeros((20, 40), bool), np.zeros((20, 40), bool)
    whole[2:10, 18:34], part[2:10, 18:24] = True, True
    masks = [
        TileMask(FoundMask(encode_mask(part), 0.99, 0), Region(0, 0, 20, 24), is_cut=True),
        TileMask(FoundMask(encode_mask(whole), 0.6, 1), Region(0, 16, 20, 40), is_cut=False),
    ]
    (kept,) = join_tiles(masks, [mask.window for mask in masks], FILTERS)
    assert (kept.prompt, kept.score) == (1, 0.6)


@pytest.mark.parametrize(("left", "count"), [(18, 0), (14, 1)])
def test_join_tiles__a_part_that_another_tile_sees_more_of_needs_its_word(left, count):
    """The right tile, in which nothing was found, begins at column 16."""
    windows = [Region(0, 0, 20, 24), Region(0, 16, 20, 40)]
    part = TileMask(FoundMask(encode_region(Region(2, left, 10, 24), 20, 40), 0.9, 0), windows[0], is_cut=True)
    assert len(join_tiles([part], windows, FILTERS)) == count


def test_join_tiles__of_many_tiles_each_object_comes_out_once_and_whole():
    rng, tiling, side = np.random.default_rng(0), Tiling(64, 0.25), 400
    objects = [
        Region(top, left, top + int(rng.integers(6, 90)), left + int(rng.integers(6, 26)))
        for top in range(0, 300, 100)
        for left in range(0, 360, 30)
    ]
    found = []
    for number, region in enumerate(objects):
        rle = encode_region(region, side, side)
        for window in tiling.plan(side, side):
            part = see_mask(rle, window)
            if compute_area(part):
                mask = FoundMask(put_back(part, window, side, side), float(rng.uniform(0.3, 1)), number)
                found.append(TileMask(mask, window, touches_seam(part, window, side, side)))
    assert len(found) > 3 * len(objects)
    kept = join_tiles([found[place] for place in rng.permutation(len(found))], tiling.plan(side, side), FILTERS)
    assert sorted(mask.prompt for mask in kept) == list(range(len(objects)))
    assert all(mask.rle == encode_region(objects[mask.prompt], side, side) for mask in kept)


def test_segment_tiles__each_prompt_in_its_window_in_the_order_given():
    image_HW3 = draw_blobs(100, 200, (150, 60, 170, 90), (5, 5, 15, 15), (20, 30, 120, 40))
    boxes = np.array(
        [[150, 60, 170, 90], [5, 5, 15, 15], [20, 30, 120, 40], [160, 70, 165, 80], [60, 0, 64, 4]], np.float32
    )
    predictor = TouchedBlobs()
    found = segment_tiles(predictor, image_HW3, prompts_from_boxes(boxes), Tiling(48, 0.25), min_score=0.0)
    assert [mask.prompt for mask in found.masks] == [0, 1, 2, 3]
    assert found.empty == 1
    for mask, (left, top, right, bottom) in zip(found.masks, boxes.astype(int), strict=False):
        expected = np.zeros((100, 200), bool)
        expected[top:bottom, left:right] = True
        np.testing.assert_array_equal(decode_rle(mask.rle), expected)
    assert (100, 125) in predictor.embedded, "a box that is longer than a tile has a window of its own"
    assert len(predictor.embedded) == 4
