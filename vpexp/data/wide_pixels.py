"""Images of more than 8 bits a channel: finding them, decoding them, and stretching them to what models take.

Pillow decodes grey ones whole; of colours it keeps the upper 8 bits. OpenCV, which Datumaro brings, keeps all.

Shapes: H W size in pixels, C channels.
"""

from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[Any]

WIDE_MODES = ("I", "F")
"""How Pillow's modes of wide grey images begin."""


def find_depth(picture: Image.Image, file: BinaryIO) -> int:
    """Find the bits of one channel of a file, from its header.

    Args:
        picture: The file as Pillow opened it, not yet decoded.
        file: The file itself.
    """
    if picture.format in _DEPTHS:
        file.seek(0)
        return _DEPTHS[picture.format](file.read())
    coding = find_coding(picture)
    if picture.format == "PPM" and isinstance(coding[-1], int):
        return coding[-1].bit_length()
    return 16 if ";16" in str(coding[0]) else 8


def find_coding(picture: Image.Image) -> tuple[Any, ...]:
    """Find how the pixels of an image that is not yet decoded are coded, in the words of Pillow's plugins."""
    tiles: list[Any] = getattr(picture, "tile", [])
    coding = tiles[0][3] if tiles else ""
    return coding if isinstance(coding, tuple) and coding else (coding,)


def shrink_numbers(values: Pixels, coding: tuple[Any, ...]) -> Pixels:
    """Give grey numbers the range that they have in the file: Pillow stretches those of 2 and 4 bits, and those of PGM."""
    largest = {"L;2": 3, "L;4": 15}.get(str(coding[0]))
    if largest is None and len(coding) == 2 and coding[0] in ("L", "I") and isinstance(coding[1], int):
        largest = coding[1]
    if not largest:
        return values
    return np.rint(values * (largest / (255 if values.dtype == np.uint8 else 65535))).astype(np.int64)


def _find_jpeg2000_depth(content: bytes) -> int:
    """Find the depth of the first channel in the size marker, which follows the start of the code."""
    place = content.find(b"\xff\x4f\xff\x51") + 42
    return (content[place] & 0x7F) + 1 if 42 <= place < len(content) else 8


def _find_avif_depth(content: bytes) -> int:
    """Find the depth in the decoder's configuration: bits for more than 8, and for 12."""
    place = content.find(b"av1C") + 6
    flags = content[place] if 6 <= place < len(content) else 0
    return 8 if not flags & 0x40 else 12 if flags & 0x20 else 10


_DEPTHS: dict[str | None, Callable[[bytes], int]] = {"JPEG2000": _find_jpeg2000_depth, "AVIF": _find_avif_depth}
"""Formats whose depth Pillow does not give -> how to find it."""


def decode_wide(content: bytes) -> Pixels:
    """Decode a file by OpenCV, with all bits of its numbers.

    Returns:
        [H, W], or [H, W, C] in the order red, green, blue, alpha.

    Raises:
        ValueError: it cannot be decoded.
    """
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # errors are raised here
    try:
        values: Pixels | None = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError(error.err) from error
    if values is None:
        raise ValueError("it cannot be decoded")
    return values if values.ndim == 2 else values[:, :, [2, 1, 0, 3][: values.shape[2]]]


def turn(values: Pixels, orientation: int) -> Pixels:
    """Turn pixels [H, W, ...] as an EXIF orientation (1 to 8) says."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return np.ascontiguousarray(values)


def stretch(values: Pixels) -> NDArray[np.uint8]:
    """Stretch numbers linearly, the smallest of all channels to 0 and the largest to 255; a flat image becomes black.

    One stretch for all channels keeps the hues. What is no finite number counts as 0.

    Args:
        values: [H, W] or [H, W, C].

    Returns:
        uint8, of the same shape.
    """
    finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = finite.min(), finite.max()
    if high <= low:
        return np.zeros(values.shape, dtype=np.uint8)
    stretched: NDArray[np.uint8] = np.rint((finite - low) * (255.0 / (high - low))).astype(np.uint8)
    return stretched
