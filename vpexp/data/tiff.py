"""TIFF files: which kinds are read, by what, and what their pages and channels mean.

Pillow converts palettes, CMYK and YCbCr of 8 bits, and bilevel images. All others tifffile reads: of these Pillow loses
bits, signs or planes, or it refuses them. A kind that neither reads right is an error that describes it.

Shapes: H W size in pixels, C channels.
"""

import logging
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from vpexp.data.image_files import UnreadKindError
from vpexp.data.wide_pixels import Pixels, find_coding, shrink_numbers, turn

MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How TIFF files begin: both byte orders, the last two with offsets of 64 bits."""

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _LAB = 0, 1, 2, (8, 9, 10)
_COLOURS = {0: "grey, white is 0", 1: "grey", 2: "RGB", 3: "palette", 4: "transparency", 5: "CMYK", 6: "YCbCr"}
_NUMBERS = {1: "", 2: ", signed", 3: ", floating point", 4: ""}
_UNCOMPRESSED = 1


class TiffFile:
    """A TIFF file, open for reading.

    Attributes:
        format: As Pillow calls it.
        orientation: 1: what is read is turned already.
        pages: All pages of full size, as tifffile describes them.
        size: (height, width), turned.
    """

    format = "TIFF"
    orientation = 1

    def __init__(self, file: BinaryIO) -> None:
        """Read the tags of all pages.

        Raises:
            UnreadKindError: The first page is of a kind that is not read.
            One of PIL_ERRORS: The tags are damaged.
        """
        import tifffile  # takes 50 ms

        logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a file is raised here
        self._file = file
        file.seek(0)
        # Its series are not asked for: those may lie in further files, which the file names.
        self.pages = [page for page in tifffile.TiffFile(file).pages if page.index == 0 or not page.is_reduced]
        self._check_extent()
        height, width = self._first.imagelength, self._first.imagewidth
        self.size: tuple[int, int] = (width, height) if _read_orientation(self._first) > 4 else (height, width)
        self._is_byte = _is_byte(self._first)
        is_known = bool(self._count_colours())
        is_decoded = self._first.dtype is not None and self._first.compression in tifffile.TIFF.DECOMPRESSORS
        # What both could read is left to tifffile, which knows more compressions.
        self._is_for_pillow = self._is_byte and not (is_known and is_decoded and _list_bits(self._first)[0] == 8)
        if self.picture is None if self._is_for_pillow else not (is_known and is_decoded):
            raise UnreadKindError("TIFF", _describe(self._first))

    def _check_extent(self) -> None:
        """Refuse pages without pixels, and those whose pixels lie behind the file's end: tifffile would give zeros."""
        first = self._first
        if first.imagelength < 1 or first.imagewidth < 1:
            raise ValueError("it has no size")
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        if limit and first.imagelength * first.imagewidth > limit:
            raise Image.DecompressionBombError
        end = self._file.seek(0, 2)
        for page in self.pages:
            places = zip(page.dataoffsets, page.databytecounts, strict=True)
            is_short = page.compression == _UNCOMPRESSED and sum(page.databytecounts) < _count_bytes(page)
            if is_short or any(offset + count > end for offset, count in places):
                raise ValueError("its pixels are cut off")

    @property
    def _first(self) -> Any:
        if not self.pages:
            raise ValueError("it has no page")
        return self.pages[0]

    @property
    def is_wide(self) -> bool:
        """Whether there are numbers of more than 8 bits, or signed ones."""
        return not self._is_byte

    @property
    def is_joined(self) -> bool:
        """Whether the pages are red, green and blue: three grey ones that are alike, and not called a stack."""
        if len(self.pages) != 3:
            return False
        kinds = {(page.shape, page.dtype, page.photometric) for page in self.pages}
        is_grey = self._count_colours() == self._first.samplesperpixel == 1 and _list_bits(self._first)[0] >= 8
        text = self._first.description
        return len(kinds) == 1 and is_grey and ("ImageJ=" not in text or "channels=3" in text)

    @property
    def pages_left_out(self) -> int:
        """Count the pages that are not used."""
        return 0 if self.is_joined else len(self.pages) - 1

    @property
    def channels_left_out(self) -> int:
        """Count the channels behind the colours that are not marked as alpha."""
        return tuple(self._first.extrasamples).count(0) if self._first.photometric == _RGB else 0

    @cached_property
    def picture(self) -> Image.Image | None:
        """The file as Pillow opens it; None where it cannot."""
        self._file.seek(0)
        try:
            return Image.open(self._file, formats=("TIFF",))
        except UnidentifiedImageError:
            return None

    def read_colours(self) -> Pixels:
        """Read the colours, turned: [H, W, 3], or [H, W] for grey; uint8 unless they are wide.

        Raises:
            One of PIL_ERRORS: The file is damaged.
        """
        if self.is_joined:
            return np.stack([self.read_numbers(number) for number in range(3)], axis=2)
        if self._is_for_pillow and self.picture is not None:
            return np.asarray(self.picture.convert("RGB"))
        values = self.read_numbers()
        return values if values.ndim == 2 else values[:, :, :3] if self._count_colours() == 3 else values[:, :, 0]

    def read_numbers(self, number: int = 0) -> Pixels:
        """Read the numbers of a page, turned: [H, W], or [H, W, C]; the largest is white.

        Raises:
            One of PIL_ERRORS: The file is damaged.
        """
        page, picture = self.pages[number], self.picture
        if self._is_for_pillow and picture is not None:
            picture.seek(page.index)
            return shrink_numbers(np.asarray(picture), find_coding(picture))
        values: Pixels = page.asarray()
        if page.planarconfig == 2 and values.ndim == 3:
            values = np.moveaxis(values, 0, -1)
        if page.photometric == _WHITE_IS_ZERO:
            values = np.iinfo(values.dtype).max - values
        return turn(values, _read_orientation(page))

    def _count_colours(self) -> int:
        """Count the channels that make the colours: 1 or 3; 0 where they make none that are known.

        Three channels that are called grey are red, green and blue: scientific programs write such files.
        """
        page = self._first
        channels, colour = page.samplesperpixel, page.photometric
        if channels == 1 and (colour == _BLACK_IS_ZERO or (colour == _WHITE_IS_ZERO and page.dtype.kind == "u")):
            return 1
        if (channels >= 3 and colour == _RGB) or (colour == _BLACK_IS_ZERO and channels == 3):
            return 3
        return int(colour == _BLACK_IS_ZERO and channels == 2 and tuple(page.extrasamples) in ((1,), (2,)))


