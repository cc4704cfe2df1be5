"""What the readers hand on: images with their object masks, gathered in splits.

Hundreds of thousands of small objects cost more than their content, and every worker process that looks at them copies
them (looking at an object changes its reference count, and so the page that it lies on). So a split holds a few arrays
(``ImageTable``), which processes share, and makes each annotated image when it is asked for (``PackedImages``).

Legend: N objects of one image, H W original size in pixels, I images of a table, M objects of all its images.
"""

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Self, overload

import numpy as np
from numpy.typing import NDArray

Rle = dict[str, Any]
"""A COCO compressed run-length mask: ``{"size": [H, W], "counts": bytes}``."""


@dataclass(frozen=True, slots=True)
class Region:
    """A part of an image, in whole pixels, its right and bottom edge left out; nothing where two edges are the same."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Return what indexes an array [H, W] with it."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def area(self) -> int:
        """Count its pixels."""
        return (self.bottom - self.top) * (self.right - self.left)


SCORE_DIGITS = 6
"""Decimals of a predicted IoU in files and replies."""

SPLIT_NAMES = ("train", "val", "test")
Arrays = dict[str, NDArray[Any]]
_WHOLE = re.compile(r"[+-]?[0-9]{1,4000}(\.0)?")  # int() refuses longer ones
_DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


class ImagePlace(NamedTuple):
    """Where the pixels of an image come from: a file, turned as its EXIF orientation says or not, or a window of that.

    What comes of it is turned by ``variant``, see ``vpexp.data.variants``; 0: it is not.
    """

    path: Path
    exif_transpose: bool
    window: Region | None = None
    variant: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatedImage:
    """One image file, or a window of it, and the masks of its objects; pixels are read only when they are needed.

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
        window: the part of the file's image that this is, and that all of the above is in the frame of; None: all of it.
        variant: how the pixels are turned after that, see ``vpexp.data.variants``; all of the above is as turned.
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
    window: Region | None = None
    variant: int = 0

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def place(self) -> ImagePlace:
        """Where its pixels come from."""
        return ImagePlace(self.path, self.exif_transpose, self.window, self.variant)

    def locate(self, window: Region) -> ImagePlace:
        """Name a window of an image that is whole; the window that is all of it is the image's own place."""
        everything = Region(0, 0, self.height, self.width)
        return self.place._replace(window=None if window == everything else window)

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


@dataclass(frozen=True, slots=True, eq=False)
class ByteStrings:
    """Strings of bytes, one after another.

    Attributes:
        content: uint8, all bytes.
        ends: int64, where each string ends.
    """

    content: NDArray[np.uint8]
    ends: NDArray[np.int64]

    @classmethod
    def pack(cls, strings: Sequence[bytes]) -> Self:
        """Put strings behind each other."""
        ends = np.cumsum(np.fromiter(map(len, strings), dtype=np.int64, count=len(strings)), dtype=np.int64)
        return cls(np.frombuffer(b"".join(strings), dtype=np.uint8), ends)

    @classmethod
    def pack_texts(cls, texts: Sequence[str]) -> Self:
        """Put texts behind each other; file names that are not UTF-8 stay what they are."""
        return cls.pack([text.encode("utf-8", "surrogatepass") for text in texts])

    def take(self, start: int, end: int) -> list[bytes]:
        """Take the strings of a range."""
        if start == end:
            return []
        first = int(self.ends[start - 1]) if start else 0
        ends = (self.ends[start:end] - first).tolist()
        content = self.content[first : first + ends[-1]].tobytes()
        return [content[a:b] for a, b in zip([0, *ends], ends, strict=False)]

    def take_texts(self, start: int, end: int) -> list[str]:
        """Take the texts of a range."""
        return [text.decode("utf-8", "surrogatepass") for text in self.take(start, end)]

    def check(self, count: int) -> None:
        """Check that there are so many strings, and that all their bytes are there; ValueError if not."""
        ends = self.ends
        total = int(ends[-1]) if len(ends) else 0
        if len(ends) != count or total != len(self.content) or (np.diff(ends, prepend=0) < 0).any():
            raise ValueError("strings do not fit their ends")


