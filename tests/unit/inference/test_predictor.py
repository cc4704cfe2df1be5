"""Boxes and points in one point form."""

import numpy as np
import pytest

from vpexp.inference.predictor import build_prompts

BOXES = np.array([[1, 2, 30, 40], [5, 6, 7, 8]])
POINTS = np.array([[[9, 9], [8, 8], [7, 7]], [[1, 1], [2, 2], [3, 3]]])
LABELS = np.array([[1, 0, 1], [1, -1, -1]])


def test_build_prompts__boxes():
    prompts = build_prompts(BOXES, None, None)
    assert prompts.coords_NP2.tolist() == [[[1, 2], [30, 40]], [[5, 6], [7, 8]]]
    assert prompts.labels_NP.tolist() == [[2, 3], [2, 3]]


def test_build_prompts__points_with_and_without_labels():
    prompts = build_prompts(None, POINTS, LABELS)
    assert prompts.coords_NP2.tolist() == POINTS.tolist()
    assert prompts.labels_NP.tolist() == LABELS.tolist()
    assert build_prompts(None, POINTS, None).labels_NP.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_build_prompts__points_come_before_the_box():
    prompts = build_prompts(BOXES, POINTS, LABELS)
    assert prompts.coords_NP2.shape == (2, 5, 2)
    assert prompts.labels_NP.tolist() == [[1, 0, 1, 2, 3], [1, -1, -1, 2, 3]]
    assert prompts.coords_NP2[1, 3:].tolist() == [[5, 6], [7, 8]]


def test_build_prompts__any_number_type_and_lists():
    for boxes in (BOXES.astype(np.int16), BOXES.astype(np.float64), BOXES.tolist()):
        prompts = build_prompts(boxes, None, None)
        assert prompts.coords_NP2.dtype == prompts.labels_NP.dtype == np.float32
    assert build_prompts(None, POINTS.tolist(), LABELS.tolist()).labels_NP.dtype == np.float32


def test_build_prompts__none_of_them():
    assert build_prompts(np.zeros((0, 4)), None, None).coords_NP2.shape == (0, 2, 2)
    assert build_prompts(None, np.zeros((0, 3, 2)), None).labels_NP.shape == (0, 3)


@pytest.mark.parametrize(
    ("boxes", "points", "labels", "words"),
    [
        (None, None, None, "give boxes, points, or both"),
        (np.zeros(4), None, None, r"boxes must have shape \[N, 4\], not \[4\]"),
        (np.zeros((2, 3)), None, None, "boxes must have shape"),
        (None, np.zeros((3, 2)), None, r"points must have shape \[N, P, 2\], not \[3, 2\]"),
        (None, np.zeros((1, 3, 3)), None, "points must have shape"),
        (None, POINTS, LABELS[:1], r"point_labels must have shape \[2, 3\], not \[1, 3\]"),
        (BOXES, POINTS[:1], LABELS[:1], "1 sets of points do not fit 2 boxes"),
        (BOXES, None, LABELS, "point_labels are given without points"),
    ],
)
def test_build_prompts__what_does_not_fit_is_told(boxes, points, labels, words):
    with pytest.raises(ValueError, match=words):
        build_prompts(boxes, points, labels)


def test_build_prompts__one_earlier_mask_a_prompt():
    logits = np.zeros((2, 16, 16))
    assert build_prompts(BOXES, None, None, logits).select(slice(1, 2)).mask_input_Nhw.shape == (1, 16, 16)
