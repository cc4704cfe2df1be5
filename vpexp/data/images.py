"""Reading image files: every kind of file becomes RGB uint8, or an error that names it.

Shapes: H W original size in pixels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from vpexp.data.annotations import Region
from vpexp.data.image_files import FORMATS, PIL_ERRORS, UnreadKindError, open_bytes
from vpexp.data.tiff import MARKS, TiffFile
from vpexp.data.wide_pixels import (
    WIDE_MODES,
    Pixels,
    decode_wide,
    find_coding,
    find_depth,
    shrink_numbers,
    stretch,
    turn,
)

_SWAPPING_ORIENTATIONS = (5, 6, 7, 8)
_STRIP_PIXELS = 16 * 1024 * 1024
_PAGED = ("GIF", "WEBP", "PNG", "AVIF")  # of other formats the further images are previews or layers


_WIDE = "{images} of the images have more than 8 bits: each is stretched to 0..255 by its own range"
_JOINED = "{images} of the images have three grey pages, read as red, green and blue (such as {example})"
_PAGES = "pages left out: {total}, behind the first page of {images} of the images (such as {example})"
_CHANNELS = "channels left out: {total}, behind red, green and blue of {images} of the images (such as {example})"


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What the header of an image file says, without its pixels being decoded.

    Attributes:
        height: Rows as stored.
        width: Columns as stored.
        orientation: EXIF orientation, 1 to 8; 1 where there is none.
        is_wide: More than 8 bits a pixel of one channel, so that reading stretches its values.
        is_joined: Three grey pages are read as red, green and blue.
        pages_left_out: Pages or frames behind the first one that are not read.
        channels_left_out: Channels behind red, green and blue that are not read, alpha not counted.
    """

    height: int
    width: int
    orientation: int
    is_wide: bool
    is_joined: bool = False
    pages_left_out: int = 0
    channels_left_out: int = 0

    @property
    def transposed_size(self) -> tuple[int, int]:
        """Return the (height, width) after turning as EXIF says."""
        if self.orientation in _SWAPPING_ORIENTATIONS:
            return self.width, self.height
        return self.height, self.width

    @property
    def remarks(self) -> dict[str, int]:
        """Count what is remarkable about how the image is read, for `SkipCounts.remark`."""
        counts = {
            _WIDE: int(self.is_wide),
            _JOINED: int(self.is_joined),
            _PAGES: self.pages_left_out,
            _CHANNELS: self.channels_left_out,
        }
        return {text: count for text, count in counts.items() if count}


class PillowFile:
    """An image file that Pillow decodes, wide colours excepted; open for reading. See `TiffFile`, which is used alike."""

    is_joined = False
    channels_left_out = 0

    def __init__(self, file: BinaryIO) -> None:
        """Read the header.

        Raises:
            OSError, ValueError and others: see ``Image.open``.
        """
        self._file = file
        file.seek(0)
        self.picture = Image.open(file, formats=FORMATS)
        self.format = self.picture.format or ""
        self.size = (self.picture.height, self.picture.width)
        self.orientation = _read_orientation(self.picture)
        self._depth = find_depth(self.picture, file)
        self._coding = find_coding(self.picture)
        self.is_wide = self._depth > 8 or self.picture.mode.startswith(WIDE_MODES)
        self.pages_left_out = getattr(self.picture, "n_frames", 1) - 1 if self.format in _PAGED else 0

    def read_colours(self) -> Pixels:
        """Read the colours: uint8 [H, W, 3], or where they are wide [H, W] or [H, W, C]."""
        if self.is_wide:
            values = self.read_numbers()
            return values[:, :, :3] if values.ndim > 2 else values
        return _take_rgb(self.picture)

    def read_numbers(self) -> Pixels:
        """Read the numbers as they are stored, [H, W] or [H, W, C].

        Raises:
            UnreadKindError: More than 8 bits, in a file that OpenCV does not read.
        """
        self.picture.load()
        if not self.is_wide or self.picture.mode.startswith(WIDE_MODES):
            values = np.asarray(self.picture)
            return shrink_numbers(values, self._coding) if self.picture.mode in ("L", "I") else values
        self._file.seek(0)
        try:
            return decode_wide(self._file.read())
        except ValueError as error:  # it is whole, as Pillow found
            raise UnreadKindError(self.format, f"{self._depth} bits") from error


