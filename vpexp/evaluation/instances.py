"""How well objects are found without prompts: a prediction may be of any object, or of none.

Beside COCO's mask AP (``MaskAveragePrecision``) stands what the microscopy field uses: mSA, the mean over IoU 0.5 to 0.95 of
TP / (TP + FP + FN), averaged over images (Caicedo et al. 2019, Data Science Bowl 2018), at the score that masks are kept from; and
precision, recall and F1 at an IoU of 0.5.

Legend: K predictions and N annotated objects of one image, T IoU thresholds, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from vpexp.data.annotations import AnnotatedImage, Rle
from vpexp.evaluation.average_precision import MaskAveragePrecision
from vpexp.inference.segment import FoundMask

IOUS = np.linspace(0.5, 0.95, 10)
LIMIT = 1000
"""Predictions of an image and class that count for AP and AR. COCO's 100 would leave out objects of crowded images."""
NONE = -1
"""In the place of a match: there is none."""


def match(ious_KN: NDArray[np.floating], min_iou: float) -> NDArray[np.int64]:
    """Give each prediction, the best first, the free object that it overlaps most, as COCO does.

    Args:
        ious_KN: rows in falling order of the score.
        min_iou: lowest IoU of a match.

    Returns:
        int64 [K], the object, or ``NONE``.
    """
    matched_K = np.full(len(ious_KN), NONE)
    free_N = np.ones(ious_KN.shape[1], dtype=bool)
    for place in np.flatnonzero((ious_KN >= min_iou).any(axis=1)).tolist():
        row_N = np.where(free_N, ious_KN[place], -1.0)
        best = int(row_N.argmax())
        if row_N[best] >= min_iou:
            matched_K[place], free_N[best] = best, False
    return matched_K


