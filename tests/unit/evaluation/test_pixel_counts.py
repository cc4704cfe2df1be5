"""Pixel metrics against counting pixel by pixel."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpexp.data.masks import encode_mask
from vpexp.evaluation.pixel_metrics import PixelCounts


def encode(masks_NHW):
    return [encode_mask(mask_HW) for mask_HW in masks_NHW]


def count_by_hand(pairs):
    both = predicted = annotated = either = 0
    ious = []
    for one, other in pairs:
        pixels = list(zip(one.ravel().tolist(), other.ravel().tolist(), strict=True))
        inter, union = sum(p and g for p, g in pixels), sum(p or g for p, g in pixels)
        both, either = both + inter, either + union
        predicted, annotated = predicted + sum(p for p, _ in pixels), annotated + sum(g for _, g in pixels)
        ious.append(inter / union if union else 0.0)
    return 2 * both / (predicted + annotated), both / either, sum(ious) / len(ious)


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.integers(0, 999))
def test_compute__equals_brute_force(count, height, width, seed):
    rng = np.random.default_rng(seed)
    predicted = rng.random((count, height, width)) > rng.random()
    annotated = rng.random((count, height, width)) > 0.5
    annotated[:, 0, 0] = True
    counts = PixelCounts()
    for start in range(0, count, 2):  # in parts
        counts.update(encode(predicted[start : start + 2]), encode(annotated[start : start + 2]))
    metrics = counts.compute()
    dice, iou, mean_iou = count_by_hand(list(zip(predicted, annotated, strict=True)))
    assert metrics["dice"] == metrics["f1-score"]  # the same number, to the bit
    assert metrics["dice"] == pytest.approx(dice, rel=1e-12)
    assert metrics["iou"] == pytest.approx(iou, rel=1e-12)
    assert metrics["mean_iou"] == pytest.approx(mean_iou, rel=1e-12)
    assert metrics["iou"] == pytest.approx(dice / (2 - dice), rel=1e-12)


def test_compute__pixels_and_objects_are_weighted_differently():
    counts = PixelCounts()
    big, small = np.ones((1, 10, 10), dtype=bool), np.zeros((1, 10, 10), dtype=bool)
    small[0, 0, 0] = True
    counts.update(encode(big), encode(big))
    counts.update(encode(np.zeros_like(small)), encode(small))
    metrics = counts.compute()
    assert metrics["iou"] == pytest.approx(100 / 101)
    assert metrics["mean_iou"] == pytest.approx(0.5)


def test_compute__counts_are_exact_beyond_32_bits():
    counts = PixelCounts(overlap=2**40, predicted=2**40 + 1, annotated=2**40)
    assert counts.compute()["dice"] == 2 * 2**40 / (2**41 + 1)


def test_compute__without_objects_is_no_number():
    assert all(math.isnan(value) for value in PixelCounts().compute().values())


def test_merge__equals_one_count():
    rng = np.random.default_rng(0)
    predicted, annotated = (encode(masks_NHW) for masks_NHW in rng.random((2, 6, 5, 5)) > 0.5)
    whole, first, second = PixelCounts(), PixelCounts(), PixelCounts()
    whole.update(predicted, annotated)
    first.update(predicted[:2], annotated[:2])
    second.update(predicted[2:], annotated[2:])
    first.merge(second)
    assert first == whole
