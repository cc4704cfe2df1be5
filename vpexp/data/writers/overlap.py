"""Which mask has a pixel that several claim, and which of two masks of one object stays.

Legend: K masks.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from pycocotools import mask as coco_mask

from vpexp.data.annotations import Rle
from vpexp.data.masks import choose_distinct, compute_area
from vpexp.data.writers.images import LabelledObject


def drop_repeated(objects: Sequence[LabelledObject], max_iou: float) -> list[LabelledObject]:
    """Drop predicted masks of an object that has a better one; all that people annotated stays, and is better than any."""
    given = [one.mask for one in objects if one.score is None]
    found = [place for place, one in enumerate(objects) if one.score is not None]
    if given and found:
        overlap_K = coco_mask.iou([objects[place].mask for place in found], given, [0] * len(given)).max(axis=1)
        found = [place for place, overlap in zip(found, overlap_K.tolist(), strict=True) if overlap <= max_iou]
    kept = choose_distinct(
        [objects[place].mask for place in found], [_rank(objects[place]) for place in found], max_iou
    )
    chosen = {found[place] for place in kept}
    return [one for place, one in enumerate(objects) if one.score is None or place in chosen]


def cut_overlaps(objects: Sequence[LabelledObject]) -> list[LabelledObject]:
    """Give each pixel to one mask: annotated before predicted, then the better score, then the smaller mask.

    Returns:
        What has pixels left, in the order given.
    """
    order = sorted(range(len(objects)), key=lambda place: (-_rank(objects[place]), compute_area(objects[place].mask)))
    taken: Rle | None = None
    cut: dict[int, LabelledObject] = {}
    for place in order:
        mask = objects[place].mask
        if taken is not None:
            mask = _subtract(mask, taken)
        if compute_area(mask):
            cut[place] = replace(objects[place], mask=mask)
            taken = mask if taken is None else coco_mask.merge([taken, mask])
    return [cut[place] for place in sorted(cut)]


def _rank(one: LabelledObject) -> float:
    return math.inf if one.score is None else one.score


def _subtract(mask: Rle, taken: Rle) -> Rle:
    """Take away the pixels of another mask, where there are any."""
    if not compute_area(coco_mask.merge([mask, taken], intersect=True)):
        return mask
    left_HW = coco_mask.decode(mask) & ~coco_mask.decode(taken).astype(bool)
    rest: Rle = coco_mask.encode(np.asfortranarray(left_HW))
    return rest