def _list_bits(page: Any) -> tuple[int, ...]:
    """List the bits of each channel."""
    bits = page.bitspersample
    return tuple(bits) if isinstance(bits, tuple) else (bits,) * page.samplesperpixel


def _is_byte(page: Any) -> bool:
    """Whether all numbers are 0 to 255, of colours that Pillow converts."""
    return max(_list_bits(page)) <= 8 and page.sampleformat in (1, 4) and page.photometric not in _LAB


def _count_bytes(page: Any) -> int:
    """Count the bytes of a page's pixels as they are stored without compression."""
    return int(page.imagelength * page.imagewidth * sum(_list_bits(page)) // 8)


def _read_orientation(page: Any) -> int:
    """Read how the page is to be turned, as EXIF numbers it."""
    value = page.tags.valueof(274, 1)
    return value if isinstance(value, int) else 1


def _describe(page: Any) -> str:
    """Describe the kind of a page in a few words."""
    count = page.samplesperpixel
    channels = "1 channel" if count == 1 else f"{count} channels"
    sizes = "/".join(str(size) for size in dict.fromkeys(_list_bits(page)))
    numbers = _NUMBERS.get(page.sampleformat, ", of no real numbers")
    planes = ", a plane each" if page.planarconfig == 2 and count > 1 else ""
    colour = "Lab" if page.photometric in _LAB else _COLOURS.get(page.photometric, f"colours {page.photometric}")
    compression = "" if page.compression == _UNCOMPRESSED else f", compression {int(page.compression)}"
    return f"{channels} of {sizes} bits{numbers}{planes}, {colour}{compression}"
