"""Masks as images whose pixels are numbers, and the colours that people see them in.

Legend: H W size of the image.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vpexp.data.masks import decode_rle
from vpexp.data.readers.label_images import VOID, Color, build_voc_colors
from vpexp.data.writers.images import LabelledImage, LabelledObject
from vpexp.errors import DataError

MOST_VALUES = 65_533
"""0 is background, 255 and 65535 are void."""


def paint(image: LabelledImage, values: Sequence[int]) -> NDArray[np.uint16]:
    """Paint each object's pixels, which no other may have, with its number; uint16 [H, W], 0 is background."""
    numbers_HW = np.zeros((image.height, image.width), dtype=np.uint16)
    for one, value in zip(image.objects, values, strict=True):
        numbers_HW[decode_rle(one.mask)] = value
    return numbers_HW


def save_numbers(numbers_HW: NDArray[np.uint16], path: Path) -> None:
    """Save numbers losslessly as a PNG: with Pascal VOC's palette, or grey of 16 bits where there are more than it has."""
    if numbers_HW.max() > VOID:
        Image.fromarray(numbers_HW).save(path)
        return
    picture = Image.fromarray(numbers_HW.astype(np.uint8)).convert("P")
    picture.putpalette([channel for color in list_colors(VOID + 1) for channel in color])
    picture.save(path, optimize=False)


def list_colors(count: int) -> list[Color]:
    """List the colours of the numbers from 0 on, as Pascal VOC has them."""
    by_number = {number: color for color, number in build_voc_colors().items()}
    return [by_number[number] for number in range(count)]


def number(what: str, count: int) -> list[int]:
    """Number things from 1 on; 255, which means void, is left out.

    Raises:
        DataError: there are more than masks of 16 bits hold.
    """
    if count > MOST_VALUES:
        raise DataError(f"{what}: {count} do not fit into masks of 16 bits, which hold {MOST_VALUES}: use format coco")
    return [value for value in range(1, count + 2) if value != VOID][:count]


def number_classes(objects: Sequence[LabelledObject], categories: Sequence[str]) -> list[int]:
    """Number the classes of objects in the order of the categories."""
    numbers = dict(zip(categories, number("classes", len(categories)), strict=True))
    return [numbers[one.label] for one in objects]


def write_meta(path: Path, categories: Sequence[str]) -> None:
    """Write a dataset_meta.json: the name and, where the palette has as many, the colour of each number."""
    numbers = [0, *number("classes", len(categories))]
    names = ["background", *categories]
    meta = {
        "label_map": {str(value): name for value, name in zip(numbers, names, strict=True)},
        "segmentation_colors": [list(color) for color in list_colors(len(names))] if numbers[-1] < VOID else [],
        "background_label": "0",
    }
    path.write_text(json.dumps(meta, indent=2) + "\n", "utf-8")
