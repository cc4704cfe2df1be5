"""The numbers of a data set as columns: sizes of images, areas, boxes and classes of objects.

Legend: I images of a split, M objects of all its images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vpexp.data.masks import compute_area
from vpexp.data.progress import show_progress
from vpexp.data.types import AnnotatedDataset, AnnotatedImage, Split


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
    """Say whether a split is the val split once more, because the data set has no test split."""
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
