"""What the readers hand on: images with their object masks, gathered in splits.

Shapes: N objects of one image, H W original size in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rle = dict[str, Any]
"""A COCO compressed run-length mask: ``{"size": [H, W], "counts": bytes}``."""

SCORE_DIGITS = 6
"""Decimals of a predicted IoU in files and replies."""

SPLIT_NAMES = ("train", "val", "test")


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatedImage:
    """One image file and the masks of its objects; pixels are read only when they are needed.

    Attributes:
        image_id: Name of the image, unique within its split (the file name as the data set gives it).
        path: The image file; it exists, its header reads, and its end is not cut off.
        height: Rows of the image as it is used, that is after ``exif_transpose``.
        width: Columns of the image as it is used.
        masks: One compressed mask an object, each of size (height, width) with at least one pixel.
        boxes_N4: float32, xyxy, tight bounds ``[x0, y0, x1, y1)`` of each mask, pixels of the original image.
        labels_N: int64, index into the data set's categories.
        object_ids: One name an object, unique within the image.
        exif_transpose: Whether the pixels are to be turned as the file's EXIF orientation says.
        box_only_N: bool, the objects that are annotated by a box alone: ``boxes_N4`` has it as annotated, the mask is the
            filled box. They are only read where they are asked for; None: all objects have masks.
    """

    image_id: str
    path: Path
    height: int
    width: int
    masks: tuple[Rle, ...]
    boxes_N4: NDArray[np.float32]
    labels_N: NDArray[np.int64]
    object_ids: tuple[str, ...]
    exif_transpose: bool = False
    box_only_N: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.masks)

    def select(self, chosen_N: NDArray[np.bool_]) -> "AnnotatedImage":
        """Take some of the objects."""
        places = np.flatnonzero(chosen_N).tolist()
        return replace(
            self,
            masks=tuple(self.masks[place] for place in places),
            boxes_N4=self.boxes_N4[chosen_N],
            labels_N=self.labels_N[chosen_N],
            object_ids=tuple(self.object_ids[place] for place in places),
            box_only_N=None if self.box_only_N is None else self.box_only_N[chosen_N],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """The usable images of one split, and what had to be left out.

    Attributes:
        name: ``train``, ``val`` or ``test``.
        source: The data set's own name of the subset that these images come from.
        images: Images with at least one object, ordered by their id.
        skipped: Reason -> number of objects or images left out for it.
        examples: Reason -> the first file or object that it hit.
    """

    name: str
    source: str
    images: Sequence[AnnotatedImage]
    skipped: dict[str, int]
    examples: dict[str, str]

    @property
    def object_count(self) -> int:
        """Count the objects of all images."""
        from vpexp.data.packed import count_objects  # which is made of these types

        return int(count_objects(self.images).sum())


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatedDataset:
    """A data set as vpexp uses it: up to three splits that share one list of categories.

    Attributes:
        format: Name of the format it was read as: coco, voc, datumaro or common_semantic_segmentation.
        root: The folder it was read from.
        categories: Category names; ``labels_N`` of the images index them.
        splits: Split name -> split; only the splits that were asked for.
        notes: One-line things to tell the user, such as "no test split: testing on val".
    """

    format: str
    root: Path
    categories: tuple[str, ...]
    splits: dict[str, Split]
    notes: tuple[str, ...]
