"""Pixel metrics: dice, F1, IoU over all object masks at original size, counted without expanding a mask."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from vpexp.data.annotations import Rle
from vpexp.data.masks import compute_area, compute_overlap


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
