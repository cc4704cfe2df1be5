"""Masks as images whose pixels are numbers, and the colours that people see them in.

Legend: H W size of the image.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vpexp.data.masks import decode_rle
from vpexp.data.readers.index_masks import VOID, Color, build_voc_colors
from vpexp.data.writers.labelled import LabelledImage, LabelledObject
from vpexp.errors import DataError

MOST_VALUES = VOID - 1  # 0 is background, 255 is void


def paint(image: LabelledImage, values: Sequence[int]) -> NDArray[np.uint8]:
    """Paint each object's pixels, which no other may have, with its number; uint8 [H, W], 0 is background."""
    numbers_HW = np.zeros((image.height, image.width), dtype=np.uint8)
    for one, value in zip(image.objects, values, strict=True):
        numbers_HW[decode_rle(one.mask)] = value
    return numbers_HW


def save_numbers(numbers_HW: NDArray[np.uint8], path: Path) -> None:
    """Save numbers as a PNG with Pascal VOC's palette, losslessly."""
    picture = Image.fromarray(numbers_HW).convert("P")
    picture.putpalette([channel for color in list_colors(VOID + 1) for channel in color])
    picture.save(path, optimize=False)


def list_colors(count: int) -> list[Color]:
    """List the colours of the numbers from 0 on, as Pascal VOC has them."""
    by_number = {number: color for color, number in build_voc_colors().items()}
    return [by_number[number] for number in range(count)]


def check_numbers(what: str, count: int) -> None:
    """Check that numbers of 8 bits suffice.

    Raises:
        DataError: they do not.
    """
    if count > MOST_VALUES:
        raise DataError(f"{what}: {count} do not fit into masks of 8 bits, which hold {MOST_VALUES}: use format coco")


def number_classes(objects: Sequence[LabelledObject], categories: Sequence[str]) -> list[int]:
    """Number the classes of objects from 1 on, in the order of the categories."""
    numbers = {name: number for number, name in enumerate(categories, start=1)}
    return [numbers[one.label] for one in objects]
