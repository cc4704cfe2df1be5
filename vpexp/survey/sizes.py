"""Sizes of images and objects in a few numbers.

Legend: I images, M objects.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vpexp.data.masks import decode_rle
from vpexp.survey.measure import SplitMeasures

COCO_SMALL, COCO_MEDIUM = 32**2, 96**2
"""Areas in pixels at which COCO's medium and large objects begin."""
FEWEST_PIXELS = 8.0
"""Side, in pixels of the resized image, below which SAM hardly sees an object: its masks have a pixel for every four."""
BORDER_PIXELS = 1.0
RECTANGLE_FILL = 0.99
FEWEST_RECTANGLE_PIXELS = 64
"""A mask that fills its box is drawn as a box, unless it is so small that any shape would."""
WHOLE_IMAGE = 0.95
"""Share of the image above which an object is likely to be the background."""
SPECK_PIXELS = 16
EXAMINED = 1000
"""Masks that are expanded to count their parts."""


@dataclass(frozen=True, slots=True)
class ImageSizes:
    """The sizes of a split's images, (width, height)."""

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    most_frequent: tuple[int, int]
    most_frequent_count: int
    different: int


@dataclass(frozen=True, slots=True)
class ObjectSizes:
    """The sizes of a split's objects; shares are of all its objects, from 0 to 1.

    Attributes:
        median_area: pixels of the mask.
        median_share: of the image.
        small: share of objects that COCO calls small, by area in pixels of the original image.
        medium: share that it calls medium.
        large: share that it calls large.
        median_side: root of the area, in pixels of the image as the model sees it.
        low_side: the same of the object that is larger than 5 % of all.
        hardly_seen: share of objects whose side there is below ``FEWEST_PIXELS``.
        at_border: share of objects whose box touches an edge of the image.
        elongated: share of objects whose box is more than four times as long as wide.
        rectangles: share of objects whose mask fills its box.
        in_parts: share of objects in several parts, of those that were looked at.
    """

    median_area: float
    median_share: float
    small: float
    medium: float
    large: float
    median_side: float
    low_side: float
    hardly_seen: float
    at_border: float
    elongated: float
    rectangles: float
    in_parts: float


def summarize_images(split: SplitMeasures) -> ImageSizes | None:
    """Summarize the sizes of images, by their area; None where there is no image."""
    if not split.image_count:
        return None
    order = np.argsort(split.sizes_I2.prod(axis=1), kind="stable")
    sizes = [(int(width), int(height)) for height, width in split.sizes_I2[order]]
    counts = Counter(sizes)
    (most, count), *_ = counts.most_common(1)
    return ImageSizes(sizes[0], sizes[len(sizes) // 2], sizes[-1], most, count, len(counts))


def compute_sides(split: SplitMeasures, image_size: int) -> NDArray[np.float64]:
    """Compute how large each object is once its image is resized so that its longest side is ``image_size``.

    Returns:
        float64 [M], root of the mask's area in pixels of the resized image.
    """
    scale_I = image_size / split.sizes_I2.max(axis=1, initial=1)
    sides_M: NDArray[np.float64] = np.sqrt(split.areas_M) * scale_I[split.image_of_M]
    return sides_M


def summarize_objects(split: SplitMeasures, image_size: int) -> ObjectSizes | None:
    """Summarize the sizes of objects; None where there is no object."""
    if not split.object_count:
        return None
    areas_M, sizes_M2 = split.areas_M, split.sizes_I2[split.image_of_M]
    sides_M = compute_sides(split, image_size)
    shares_M = areas_M / sizes_M2.prod(axis=1)
    lengths_M2 = split.boxes_M4[:, 2:] - split.boxes_M4[:, :2]
    box_areas_M = lengths_M2.prod(axis=1)
    at_border_M = (split.boxes_M4[:, :2] < BORDER_PIXELS).any(axis=1)
    at_border_M |= (split.boxes_M4[:, 2:] > sizes_M2[:, ::-1] - BORDER_PIXELS).any(axis=1)
    is_rectangle_M = (areas_M >= RECTANGLE_FILL * box_areas_M) & (areas_M >= FEWEST_RECTANGLE_PIXELS)
    return ObjectSizes(
        median_area=float(np.median(areas_M)),
        median_share=float(np.median(shares_M)),
        small=float((areas_M < COCO_SMALL).mean()),
        medium=float(((areas_M >= COCO_SMALL) & (areas_M < COCO_MEDIUM)).mean()),
        large=float((areas_M >= COCO_MEDIUM).mean()),
        median_side=float(np.median(sides_M)),
        low_side=float(np.quantile(sides_M, 0.05)),
        hardly_seen=float((sides_M < FEWEST_PIXELS).mean()),
        at_border=float(at_border_M.mean()),
        elongated=float((lengths_M2.max(axis=1) > 4 * lengths_M2.min(axis=1)).mean()),
        rectangles=float(is_rectangle_M.mean()),
        in_parts=_count_in_parts(split),
    )


def _count_in_parts(split: SplitMeasures) -> float:
    """Count the objects in several parts among some, evenly chosen; the share of them."""
    from scipy import ndimage

    chosen = np.unique(np.linspace(0, split.object_count - 1, min(EXAMINED, split.object_count)).astype(np.int64))
    starts_I = np.cumsum(split.object_counts_I) - split.object_counts_I
    in_parts = 0
    for index, row in zip(chosen.tolist(), split.image_of_M[chosen].tolist(), strict=True):
        mask = split.images[row].masks[index - int(starts_I[row])]
        left, top, right, bottom = split.boxes_M4[index].astype(int).tolist()
        part = decode_rle(mask)[top:bottom, left:right]
        in_parts += ndimage.label(part, structure=np.ones((3, 3)))[1] > 1
    return in_parts / len(chosen)
