"""What every reader offers, and the steps that all of them share: placing an image, gathering its objects, comparing boxes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from vpexp.data.annotations import AnnotatedImage, Region, Rle
from vpexp.data.folder import Folder
from vpexp.data.image_files import ImageFileError
from vpexp.data.images import choose_orientation, read_image_header, settles_orientation
from vpexp.data.masks import compute_area, compute_box, encode_region
from vpexp.data.skipped import EMPTY_MASK, NO_ANNOTATIONS, NOTHING_USABLE, SIZE_DIFFERS, SkipCounts

Box = tuple[float, float, float, float]
"""xyxy in pixels."""

SAME_BOX_IOU = 0.5
"""Two boxes that overlap so much are taken for the same object's."""


@dataclass(frozen=True, slots=True)
class Subset:
    """The usable images of one subset, with labels that index the subset's own categories."""

    categories: tuple[str, ...]
    images: tuple[AnnotatedImage, ...]


class Reader(ABC):
    """Reads one format; nothing but names is read before a subset is asked for.

    It is built with the data set's ``Folder``, with ``instances`` if it takes that, and with ``data.options``.
    """

    title: ClassVar[str] = ""
    """The format's name for people."""
    layout: ClassVar[str] = ""
    """What its files look like, in brief."""
    names_objects: ClassVar[bool] = False
    """Whether its files name single objects; where several formats fit, such a one is taken."""
    notes: Sequence[str] = ()
    """What to report about the data set."""
    unreadable: Mapping[str, str] = MappingProxyType({})
    """Files that look like annotations of this data set and cannot be used -> why."""

    @staticmethod
    def find_signs(folder: Folder) -> list[str]:
        """List what shows that a folder is of this format, for ``data.format=auto``."""
        del folder
        return []

    @abstractmethod
    def list_subsets(self) -> Mapping[str, tuple[str, ...]]:
        """List the subsets: name -> other names that mean the same."""

    @abstractmethod
    def read_subset(self, name: str, skips: SkipCounts) -> Subset:
        """Read one subset; what cannot be used goes to the skips."""


@dataclass(frozen=True, slots=True)
class PlacedImage:
    """An image file that can be read, and the frame that its annotations are in."""

    image_id: str
    path: Path
    height: int
    width: int
    exif_transpose: bool


@dataclass(frozen=True, slots=True)
class ObjectMask:
    """One object of an image; ``box`` where it is annotated by that alone, and the mask is the filled box."""

    object_id: str
    mask: Rle
    label: int
    box: Box | None = None


def place_image(
    image_id: str, path: Path, annotated_size: tuple[int, int] | None, skips: SkipCounts
) -> PlacedImage | None:
    """Look at an image file's header and decide which way up it is used.

    Args:
        image_id: Name of the image.
        path: The image file.
        annotated_size: (height, width) that the annotation gives, None if it gives none.
        skips: Where an image that cannot be used is counted.

    Returns:
        None if the image cannot be used.
    """
    try:
        header = read_image_header(path)
    except ImageFileError as error:
        skips.skip(error.reason, str(path))
        return None
    chosen = choose_orientation(header, annotated_size)
    if chosen is None:
        declared = "x".join(str(side) for side in reversed(annotated_size or ()))
        skips.skip(SIZE_DIFFERS, f"{path} is {header.width}x{header.height}, annotated as {declared}")
        return None
    skips.remark(header.remarks, str(path))
    skips.unsettled_turns += not settles_orientation(header, annotated_size)
    return PlacedImage(image_id, path, *chosen)


def keep_box(object_id: str, box: Box, label: int, placed: PlacedImage) -> ObjectMask:
    """Make an object of a box without a mask: the box cut at the image's edges, filled.

    A box that covers no whole pixel of the image has a mask without pixels, and is skipped for that.
    """
    x0, y0, x1, y1 = np.clip(np.nan_to_num(box), 0, [placed.width, placed.height] * 2).tolist()
    left, top, right, bottom = round(x0), round(y0), round(x1), round(y1)
    region = Region(top, left, max(bottom, top), max(right, left))
    return ObjectMask(object_id, encode_region(region, placed.height, placed.width), label, (x0, y0, x1, y1))


def gather_objects(placed: PlacedImage, objects: Iterable[ObjectMask], skips: SkipCounts) -> AnnotatedImage | None:
    """Make an annotated image of an image's objects; an object without a pixel is skipped.

    Returns:
        None if no object is left.
    """
    kept = []
    for one in objects:
        if compute_area(one.mask):
            kept.append(one)
        else:
            skips.skip(EMPTY_MASK, f"{placed.path}, object {one.object_id}")
    if not kept:
        skips.skip(NOTHING_USABLE, str(placed.path))
        return None
    return _build_image(placed, kept)


def _build_image(placed: PlacedImage, kept: Sequence[ObjectMask]) -> AnnotatedImage:
    return AnnotatedImage(
        image_id=placed.image_id,
        path=placed.path,
        height=placed.height,
        width=placed.width,
        masks=tuple(one.mask for one in kept),
        boxes_N4=np.array([one.box or compute_box(one.mask) for one in kept], dtype=np.float32).reshape(-1, 4),
        labels_N=np.array([one.label for one in kept], dtype=np.int64),
        object_ids=make_unique([one.object_id for one in kept]),
        exif_transpose=placed.exif_transpose,
        box_only_N=np.array([one.box is not None for one in kept]) if any(one.box for one in kept) else None,
    )


def make_unique(names: Iterable[str]) -> tuple[str, ...]:
    """Number names that occur more than once: ``7, 7`` becomes ``7, 7#2``."""
    unique: dict[str, None] = {}
    for name in names:
        own, number = name, 1
        while own in unique:
            number += 1
            own = f"{name}#{number}"
        unique[own] = None
    return tuple(unique)


def describe_repeated(file_name: str, images: Sequence[AnnotatedImage]) -> list[str]:
    """Report how many images of an annotation file are files that it names more than once; nothing if there are none."""
    repeated = len(images) - len({image.path for image in images})
    return [f"{file_name}: {repeated} of the images are files that another image names too"] if repeated else []


def take_unannotated(
    image_name: str, place: Callable[[], PlacedImage | None], skips: SkipCounts
) -> AnnotatedImage | None:
    """Make an image without objects of one that has no annotation at all, where such are kept; else count it.

    Args:
        image_name: what to call it where it is counted.
        place: looks at its file.
        skips: Where it is counted.
    """
    if not skips.keep_unannotated:
        skips.skip(NO_ANNOTATIONS, image_name)
        return None
    placed = place()
    return None if placed is None else _build_image(placed, ())


def compute_intersection(first: Box, second: Box) -> float:
    """Compute the area that two boxes share, in square pixels."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0.0) * max(height, 0.0)


def compute_box_area(box: Box) -> float:
    """Compute the area of a box, in square pixels; 0 if its corners are swapped."""
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def compute_box_iou(first: Box, second: Box) -> float:
    """Compute the intersection over union of two boxes, 0 where both are empty."""
    shared = compute_intersection(first, second)
    union = compute_box_area(first) + compute_box_area(second) - shared
    return shared / union if union > 0 else 0.0