@dataclass(frozen=True, slots=True)
class _Image:
    """What came of an image: scores and classes of its predictions, the best first, and the matches of each threshold."""

    scores_K: NDArray[np.float32]
    labels_K: NDArray[np.int64]
    truths_N: NDArray[np.int64]
    matched_TK: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class InstanceResult:
    """What an evaluation without prompts found.

    Attributes:
        metrics: COCO's twelve numbers with classes, by up to ``LIMIT`` predictions an image and class (recall is ``mar_1000``);
            ``map_any_class`` and ``map_50_any_class`` without; ``msa``, ``precision``, ``recall``, ``f1`` at ``threshold``,
            where a match may be of another class; ``class_accuracy`` of these matches; NaN where one has no meaning.
        per_class: ``map_per_class`` and ``mar_1000_per_class`` by class name.
        threshold: lowest score that counts for ``msa``, ``precision``, ``recall`` and ``f1``.
        curve_M3: score, precision and recall after each prediction, the best first.
        confusion: int64 [C + 1, C + 1]: objects by row, predictions by column; the last of either is none.
        images: how many.
        objects: how many are annotated.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    threshold: float
    curve_M3: NDArray[np.float64]
    confusion: NDArray[np.int64]
    images: int
    objects: int


@dataclass(slots=True)
class InstanceEvaluator:
    """Takes images one by one, and computes the metrics at the end; what it keeps of one are run lengths and matches.

    Attributes:
        categories: class names.
    """

    categories: Sequence[str]
    _images: list[_Image] = field(default_factory=list)
    _with_classes: MaskAveragePrecision = field(init=False)
    _any_class: MaskAveragePrecision = field(init=False)

    def __post_init__(self) -> None:
        self._with_classes = MaskAveragePrecision(self.categories, limit=LIMIT)
        self._any_class = MaskAveragePrecision(("object",), limit=LIMIT)

    def update(
        self,
        predicted: Sequence[Rle],
        scores_K: NDArray[np.float32],
        labels_K: NDArray[np.int64],
        annotated: Sequence[Rle],
        truths_N: NDArray[np.int64],
    ) -> None:
        """Add an image.

        Args:
            predicted: masks.
            scores_K: how sure the model is of each.
            labels_K: their classes.
            annotated: the masks of the objects; there may be none.
            truths_N: their classes.
        """
        self._with_classes.update(predicted, scores_K, annotated, truths_N, predicted_labels_K=labels_K)
        zeros_K, zeros_N = np.zeros_like(labels_K), np.zeros_like(truths_N)
        self._any_class.update(predicted, scores_K, annotated, zeros_N, predicted_labels_K=zeros_K)
        order_K = np.argsort(-scores_K, kind="stable")
        ious_KN = np.zeros((len(predicted), len(annotated)))
        if len(predicted) and len(annotated):
            ious_KN = coco_mask.iou([predicted[k] for k in order_K], list(annotated), [0] * len(annotated))
        matched_TK = np.array([match(ious_KN, min_iou) for min_iou in IOUS])
        self._images.append(_Image(scores_K[order_K], labels_K[order_K], truths_N, matched_TK))

    def update_found(self, found: Sequence[FoundMask], image: AnnotatedImage) -> None:
        """Add what was found in an annotated image; a mask without a class counts as one of the first."""
        names = list(self.categories)
        labels_K = np.array([names.index(mask.label) if mask.label else 0 for mask in found], dtype=np.int64)
        scores_K = np.array([mask.score for mask in found], dtype=np.float32)
        self.update([mask.rle for mask in found], scores_K, labels_K, image.masks, image.labels_N)

    def compute(self, threshold: float | None = None) -> InstanceResult:
        """Compute all metrics; without a threshold at the one that has the best F1."""
        curve_M3 = self._compute_curve()
        if threshold is None:
            threshold = find_best_threshold(curve_M3)
        plain = self._any_class.compute()
        precision = self._with_classes.compute()
        metrics = {name: value for name, value in precision.items() if isinstance(value, float)}
        metrics |= {f"{name}_any_class": _as_float(plain[name]) for name in ("map", "map_50")}
        metrics |= self._count(threshold)
        per_class = {name: value for name, value in precision.items() if isinstance(value, dict)}
        objects = sum(len(image.truths_N) for image in self._images)
        confusion = self._build_confusion(threshold)
        return InstanceResult(metrics, per_class, threshold, curve_M3, confusion, len(self._images), objects)

    def _compute_curve(self) -> NDArray[np.float64]:
        """Compute score, precision and recall at an IoU of 0.5 after each prediction of all images, the best first."""
        scores_M = np.concatenate([np.zeros(0), *(image.scores_K for image in self._images)])
        hits_M = np.concatenate([np.zeros(0, bool), *(image.matched_TK[0] != NONE for image in self._images)])
        order_M = np.argsort(-scores_M, kind="stable")
        found_M, counts_M = np.cumsum(hits_M[order_M]), np.arange(1, len(scores_M) + 1)
        objects = max(1, sum(len(image.truths_N) for image in self._images))
        return np.stack([scores_M[order_M], found_M / counts_M, found_M / objects], axis=1)

    def _count(self, threshold: float) -> dict[str, float]:
        hits, predictions, objects, right = 0, 0, 0, 0
        accuracies = []
        for image in self._images:
            kept = int((image.scores_K >= threshold).sum())
            hits_T = (image.matched_TK[:, :kept] != NONE).sum(axis=1)
            union_T = kept + len(image.truths_N) - hits_T
            if union_T.any():  # nothing annotated and nothing found counts nothing
                accuracies.append(float(np.mean(hits_T / union_T)))
            hits, predictions, objects = hits + int(hits_T[0]), predictions + kept, objects + len(image.truths_N)
            matched_k = image.matched_TK[0, :kept]
            is_hit_k = matched_k != NONE
            right += int((image.truths_N[matched_k[is_hit_k]] == image.labels_K[:kept][is_hit_k]).sum())
        return {
            "msa": _divide(sum(accuracies), len(accuracies)),
            "precision": _divide(hits, predictions),
            "recall": _divide(hits, objects),
            "f1": _divide(2 * hits, predictions + objects),
            "class_accuracy": _divide(right, hits),
        }

    def _build_confusion(self, threshold: float) -> NDArray[np.int64]:
        count = len(self.categories)
        confusion = np.zeros((count + 1, count + 1), dtype=np.int64)
        for image in self._images:
            kept = int((image.scores_K >= threshold).sum())
            matched_k = image.matched_TK[0, :kept]
            truths_k = np.append(image.truths_N, count)[matched_k]  # NONE takes the last
            np.add.at(confusion, (truths_k, image.labels_K[:kept]), 1)
            missed_N = np.delete(image.truths_N, matched_k[matched_k != NONE])
            np.add.at(confusion, (missed_N, np.full(len(missed_N), count)), 1)
        return confusion


def find_best_threshold(curve_M3: NDArray[np.float64]) -> float:
    """Find the score with the best F1 at an IoU of 0.5, the highest of several; 0 where nothing matches."""
    if not len(curve_M3):
        return 0.0
    scores_M, precision_M, recall_M = curve_M3.T
    f1_M = 2 * precision_M * recall_M / np.maximum(precision_M + recall_M, 1e-12)
    f1_M[:-1][scores_M[:-1] == scores_M[1:]] = 0  # a threshold keeps all predictions of a score, or none
    return float(scores_M[int(f1_M.argmax())]) if f1_M.any() else 0.0


def compute_best_f1(scores_M: NDArray[np.floating], hits_M: NDArray[np.bool_], objects: int) -> float:
    """Compute the best F1 over all score thresholds.

    Args:
        scores_M: of all predictions.
        hits_M: whether each matches an object.
        objects: how many there are.
    """
    if not len(scores_M):
        return 0.0
    found_M = np.cumsum(hits_M[np.argsort(-scores_M, kind="stable")])
    return float((2 * found_M / (np.arange(1, len(found_M) + 1) + objects)).max())


def compute_box_ious(first_K4: NDArray[np.floating], second_N4: NDArray[np.floating]) -> NDArray[np.floating]:
    """Compute the IoU of each pair of boxes, xyxy: [K, N]."""
    low_KN2 = np.maximum(first_K4[:, None, :2], second_N4[None, :, :2])
    high_KN2 = np.minimum(first_K4[:, None, 2:], second_N4[None, :, 2:])
    shared_KN = np.prod(np.maximum(high_KN2 - low_KN2, 0), axis=2)
    first_K, second_N = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (first_K4, second_N4))
    ious_KN: NDArray[np.floating] = shared_KN / np.maximum(first_K[:, None] + second_N[None] - shared_KN, 1e-9)
    return ious_KN


def _divide(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _as_float(value: Any) -> float:
    return value if isinstance(value, float) else float("nan")
