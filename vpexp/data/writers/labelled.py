"""Images with masks that are to become a data set."""

from dataclasses import dataclass
from pathlib import Path

from vpexp.data.types import Rle


@dataclass(frozen=True, slots=True)
class LabelledObject:
    """A mask and what it shows.

    Attributes:
        mask: of the image's size, with at least one pixel.
        label: name of its class.
        score: predicted IoU; None: people annotated it.
    """

    mask: Rle
    label: str
    score: float | None = None


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image file and its masks.

    Attributes:
        name: of the file in the data set, folders below that of the images included; see ``NameGiver``.
        path: the file as it lies now.
        height: rows, in the frame of the masks.
        width: columns.
        split: train, val or test.
        objects: in the order in which they are written.
    """

    name: str
    path: Path
    height: int
    width: int
    split: str
    objects: tuple[LabelledObject, ...]
