"""How many objects of each class there are in each split.

Legend: K classes, M objects of a split.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vpexp.data.ledger import NO_ANNOTATIONS, NOTHING_USABLE
from vpexp.survey.measure import SplitMeasures

WITHOUT_OBJECTS = (NO_ANNOTATIONS, NOTHING_USABLE)
"""Reasons for which an image that can be read has nothing to learn from."""


def count_objects_by_class(split: SplitMeasures, classes: int) -> NDArray[np.int64]:
    """Count the objects of each class: int64 [K]."""
    counts_K: NDArray[np.int64] = np.bincount(split.labels_M, minlength=classes).astype(np.int64)
    return counts_K


def count_images_by_class(split: SplitMeasures, classes: int) -> NDArray[np.int64]:
    """Count the images in which each class occurs: int64 [K]."""
    seen = np.unique(np.stack([split.image_of_M, split.labels_M], axis=1), axis=0)
    counts_K: NDArray[np.int64] = np.bincount(seen[:, 1], minlength=classes).astype(np.int64)
    return counts_K


def count_images_without_objects(split: SplitMeasures) -> int:
    """Count the images that were left out because no object with a mask is in them."""
    return sum(split.skipped.get(reason, 0) for reason in WITHOUT_OBJECTS)


def order_classes(splits: Sequence[SplitMeasures], classes: int) -> list[int]:
    """Order the classes by how many objects they have, the most frequent first."""
    totals_K = sum((count_objects_by_class(split, classes) for split in splits), np.zeros(classes, dtype=np.int64))
    return [int(label) for label in np.argsort(-totals_K, kind="stable")]
