"""Data sets of a few objects, made by hand, as surveys are given them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vpexp.data.annotations import AnnotatedImage, Split
from vpexp.data.masks import compute_box, encode_mask
from vpexp.survey.measure import SplitMeasures, measure_split, summarize_objects
from vpexp.survey.survey import Survey

Box = tuple[int, int, int, int]
"""xyxy: an object that fills its box."""


def build_image(path: Path, objects: Sequence[tuple[Box, int]], size: tuple[int, int] = (100, 200)) -> AnnotatedImage:
    """Build an annotated image of filled boxes; the size is (height, width)."""
    masks = []
    for (x0, y0, x1, y1), _ in objects:
        mask_HW = np.zeros(size, dtype=np.bool_)
        mask_HW[y0:y1, x0:x1] = True
        masks.append(encode_mask(mask_HW))
    return AnnotatedImage(
        image_id=path.name,
        path=path,
        height=size[0],
        width=size[1],
        masks=tuple(masks),
        boxes_N4=np.stack([compute_box(mask) for mask in masks]),
        labels_N=np.array([label for _, label in objects], dtype=np.int64),
        object_ids=tuple(map(str, range(len(objects)))),
    )


def build_split(
    name: str, images: Sequence[AnnotatedImage], skipped: dict[str, int] | None = None, source: str | None = None
) -> SplitMeasures:
    """Measure images as a split."""
    skipped = skipped or {}
    examples = {reason: f"example of {reason}" for reason in skipped}
    return measure_split(Split(name, source or name, images, skipped, examples))


def build_survey(*splits: SplitMeasures, categories: tuple[str, ...] = ("cat", "dog", "eel"), **more) -> Survey:
    """Build a survey of splits, as a model of 100 px sees them."""
    sizes = {split.name: found for split in splits if (found := summarize_objects(split, 100)) is not None}
    return Survey("pets", Path("pets"), "coco", categories, splits, "sam_small", 100, sizes, **more)
