"""The numbers of a data set as columns: sizes of images, areas, boxes and classes of objects; and what sums them up.

Legend: I images of a split, M objects of all its images, K classes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vpexp.console import show_progress
from vpexp.data.annotations import AnnotatedDataset, AnnotatedImage, Split
from vpexp.data.masks import compute_area, decode_rle
from vpexp.data.skipped import NO_ANNOTATIONS, NOTHING_USABLE

WITHOUT_OBJECTS = (NO_ANNOTATIONS, NOTHING_USABLE)
"""Reasons for which an image that can be read has nothing to learn from."""

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


@dataclass(frozen=True, slots=True, eq=False)
class SplitMeasures:
    """The numbers of one split.

    Attributes:
        name: train, val or test.
        source: the data set's own name of it.
        images: the annotated images.
        image_ids: their names.
        paths: their files.
        turned: whether the EXIF orientation of each file counts.
        sizes_I2: int64, height and width.
        object_counts_I: int64, objects of each image.
        areas_M: int64, pixels of each mask.
        boxes_M4: float32, xyxy, pixels of the image.
        labels_M: int64, index into the categories.
        skipped: reason -> number of objects or images that were left out.
        examples: reason -> the first of them.
    """

    name: str
    source: str
    images: Sequence[AnnotatedImage]
    image_ids: tuple[str, ...]
    paths: tuple[Path, ...]
    turned: tuple[bool, ...]
    sizes_I2: NDArray[np.int64]
    object_counts_I: NDArray[np.int64]
    areas_M: NDArray[np.int64]
    boxes_M4: NDArray[np.float32]
    labels_M: NDArray[np.int64]
    skipped: Mapping[str, int]
    examples: Mapping[str, str]

    @property
    def image_count(self) -> int:
        """Count the images that have objects."""
        return len(self.image_ids)

    @property
    def object_count(self) -> int:
        """Count the objects that have a mask."""
        return len(self.areas_M)

    @property
    def image_of_M(self) -> NDArray[np.int64]:
        """The row of each object's image."""
        return np.repeat(np.arange(self.image_count, dtype=np.int64), self.object_counts_I)

    @property
    def title(self) -> str:
        """Name the split, and what the data set calls it where that is another name."""
        return self.name if self.source == self.name else f"{self.name} ({self.source})"


def measure_dataset(dataset: AnnotatedDataset) -> tuple[SplitMeasures, ...]:
    """Measure all splits; one that only stands in for another is left out, so that nothing counts twice."""
    return tuple(measure_split(split) for split in dataset.splits.values() if not _stands_in(split, dataset))


def _stands_in(split: Split, dataset: AnnotatedDataset) -> bool:
    """Return whether a split is the val split once more, because the data set has no test split."""
    val = dataset.splits.get("val")
    return split.name == "test" and val is not None and split.source == val.source


def measure_split(split: Split) -> SplitMeasures:
    """Measure one split; no pixel of an image is read."""
    ids, paths, turned, sizes, counts, areas, boxes, labels = [], [], [], [], [], [], [], []
    for image in show_progress(split.images, f"measuring {split.name}"):
        ids.append(image.image_id)
        paths.append(image.path)
        turned.append(image.exif_transpose)
        sizes.append((image.height, image.width))
        counts.append(len(image))
        areas += [compute_area(mask) for mask in image.masks]
        boxes.append(image.boxes_N4)
        labels.append(image.labels_N)
    return SplitMeasures(
        name=split.name,
        source=split.source,
        images=split.images,
        image_ids=tuple(ids),
        paths=tuple(paths),
        turned=tuple(turned),
        sizes_I2=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        object_counts_I=np.array(counts, dtype=np.int64),
        areas_M=np.array(areas, dtype=np.int64),
        boxes_M4=np.concatenate(boxes) if boxes else np.zeros((0, 4), dtype=np.float32),
        labels_M=np.concatenate(labels) if labels else np.zeros(0, dtype=np.int64),
        skipped=split.skipped,
        examples=split.examples,
    )


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


def compute_sides(split: SplitMeasures, image_size: int, tile: int | None = None) -> NDArray[np.float64]:
    """Compute how large each object is once its image, or a tile of it, is resized so that its longest side is ``image_size``.

    Args:
        split: the objects.
        image_size: pixels.
        tile: side of the tiles, pixels of the original image; None: the image is whole.

    Returns:
        float64 [M], root of the mask's area in pixels of the resized image.
    """
    longest_I = split.sizes_I2.max(axis=1, initial=1)
    scale_I = image_size / (longest_I if tile is None else np.minimum(longest_I, tile))
    sides_M: NDArray[np.float64] = np.sqrt(split.areas_M) * scale_I[split.image_of_M]
    return sides_M


def summarize_objects(split: SplitMeasures, image_size: int, tile: int | None = None) -> ObjectSizes | None:
    """Summarize the sizes of objects, see ``compute_sides``; None where there is no object."""
    if not split.object_count:
        return None
    areas_M, sizes_M2 = split.areas_M, split.sizes_I2[split.image_of_M]
    sides_M = compute_sides(split, image_size, tile)
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
