"""Mask images whose pixels name a class or an instance: by number (grey, palette) or by colour.

Shapes: H W size of the mask in pixels.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from vpexp.data.image_files import DAMAGED_IMAGE, NOT_AN_IMAGE, ImageFileError
from vpexp.data.images import ImageFile, open_image
from vpexp.data.ledger import DAMAGED_MASK, MISSING_IMAGE, MISSING_MASK
from vpexp.data.masks import encode_label_map
from vpexp.data.types import Rle
from vpexp.errors import DataError

Color = tuple[int, int, int]
IndexMask = np.ndarray[tuple[int, int], np.dtype[np.int64]]

VOID = 255
WIDE_VOID = 65535
"""The void of masks with numbers above 255, where 255 is a number like any other."""
UNKNOWN_COLOR = 1 << 32
"""Colours that no table declares get values from here on: this number plus the colour as 0xRRGGBB. Masks that hold larger
numbers themselves are not read."""
VOID_COLOR: Color = (224, 224, 192)
"""Pascal VOC's colour of borders and difficult regions, its palette's entry 255."""

FRACTIONS = "mask values are no whole numbers"
LARGE_NUMBERS = "mask values of 2**32 and more"
WIDE_COLOURS = "mask colours of more than 8 bits"
SEVERAL_PAGES = "mask file has several pages"
_REASONS = {DAMAGED_IMAGE: DAMAGED_MASK, NOT_AN_IMAGE: DAMAGED_MASK, MISSING_IMAGE: MISSING_MASK}

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=np.int64)


class MaskFileError(DataError):
    """A mask image that cannot be used; ``reason`` says why in a few words, for counting."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


def find_void(values: Iterable[int]) -> int:
    """Find the number that means void among the values of masks."""
    return WIDE_VOID if any(VOID < value < UNKNOWN_COLOR for value in values) else VOID


def build_voc_colors(count: int = 256) -> dict[Color, int]:
    """Build Pascal VOC's colour table: the bits of an index, dealt out to red, green and blue from the top bit down."""
    colors = {}
    for index in range(count):
        red = green = blue = 0
        rest = index
        for bit in range(7, -1, -1):
            red |= (rest & 1) << bit
            green |= (rest >> 1 & 1) << bit
            blue |= (rest >> 2 & 1) << bit
            rest >>= 3
        colors[red, green, blue] = index
    return colors


def read_index_mask(path: Path, colors: Mapping[Color, int], *, of_instances: bool = False) -> IndexMask:
    """Read a mask image as numbers.

    Grey and bilevel images hold the numbers themselves, whatever their type, as long as all are whole. A palette image
    holds them too, unless all its colours are in the table and tell its numbers apart: then the table decides, because tools
    that compress images renumber palettes. A colour image is looked up in the table; if it is grey all over and the table does not have its
    colours, its grey values are the numbers.

    Args:
        path: The mask image.
        colors: Colour -> number.
        of_instances: Each number is a thing of its own, whatever else has its colour; classes may have several numbers.

    Returns:
        int64 [H, W]; negative numbers are kept. A colour that is not in the table becomes `UNKNOWN_COLOR` + 0xRRGGBB.

    Raises:
        MaskFileError: The file is missing or damaged, has several pages, or holds what are no numbers of things.
    """
    try:
        with open_image(path) as file:
            if file.pages_left_out or file.is_joined:
                raise MaskFileError(path, SEVERAL_PAGES)
            return _read_values(path, file, colors, of_instances=of_instances)
    except ImageFileError as error:
        raise MaskFileError(path, _REASONS.get(error.reason, f"mask: {error.reason}")) from error


def _read_values(path: Path, file: ImageFile, colors: Mapping[Color, int], *, of_instances: bool) -> IndexMask:
    """Read the numbers of an open mask image."""
    picture = file.picture
    if picture is not None and picture.mode == "P":
        return _read_palette(picture, colors, of_instances=of_instances)
    values = file.read_numbers()
    if values.ndim > 2 and (values.shape[2] == 2 or (file.is_wide and (values[:, :, :3] == values[:, :, :1]).all())):
        values = values[:, :, 0]  # grey with alpha
    if values.ndim == 2:
        return _check_numbers(path, values)
    if file.is_wide:
        raise MaskFileError(path, WIDE_COLOURS)
    return _look_up(file.read_colours().astype(np.int64), colors)


def _check_numbers(path: Path, values_HW: NDArray[Any]) -> IndexMask:
    """Check that numbers are whole, and not too large to be told from colours."""
    if values_HW.dtype.kind == "f" and not (np.isfinite(values_HW).all() and (values_HW == np.rint(values_HW)).all()):
        raise MaskFileError(path, FRACTIONS)
    if not -UNKNOWN_COLOR < int(values_HW.min()) <= int(values_HW.max()) < UNKNOWN_COLOR:
        raise MaskFileError(path, LARGE_NUMBERS)
    return values_HW.astype(np.int64)


def _look_up(pixels_HW3: NDArray[np.int64], colors: Mapping[Color, int]) -> IndexMask:
    """Look colours up in the table."""
    packed_HW = pixels_HW3[:, :, 0] << 16 | pixels_HW3[:, :, 1] << 8 | pixels_HW3[:, :, 2]
    used = find_values(packed_HW)
    known = {_pack(color): index for color, index in colors.items()}
    is_grey = all(value % 0x010101 == 0 for value in used)
    if is_grey and not set(used) <= set(known):
        return packed_HW & 0xFF
    table = np.array([known.get(value, UNKNOWN_COLOR + value) for value in used], dtype=np.int64)
    return table[np.searchsorted(np.array(used), packed_HW)]


def _read_palette(image: Image.Image, colors: Mapping[Color, int], *, of_instances: bool) -> IndexMask:
    """Read a palette image: its indices, or what the colours stand for if all of them are known and tell indices apart."""
    indices_HW = np.asarray(image).astype(np.int64)
    palette = image.getpalette("RGB") or []
    used = find_values(indices_HW)
    own = {
        index: (palette[3 * index], palette[3 * index + 1], palette[3 * index + 2])
        for index in used
        if 3 * index + 2 < len(palette)
    }
    told = set(own.values())
    is_telling = len(told) == len(used) if of_instances else len(told) > 1 or len(used) == 1
    if len(own) < len(used) or not told <= set(colors) or not is_telling:
        return indices_HW
    table = np.arange(256)
    for index, color in own.items():
        table[index] = colors[color]
    return table[indices_HW]


def _pack(color: Color) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def find_values(values_HW: IndexMask) -> list[int]:
    """List the different values of an array, sorted; faster than sorting every pixel where neighbours are equal."""
    flat = values_HW.ravel()
    starts = np.concatenate([[True], flat[1:] != flat[:-1]])
    return [int(value) for value in np.unique(flat[starts])]


def split_components(mask_HW: NDArray[np.bool_]) -> list[Rle]:
    """Split a mask into its connected parts; pixels that touch at a corner are connected.

    Returns:
        One mask a part, in the order in which the rows meet them.
    """
    parts_HW, _ = ndimage.label(mask_HW, structure=_EIGHT_NEIGHBOURS)
    return [rle for value, rle in encode_label_map(parts_HW).items() if value]
