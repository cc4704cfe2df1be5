"""One pixel, one mask; one object, one mask."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vpexp.data.masks import decode_rle, encode_mask
from vpexp.data.writers.base import LabelledObject
from vpexp.stages.shared.predicted_dataset import cut_overlaps, drop_repeated


def make(mask, score, label="leaf"):
    return LabelledObject(encode_mask(np.asarray(mask, bool)), label, score)


@given(arrays(bool, (4, 6, 7)), st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=4, max_size=4))
def test_cut_overlaps__shares_out_every_pixel_once(masks, scores):
    objects = [make(mask, score) for mask, score in zip(masks, scores, strict=True)]

    cut = cut_overlaps(objects)

    decoded = [decode_rle(one.mask) for one in cut]
    assert np.array_equal(np.sum([np.zeros((6, 7)), *decoded], 0), masks.any(0))
    assert all(mask.any() for mask in decoded)
    if masks.any():
        ranks = [np.inf if score is None else score for score in scores]
        best = max((rank, -int(mask.sum())) for rank, mask in zip(ranks, masks, strict=True) if mask.any())
        untouched = [one for one in cut if one in objects]
        assert any((np.inf if one.score is None else one.score) == best[0] for one in untouched)


def test_drop_repeated__keeps_the_annotated_then_the_better():
    square = np.zeros((10, 10))
    square[2:8, 2:8] = 1
    shifted = np.roll(square, 1, axis=0)
    other = np.zeros((10, 10))
    other[9, 9] = 1
    objects = [make(square, 0.9), make(shifted, None), make(other, 0.1), make(square, 0.95)]
    assert drop_repeated(objects, 1.0) == objects
    assert drop_repeated(objects, 0.9) == objects[1:]
    assert drop_repeated(objects, 0.5) == objects[1:3]


def test_drop_repeated__all_that_is_annotated_stays():
    square = np.zeros((10, 10))
    square[2:8, 2:8] = 1
    objects = [make(square, None), make(square, 0.9), make(square, None, "stalk")]
    assert drop_repeated(objects, 0.5) == [objects[0], objects[2]]
