"""The standard error of a difference of F1 against leaving out images by hand, the bootstrap, and drawing new data sets."""

import math

import numpy as np
import pytest

from vpexp.evaluation.pixel_metrics import compute_gain


def compute_f1(sums_I3):
    overlap, predicted, annotated = np.asarray(sums_I3).sum(axis=-2).T
    return 2 * overlap / (predicted + annotated)


def draw_images(rng, shape, gain):
    """Images of unlike size and difficulty, each measured by two models whose errors go together: [..., I, 3] twice."""
    annotated = rng.lognormal(8, 1, shape).astype(int) + 10
    share = np.clip(rng.normal(0.8, 0.1, shape), 0.05, 0.99)
    found = []
    for mean in (0.0, gain):
        part = np.clip(share + rng.normal(mean, 0.03, shape), 0.01, 1)
        predicted = (annotated * np.clip(rng.normal(1, 0.1, shape), 0.5, 2)).astype(int)
        found.append(np.stack([(part * np.minimum(predicted, annotated)).astype(int), predicted, annotated], axis=-1))
    return found


def compare(before_I3, after_I3):
    sums = [{str(i): tuple(row) for i, row in enumerate(rows.tolist())} for rows in (before_I3, after_I3)]
    return compute_gain(float(compute_f1(before_I3)), float(compute_f1(after_I3)), *sums)


def test_compute_gain__equals_the_jackknife_by_hand():
    before_I3, after_I3 = draw_images(np.random.default_rng(0), 7, 0.02)
    rest = [np.arange(7) != i for i in range(7)]
    left_out = [compute_f1(after_I3[keep]) - compute_f1(before_I3[keep]) for keep in rest]

    gain = compare(before_I3, after_I3)

    assert gain.images == 7
    assert gain.difference == gain.after - gain.before
    assert gain.standard_error == pytest.approx(math.sqrt(6 / 7 * sum((d - np.mean(left_out)) ** 2 for d in left_out)))


def test_compute_gain__standard_error_agrees_with_the_paired_bootstrap():
    rng = np.random.default_rng(1)
    before_I3, after_I3 = draw_images(rng, 60, 0.02)
    chosen = rng.integers(0, 60, (4000, 60))

    bootstrap = (compute_f1(after_I3[chosen]) - compute_f1(before_I3[chosen])).std()

    assert compare(before_I3, after_I3).standard_error == pytest.approx(bootstrap, rel=0.15)


def test_compute_gain__without_a_gain_one_difference_in_twenty_is_beyond_noise():
    rng = np.random.default_rng(2)
    before, after = draw_images(rng, (600, 60), 0.0)

    gains = [compare(*pair) for pair in zip(before, after, strict=True)]

    spread = np.std([gain.difference for gain in gains])
    assert np.mean([gain.standard_error for gain in gains]) == pytest.approx(spread, rel=0.1)
    assert 0.02 < np.mean([not gain.is_noise for gain in gains]) < 0.09


def test_compute_gain__of_images_that_both_were_measured_on():
    sums = {"a": (4, 5, 6), "b": (1, 2, 3), "c": (7, 8, 9)}
    after = {"a": (5, 5, 6), "b": (1, 2, 2), "d": (1, 1, 1)}

    assert compute_gain(0.5, 0.6, sums, after) == compute_gain(
        0.5, 0.6, {k: sums[k] for k in "ab"}, {k: after[k] for k in "ab"}
    )


def test_compute_gain__cannot_say_how_sure_a_single_image_is():
    for sums in ({}, {"a": (4, 5, 6)}):
        gain = compute_gain(0.5, 0.51, sums, {"a": (5, 5, 6)})
        assert math.isnan(gain.standard_error)
        assert not gain.is_noise
        assert str(gain) == "+0.0100"


def test_gain__is_said_with_its_standard_error():
    gain = compare(*draw_images(np.random.default_rng(0), 7, 0.2))

    assert str(gain) == f"{gain.difference:+.4f} ± {gain.standard_error:.4f} (standard error over 7 images)"
    assert not gain.is_noise
