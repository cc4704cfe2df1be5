"""Pixel metrics: dice, F1, IoU over all object masks at original size.

Legend: N objects, H W original size.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


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

    def update(self, predicted_NHW: NDArray[np.bool_], annotated_NHW: NDArray[np.bool_]) -> None:
        """Add N pairs of masks, both bool [N, H, W]."""
        overlap_N = np.count_nonzero(predicted_NHW & annotated_NHW, axis=(1, 2))
        predicted_N = np.count_nonzero(predicted_NHW, axis=(1, 2))
        annotated_N = np.count_nonzero(annotated_NHW, axis=(1, 2))
        self.overlap += int(overlap_N.sum())
        self.predicted += int(predicted_N.sum())
        self.annotated += int(annotated_N.sum())
        union_N = predicted_N + annotated_N - overlap_N
        self.object_ious.extend((overlap_N / np.maximum(union_N, 1)).tolist())

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
            "mean_iou": float(np.mean(self.object_ious)) if self.object_ious else float("nan"),
        }