ImageFile = PillowFile | TiffFile


@contextmanager
def open_image(path: Path, content: bytes | None = None) -> Iterator[ImageFile]:
    """Open an image file: the one way in which vpexp does.

    Args:
        path: The image file.
        content: The file's bytes, where they have been read already.

    Raises:
        ImageFileError: The file is missing, is no regular file, is no image, is of a kind that is not read, or is damaged;
            also in place of what is raised while its pixels are read.
    """
    with open_bytes(path, content) as file:
        yield TiffFile(file) if file.read(4) in MARKS else PillowFile(file)


def _take_rgb(picture: Image.Image) -> NDArray[np.uint8]:
    """Take the pixels of a picture as RGB, strip by strip: what Pillow holds of a large one is copied once, into the result."""
    rows = max(1, _STRIP_PIXELS // picture.width)
    if rows >= picture.height:
        return np.asarray(picture.convert("RGB"))
    rgb_HW3 = np.empty((picture.height, picture.width, 3), dtype=np.uint8)
    for top in range(0, picture.height, rows):
        bottom = min(top + rows, picture.height)
        rgb_HW3[top:bottom] = np.asarray(picture.crop((0, top, picture.width, bottom)).convert("RGB"))
    return rgb_HW3


def read_image(
    path: str | Path, exif_transpose: bool = True, *, content: bytes | None = None, window: Region | None = None
) -> NDArray[np.uint8]:
    """Read an image file, or a window of it, as RGB.

    Grey, palette, CMYK and bilevel images are converted; alpha is dropped, not blended. Images of more than 8 bits a
    channel are stretched linearly, the smallest number of all channels to 0 and the largest to 255. Of several pages the
    first is read, except that three grey ones of a TIFF file, all alike, are red, green and blue.

    Args:
        path: The image file.
        exif_transpose: Turn the pixels as the file's EXIF orientation says, as image viewers do.
        content: The file's bytes, where they have been read already.
        window: The part of the turned image that is wanted; the file is decoded whole all the same. None: all of it.

    Returns:
        uint8 [H, W, 3], RGB, 0..255.

    Raises:
        ImageFileError: The file is missing, is no image, or is damaged.
    """
    with open_image(Path(path), content) as file:
        image_HW3 = turn(_read_rgb(file), file.orientation if exif_transpose else 1)
    return image_HW3 if window is None else image_HW3[window.slices].copy()


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
    with open_image(Path(path), content) as file:
        picture = file.picture
        if picture is not None:
            picture.draft("L", (2 * side, 2 * side))
        if picture is None or picture.mode != "L" or file.is_joined:
            picture = Image.fromarray(_read_rgb(file))
        thumbnail = picture.resize((side, side), Image.Resampling.LANCZOS).convert("L")
        return turn(np.asarray(thumbnail), file.orientation if exif_transpose else 1)


def _read_rgb(file: ImageFile) -> NDArray[np.uint8]:
    """Read an open file as uint8 [H, W, 3], not turned."""
    values = file.read_colours()
    if file.is_wide:
        values = stretch(values)
    return values if values.ndim == 3 else np.repeat(values[:, :, None], 3, axis=2)


def read_image_header(path: Path) -> ImageHeader:
    """Read an image file's size and orientation, and check that its end was not cut off.

    The check is cheap: the end of the file is looked at, and pixels are decoded only where that is suspicious.
    Damage in the middle of a file shows when the image is read.

    Raises:
        ImageFileError: The file is missing, is no image, is of a kind that is not read, or is truncated.
    """
    with open_bytes(path, None) as opened, open_image(path) as file:
        left_out = file.pages_left_out, file.channels_left_out
        header = ImageHeader(*file.size, file.orientation, file.is_wide, file.is_joined, *left_out)
        is_whole = _TAIL_CHECKS.get(file.format)
        if is_whole is None or not is_whole(opened):
            file.read_colours()
        return header


def _read_orientation(image: Image.Image) -> int:
    """Read the EXIF orientation without decoding pixels."""
    try:
        # the base class's method: PNG's own would decode the whole file to look for late chunks
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except PIL_ERRORS:
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
    """Return whether the annotated size tells which way up an image is meant: a turned or mirrored one of two sizes."""
    is_told = annotated_size is not None and header.transposed_size != (header.height, header.width)
    return header.orientation == 1 or is_told
