"""Pixel metrics: dice, F1, IoU over all object masks at original size, counted without expanding a mask.

And what a training changed of F1 on a split, and how much of that may be chance.
F1 is a ratio of sums over the images of a split, so the standard error of the difference of two models is the delete-one
jackknife's, which leaves out an image for both models at once: Efron and Tibshirani 1993, "An Introduction to the Bootstrap",
eq. 11.5. It says what other images of the same kind would change; that the epoch was chosen on them is not in it.

Legend: I images.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vpexp.console import format_count
from vpexp.data.annotations import Rle
from vpexp.data.masks import compute_area, compute_overlap

ImageSums = Mapping[str, tuple[int, int, int]]
"""By image id: pixels of the overlap, of the predicted and of the annotated masks, summed over the image's objects."""

NOISE = 2.0  # standard errors: a difference below them is chance in one of twenty comparisons


@dataclass(slots=True)
class PixelCounts:
    """Sums of pixel counts over object masks, in exact integers.

    dice and F1 are the same quantity, ``2 |P and G| / (|P| + |G|)``, from the same sums; both names are kept because
    reports use both.
    """

    overlap: int = 0
    predicted: int = 0
    annotated: int = 0
    object_ious: list[float] = field(default_factory=list)

    @property
    def sums(self) -> tuple[int, int, int]:
        """Pixels of the overlap, of the predicted and of the annotated masks."""
        return self.overlap, self.predicted, self.annotated

    def update(self, predicted: Sequence[Rle], annotated: Sequence[Rle]) -> None:
        """Add pairs of masks, the two of a pair of one size."""
        for own, truth in zip(predicted, annotated, strict=True):
            overlap, own_area, true_area = compute_overlap(own, truth), compute_area(own), compute_area(truth)
            self.overlap += overlap
            self.predicted += own_area
            self.annotated += true_area
            self.object_ious.append(overlap / max(own_area + true_area - overlap, 1))

    def merge(self, other: "PixelCounts") -> None:
        """Add the sums of another process."""
        self.overlap += other.overlap
        self.predicted += other.predicted
        self.annotated += other.annotated
        self.object_ious.extend(other.object_ious)

    def compute(self) -> dict[str, float]:
        """Compute ``dice``, ``f1-score``, ``iou`` (pixels summed over objects) and ``mean_iou`` (mean over objects)."""
        total = self.predicted + self.annotated
        dice = 2 * self.overlap / total if total else float("nan")
        union = total - self.overlap
        return {
            "dice": dice,
            "f1-score": dice,
            "iou": self.overlap / union if union else float("nan"),
            "mean_iou": self._average_ious(),
        }

    def _average_ious(self) -> float:
        """Sum exactly: the mean must not depend on the order in which processes saw the objects."""
        return math.fsum(self.object_ious) / len(self.object_ious) if self.object_ious else float("nan")


@dataclass(frozen=True, slots=True)
class Gain:
    """A difference of F1 between two models on the same images.

    Attributes:
        before: F1 of the first.
        after: F1 of the second.
        standard_error: of the difference, over images; NaN where it is unknown (one image, sums not recorded).
        images: that both were measured on.
    """

    before: float
    after: float
    standard_error: float
    images: int

    @property
    def difference(self) -> float:
        """What was gained."""
        return self.after - self.before

    @property
    def is_noise(self) -> bool:
        """Whether the difference is smaller than two standard errors."""
        return abs(self.difference) < NOISE * self.standard_error

    def __str__(self) -> str:
        error = f" ± {self.standard_error:.4f} (standard error over {format_count(self.images, 'image')})"
        return f"{self.difference:+z.4f}{error if math.isfinite(self.standard_error) else ''}"


def compute_gain(before: float, after: float, sums_before: ImageSums, sums_after: ImageSums) -> Gain:
    """Compare two models on a split.

    Args:
        before: F1 of the first.
        after: F1 of the second.
        sums_before: of the first; empty where they were not recorded.
        sums_after: of the second.
    """
    common = [image for image in sums_after if image in sums_before]  # a file may have been damaged in between
    before_I3, after_I3 = (
        np.array([sums[image] for image in common], dtype=np.int64).reshape(-1, 3) for sums in (sums_before, sums_after)
    )
    return Gain(before, after, _estimate_standard_error(before_I3, after_I3), len(common))


def _estimate_standard_error(before_I3: NDArray[np.int64], after_I3: NDArray[np.int64]) -> float:
    count = len(before_I3)
    if count < 2:
        return math.nan
    differences_I = _leave_one_out(after_I3) - _leave_one_out(before_I3)
    return math.sqrt((count - 1) / count * float(np.square(differences_I - differences_I.mean()).sum()))


def _leave_one_out(sums_I3: NDArray[np.int64]) -> NDArray[np.float64]:
    """Compute F1 without each image in turn; every annotated mask has a pixel, so there is something left."""
    overlap_I, predicted_I, annotated_I = (sums_I3.sum(axis=0) - sums_I3).T
    return np.asarray(2 * overlap_I / (predicted_I + annotated_I), dtype=np.float64)