@dataclass(frozen=True, slots=True, eq=False)
class ImageTable:
    """Images and their objects, column by column; see ``AnnotatedImage`` for what the columns mean.

    Attributes:
        image_ids: I texts.
        paths: I texts.
        sizes_I2: int64, height and width.
        exif_transpose_I: bool.
        object_ends_I: int64, where the objects of each image end among all of them.
        masks: M run-length strings.
        boxes_M4: float32.
        labels_M: int64.
        object_ids: M texts.
        box_only_M: bool.
    """

    image_ids: ByteStrings
    paths: ByteStrings
    sizes_I2: NDArray[np.int64]
    exif_transpose_I: NDArray[np.bool_]
    object_ends_I: NDArray[np.int64]
    masks: ByteStrings
    boxes_M4: NDArray[np.float32]
    labels_M: NDArray[np.int64]
    object_ids: ByteStrings
    box_only_M: NDArray[np.bool_]

    @classmethod
    def pack(cls, images: Sequence[AnnotatedImage]) -> Self:
        """Take images apart."""
        counts = np.array([len(image) for image in images], dtype=np.int64)
        boxes = [image.boxes_N4 for image in images]
        labels = [image.labels_N for image in images]
        return cls(
            image_ids=ByteStrings.pack_texts([image.image_id for image in images]),
            paths=ByteStrings.pack_texts([str(image.path) for image in images]),
            sizes_I2=np.array([(image.height, image.width) for image in images], dtype=np.int64).reshape(-1, 2),
            exif_transpose_I=np.array([image.exif_transpose for image in images], dtype=np.bool_),
            object_ends_I=np.cumsum(counts, dtype=np.int64),
            masks=ByteStrings.pack([mask["counts"] for image in images for mask in image.masks]),
            boxes_M4=np.concatenate(boxes) if boxes else np.zeros((0, 4), dtype=np.float32),
            labels_M=np.concatenate(labels) if labels else np.zeros(0, dtype=np.int64),
            object_ids=ByteStrings.pack_texts([name for image in images for name in image.object_ids]),
            box_only_M=np.concatenate([np.zeros(0, np.bool_), *map(_list_box_only, images)]),
        )

    def build(self, row: int) -> AnnotatedImage:
        """Put one image together."""
        start, end = int(self.object_ends_I[row - 1]) if row else 0, int(self.object_ends_I[row])
        box_only_N = self.box_only_M[start:end]
        height, width = self.sizes_I2[row].tolist()
        return AnnotatedImage(
            image_id=self.image_ids.take_texts(row, row + 1)[0],
            path=Path(self.paths.take_texts(row, row + 1)[0]),
            height=height,
            width=width,
            masks=tuple({"size": [height, width], "counts": counts} for counts in self.masks.take(start, end)),
            boxes_N4=self.boxes_M4[start:end].copy(),
            labels_N=self.labels_M[start:end].copy(),
            object_ids=tuple(self.object_ids.take_texts(start, end)),
            exif_transpose=bool(self.exif_transpose_I[row]),
            box_only_N=box_only_N.copy() if box_only_N.any() else None,
        )

    def to_arrays(self) -> Arrays:
        """Name all arrays."""
        arrays: Arrays = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, ByteStrings):
                arrays |= {f"{field.name}.content": value.content, f"{field.name}.ends": value.ends}
            else:
                arrays[field.name] = value
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Undo ``to_arrays``; KeyError or ValueError where that does not make a table."""
        columns: dict[str, Any] = {}
        for field in fields(cls):
            if field.name in arrays:
                columns[field.name] = arrays[field.name]
            else:
                columns[field.name] = ByteStrings(arrays[f"{field.name}.content"], arrays[f"{field.name}.ends"])
        table = cls(**columns)
        table.check()
        return table

    def check(self) -> None:
        """Check that all columns are of one length; ValueError if not."""
        count = len(self.object_ends_I)
        objects = int(self.object_ends_I[-1]) if count else 0
        for strings in (self.image_ids, self.paths):
            strings.check(count)
        for strings in (self.masks, self.object_ids):
            strings.check(objects)
        shapes = [self.sizes_I2.shape, self.exif_transpose_I.shape, self.boxes_M4.shape, self.labels_M.shape]
        shapes += [self.box_only_M.shape]
        if shapes != [(count, 2), (count,), (objects, 4), (objects,), (objects,)]:
            raise ValueError("columns of different lengths")


class LazyImages(Sequence[AnnotatedImage]):
    """Images that are made when they are asked for."""

    @property
    @abstractmethod
    def object_counts(self) -> NDArray[np.int64]:
        """Count the objects of each image: int64."""

    @property
    @abstractmethod
    def places(self) -> list[ImagePlace]:
        """List where the pixels of each image come from."""


class PackedImages(LazyImages):
    """Some images of a table, in some order; as good as a tuple of them, but each is made when it is asked for."""

    def __init__(self, table: ImageTable, rows: NDArray[np.int64] | None = None) -> None:
        self.table = table
        self.rows = np.arange(len(table.object_ends_I), dtype=np.int64) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload  # what follows is one function
    def __getitem__(self, index: int) -> AnnotatedImage: ...
    @overload
    def __getitem__(self, index: slice) -> "PackedImages": ...
    def __getitem__(self, index: int | slice) -> "AnnotatedImage | PackedImages":
        """Make an image, or select a range of them."""
        if isinstance(index, slice):
            return self.select(self.rows[index])
        return self.table.build(int(self.rows[index]))

    def __iter__(self) -> Iterator[AnnotatedImage]:
        return (self.table.build(row) for row in self.rows.tolist())

    @property
    def object_counts(self) -> NDArray[np.int64]:
        """Count the objects of each image: int64."""
        counts: NDArray[np.int64] = np.diff(self.table.object_ends_I, prepend=0)[self.rows]
        return counts

    @property
    def places(self) -> list[ImagePlace]:
        """List the image files."""
        texts = self.table.paths.take_texts(0, len(self.table.object_ends_I))
        turned = self.table.exif_transpose_I.tolist()
        return [ImagePlace(Path(texts[row]), turned[row]) for row in self.rows.tolist()]

    def select(self, rows: NDArray[np.int64]) -> "PackedImages":
        """Take some rows of the same table."""
        return PackedImages(self.table, rows)


def _list_box_only(image: AnnotatedImage) -> NDArray[np.bool_]:
    return np.zeros(len(image), np.bool_) if image.box_only_N is None else image.box_only_N


def count_objects(images: Sequence[AnnotatedImage]) -> NDArray[np.int64]:
    """Count the objects of each image: int64."""
    if isinstance(images, LazyImages):
        return images.object_counts
    return np.array([len(image) for image in images], dtype=np.int64)


def with_objects(images: Sequence[AnnotatedImage]) -> Sequence[AnnotatedImage]:
    """Leave out images without any object: there is nothing to prompt on them."""
    counts = count_objects(images)
    return images if counts.all() else [image for image, count in zip(images, counts, strict=True) if count]


def spread_places(count: int, most: int) -> list[int]:
    """List the places of at most so many of ``count`` things, evenly from the first to the last."""
    places: list[int] = np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()
    return places


def list_places(images: Sequence[AnnotatedImage]) -> list[ImagePlace]:
    """List where the pixels of each image come from."""
    return images.places if isinstance(images, LazyImages) else [image.place for image in images]


def read_whole(value: Any) -> int | None:
    """Read 7, 7.0, "7" or "7.0" as 7; None for anything else, such as True, 7.5, "1_12" or "\u0667"."""
    if isinstance(value, str):
        return int(value.removesuffix(".0")) if _WHOLE.fullmatch(value) else None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def read_number(value: Any) -> float | None:
    """Read an int, a float or a decimal number in text; None for anything else, such as True, "nan" or "1_2"."""
    if isinstance(value, str):
        return float(value) if _DECIMAL.fullmatch(value) else None
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    except OverflowError:
        return None
