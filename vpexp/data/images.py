"""Reading image files: every kind of file becomes RGB uint8, or an error that names it.

Shapes: H W original size in pixels.
"""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from vpexp.errors import DataError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}
)
"""File name endings, in lower case, of what counts as an image file."""

NOT_AN_IMAGE = "no image, or its header is damaged"
DAMAGED_IMAGE = "image file is truncated or damaged"

_PIL_ERRORS = (OSError, ValueError, SyntaxError, struct.error, EOFError)
_SWAPPING_ORIENTATIONS = (5, 6, 7, 8)
_WIDE_MODES = ("I", "F")


class ImageFileError(DataError):
    """An image file that cannot be used; ``reason`` says why in a few words, for counting."""

    def __init__(self, path: Path, reason: str, detail: str = "") -> None:
        super().__init__(f"{path}: {reason}{f' ({detail})' if detail else ''}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What the header of an image file says, without its pixels being decoded.

    Attributes:
        height: Rows as stored.
        width: Columns as stored.
        orientation: EXIF orientation, 1 to 8; 1 where there is none.
        is_wide: More than 8 bits a pixel of one channel, so that reading stretches its values.
    """

    height: int
    width: int
    orientation: int
    is_wide: bool

    @property
    def transposed_size(self) -> tuple[int, int]:
        """Say the (height, width) after turning as EXIF says."""
        if self.orientation in _SWAPPING_ORIENTATIONS:
            return self.width, self.height
        return self.height, self.width


def read_image(path: str | Path, exif_transpose: bool = True, *, content: bytes | None = None) -> NDArray[np.uint8]:
    """Read an image file as RGB.

    Grey, palette, CMYK and bilevel images are converted; alpha is dropped, not blended. Images of one channel with
    more than 8 bits are stretched linearly, their own minimum to 0 and maximum to 255.

    Args:
        path: The image file.
        exif_transpose: Turn the pixels as the file's EXIF orientation says, as image viewers do.
        content: The file's bytes, where they have been read already.

    Returns:
        uint8 [H, W, 3], RGB, 0..255.

    Raises:
        ImageFileError: The file is missing, is no image, or is damaged.
    """
    path = Path(path)
    with _explain_errors(path), Image.open(path if content is None else BytesIO(content)) as image:
        image.load()
        if exif_transpose and _read_orientation(image) != 1:
            return _convert_to_rgb(ImageOps.exif_transpose(image))
        return _convert_to_rgb(image)


def read_thumbnail(
    path: str | Path, side: int, exif_transpose: bool = True, *, content: bytes | None = None
) -> NDArray[np.uint8]:
    """Read an image file as a small grey square, whatever its shape: for comparing pictures.

    A JPEG is decoded no larger than it has to be, which takes a fraction of the time; all of its content is read.

    Args:
        path: The image file.
        side: Height and width of the square.
        exif_transpose: Turn the pixels as the file's EXIF orientation says.
        content: The file's bytes, where they have been read already.

    Returns:
        uint8 [side, side].

    Raises:
        ImageFileError: The file is missing, is no image, or is damaged.
    """
    path = Path(path)
    with _explain_errors(path), Image.open(path if content is None else BytesIO(content)) as image:
        turned = exif_transpose and _read_orientation(image) != 1
        image.draft("L", (2 * side, 2 * side))
        image.load()
        picture: Image.Image = image
        if picture.mode != "L":
            picture = Image.fromarray(_convert_to_rgb(image))
        picture = picture.resize((side, side), Image.Resampling.LANCZOS).convert("L")
        if turned:
            picture.getexif()[ExifTags.Base.Orientation] = _read_orientation(image)
            picture = ImageOps.exif_transpose(picture)
        return np.asarray(picture)


@contextmanager
def _explain_errors(path: Path) -> Iterator[None]:
    """Turn whatever PIL raises into an error that names the file and the reason."""
    try:
        yield
    except FileNotFoundError as error:
        raise ImageFileError(path, "image file is missing") from error
    except UnidentifiedImageError as error:
        raise ImageFileError(path, NOT_AN_IMAGE) from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6  # PIL warns at the limit, and refuses at twice of it
        raise ImageFileError(path, f"image is larger than {limit} megapixels") from error
    except _PIL_ERRORS as error:
        raise ImageFileError(path, DAMAGED_IMAGE, str(error)) from error


def _convert_to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Convert a decoded image of any mode to uint8 [H, W, 3]."""
    if image.mode.startswith(_WIDE_MODES):
        grey_HW = _stretch(np.asarray(image, dtype=np.float64))
        return np.repeat(grey_HW[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _stretch(values_HW: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Stretch values linearly, minimum to 0 and maximum to 255; a flat image becomes black."""
    finite_HW = np.nan_to_num(values_HW, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = finite_HW.min(), finite_HW.max()
    if high <= low:
        return np.zeros(values_HW.shape, dtype=np.uint8)
    stretched_HW: NDArray[np.uint8] = np.rint((finite_HW - low) * (255.0 / (high - low))).astype(np.uint8)
    return stretched_HW


def read_image_header(path: Path) -> ImageHeader:
    """Read an image file's size and orientation, and check that its end was not cut off.

    The check is cheap: the end of the file is looked at, and pixels are decoded only where that is suspicious.
    Damage in the middle of a file shows when the image is read.

    Raises:
        ImageFileError: The file is missing, is no image, or is truncated.
    """
    with _explain_errors(path):
        with Image.open(path) as image:
            width, height = image.size
            header = ImageHeader(height, width, _read_orientation(image), image.mode.startswith(_WIDE_MODES))
            is_whole = _TAIL_CHECKS.get(image.format or "")
        if is_whole is not None:
            with path.open("rb") as file:
                if is_whole(file):
                    return header
        with Image.open(path) as image:
            image.load()
        return header


def _read_orientation(image: Image.Image) -> int:
    """Read the EXIF orientation without decoding pixels."""
    if image.format in ("TIFF", "MPO_TIFF"):
        return 1  # PIL turns TIFF files itself, size included
    try:
        # the base class's method: PNG's own would decode the whole file to look for late chunks
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except _PIL_ERRORS:
        return 1  # damaged EXIF data; the pixels can still be fine
    return orientation if orientation in range(1, 9) else 1


def _is_whole_jpeg(file: BinaryIO) -> bool:
    file.seek(-2, 2)
    return file.read(2) == b"\xff\xd9"


def _is_whole_png(file: BinaryIO) -> bool:
    file.seek(-12, 2)
    return file.read(8) == b"\0\0\0\0IEND"


def _is_whole_bmp(file: BinaryIO) -> bool:
    header = file.read(6)
    return file.seek(0, 2) >= int.from_bytes(header[2:6], "little") > 0


def _is_whole_webp(file: BinaryIO) -> bool:
    header = file.read(8)
    return file.seek(0, 2) >= int.from_bytes(header[4:8], "little") + 8


_TAIL_CHECKS: dict[str, Callable[[BinaryIO], bool]] = {
    "JPEG": _is_whole_jpeg,
    "MPO": _is_whole_jpeg,
    "PNG": _is_whole_png,
    "BMP": _is_whole_bmp,
    "WEBP": _is_whole_webp,
}
"""How to see that a file of this format has its end; a format that is not here is decoded once to be sure."""


def choose_orientation(header: ImageHeader, annotated_size: tuple[int, int] | None) -> tuple[int, int, bool] | None:
    """Decide whether an image is to be turned as EXIF says, from the size that its annotation gives.

    Annotation tools differ in whether they show pictures turned. The annotated size tells where turning swaps the
    sides; where it cannot tell (square, mirrored, unknown) the image is turned, as viewers do.

    Args:
        header: The image file's header.
        annotated_size: (height, width) that the annotation gives, None if it gives none.

    Returns:
        (height, width, whether to turn), or None where the annotated size is neither of the two.
    """
    stored = (header.height, header.width)
    turned = header.transposed_size
    if annotated_size is None or annotated_size == turned:
        return *turned, header.orientation != 1
    if annotated_size == stored:
        return *stored, False
    return None


def settles_orientation(header: ImageHeader, annotated_size: tuple[int, int] | None) -> bool:
    """Say whether the annotated size tells which way up an image is meant: a turned or mirrored one of two sizes."""
    is_told = annotated_size is not None and header.transposed_size != (header.height, header.width)
    return header.orientation == 1 or is_told
