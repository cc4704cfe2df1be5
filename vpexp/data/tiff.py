"""TIFF files: which kinds are read, by what, and what their pages and channels mean.

Pillow reads TIFF images of 8 bits. Of others it loses bits, signs or planes, or it refuses them; these are read here where
their strips lie as they are, and by OpenCV where they are compressed or tiled. A kind that nothing reads right is an error
that describes it.

Shapes: H W size in pixels, C channels.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from vpexp.data.image_files import UnreadKindError
from vpexp.data.wide_pixels import Pixels, decode_wide, find_coding, shrink_numbers, turn

MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How TIFF files begin: both byte orders, the last two with offsets of 64 bits."""

_MOST_PAGES = 10_000
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _LAB = 0, 1, 2, (8, 9, 10)
_COLOURS = {0: "grey, white is 0", 1: "grey", 2: "RGB", 3: "palette", 4: "transparency", 5: "CMYK", 6: "YCbCr"}
_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}
_KIND_NAMES = {"u": "", "i": ", signed", "f": ", floating point", "?": ", of no real numbers"}
_AS_THEY_ARE, _DEFLATED = 1, (8, 32946)
_DIFFERENCES = 2
_READ_BY_OPENCV = ("u2", "i2", "i4", "f4", "f8")
_LOSSLESS = (1, 5, 8, 32773, 32946)  # none, LZW, deflate, packed bits


@dataclass(frozen=True, slots=True)
class Page:
    """One page, as its tags describe it; see the TIFF 6.0 specification.

    Attributes:
        height: Rows as stored.
        width: Columns as stored.
        bits: Of each channel.
        kind: ``u``, ``i`` or ``f`` as numpy calls it, ``?`` where channels differ or are none of these.
        dtype: Of the numbers as stored; None where numpy has none.
        colour: PhotometricInterpretation.
        extra: What the channels behind the colours are: 1 and 2 are alpha, 0 is not said.
        orientation: As EXIF numbers it.
        is_planar: Whether each channel is stored by itself.
        compression: Of the pixels.
        predictor: 1 where the numbers themselves are stored.
        strips: Offset and bytes of each strip; empty where there are tiles.
        rows: Rows of a strip.
        is_reduced: Whether it shows another page in a smaller size.
        text: ImageDescription.
    """

    height: int
    width: int
    bits: tuple[int, ...]
    kind: str
    dtype: np.dtype[Any] | None
    colour: int
    extra: tuple[int, ...]
    orientation: int
    is_planar: bool
    compression: int
    predictor: int
    strips: tuple[tuple[int, int], ...]
    rows: int
    is_reduced: bool
    text: str

    @property
    def channels(self) -> int:
        """Count the numbers of a pixel."""
        return len(self.bits)

    @property
    def is_byte(self) -> bool:
        """Whether all numbers are 0 to 255, of colours that Pillow converts."""
        return max(self.bits) <= 8 and self.kind == "u" and self.colour not in _LAB

    @property
    def has_plain_strips(self) -> bool:
        """Whether the strips can be read without a library."""
        is_packed = self.compression == _AS_THEY_ARE and self.predictor == 1
        is_packed |= self.compression in _DEFLATED and (self.predictor == 1 or self._has_differences)
        return self.dtype is not None and bool(self.strips) and is_packed and self._has_known_zero

    @property
    def suits_opencv(self) -> bool:
        """Whether OpenCV reads it right."""
        name = f"{self.kind}{max(self.bits) // 8}"
        is_known = self.dtype is not None and name in _READ_BY_OPENCV and self.compression in _LOSSLESS
        return is_known and self.colour in (_BLACK_IS_ZERO, _RGB) and not self.is_planar and self.channels in (1, 3, 4)

    @property
    def _has_differences(self) -> bool:
        return self.predictor == _DIFFERENCES and self.kind != "f"

    @property
    def _has_known_zero(self) -> bool:
        return self.colour != _WHITE_IS_ZERO or self.kind == "u"

    def count_colours(self) -> int:
        """Count the channels that make the colours: 1 or 3; 0 where they make none that are known.

        Three channels that are called grey are red, green and blue: scientific programs write such files.
        """
        if self.channels == 1 and self.colour in (_WHITE_IS_ZERO, _BLACK_IS_ZERO):
            return 1
        if self.channels >= 3 and self.colour == _RGB:
            return 3
        if self.colour == _BLACK_IS_ZERO and self.channels == 3:
            return 3
        return int(self.colour == _BLACK_IS_ZERO and self.channels == 2 and self.extra in ((1,), (2,)))

    def describe(self) -> str:
        """Describe the kind in a few words."""
        channels = "1 channel" if self.channels == 1 else f"{self.channels} channels"
        sizes = "/".join(str(size) for size in dict.fromkeys(self.bits))
        planes = ", a plane each" if self.is_planar else ""
        colour = "Lab" if self.colour in _LAB else _COLOURS.get(self.colour, f"colours {self.colour}")
        compression = "" if self.compression == _AS_THEY_ARE else f", compression {self.compression}"
        return f"{channels} of {sizes} bits{_KIND_NAMES[self.kind]}{planes}, {colour}{compression}"


class TiffFile:
    """A TIFF file, open for reading.

    Attributes:
        format: As Pillow calls it.
        orientation: 1: what is read is turned already.
        pages: All pages of full size.
    """

    format = "TIFF"
    orientation = 1

    def __init__(self, file: BinaryIO) -> None:
        """Read the tags of all pages.

        Raises:
            UnreadKindError: The first page is of a kind that is not read.
            OSError, ValueError: The tags are damaged.
        """
        self._file = file
        every = _read_pages(file)
        self._places = [place for place, page in enumerate(every) if not (place and page.is_reduced)]
        self.pages = [every[place] for place in self._places]
        first = self.pages[0]
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        if limit and first.height * first.width > limit:
            raise Image.DecompressionBombError
        readable = self._is_read_by_pillow or first.has_plain_strips or first.suits_opencv
        if not readable or not ((first.is_byte and self._is_read_by_pillow) or first.count_colours()):
            raise self._refuse()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), turned."""
        first = self.pages[0]
        return (first.width, first.height) if first.orientation > 4 else (first.height, first.width)

    @property
    def is_wide(self) -> bool:
        """Whether there are numbers of more than 8 bits, or signed ones."""
        return not self.pages[0].is_byte

    @property
    def is_joined(self) -> bool:
        """Whether the pages are red, green and blue: three grey ones that are alike, and not called a stack."""
        first = self.pages[0]
        kinds = {(page.height, page.width, page.bits, page.kind, page.colour) for page in self.pages}
        is_grey = first.count_colours() == first.channels == 1 and first.bits[0] >= 8
        is_stack = "ImageJ=" in first.text and "channels=3" not in first.text
        return len(self.pages) == 3 and len(kinds) == 1 and is_grey and not is_stack

    @property
    def pages_left_out(self) -> int:
        """Count the pages that are not used."""
        return 0 if self.is_joined else len(self.pages) - 1

    @property
    def channels_left_out(self) -> int:
        """Count the channels behind the colours that are not said to be alpha."""
        return self.pages[0].extra.count(0) if self.pages[0].colour == _RGB else 0

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
            UnreadKindError, OSError, ValueError: See `read_numbers`.
        """
        if self.is_joined:
            return np.stack([self.read_numbers(number) for number in range(3)], axis=2)
        first = self.pages[0]
        if first.is_byte and self.picture is not None:
            return np.asarray(self.picture.convert("RGB"))
        values = self.read_numbers()
        return values if values.ndim == 2 else values[:, :, :3] if first.count_colours() == 3 else values[:, :, 0]

    def read_numbers(self, number: int = 0) -> Pixels:
        """Read the numbers of a page, turned: [H, W], or [H, W, C].

        Raises:
            UnreadKindError: The page is of a kind that is not read.
            OSError, ValueError: The file is damaged.
        """
        page, picture = self.pages[number], self.picture
        if picture is not None:
            picture.seek(self._places[number])
        if picture is not None and page.is_byte:
            coding = find_coding(picture)
            return shrink_numbers(np.asarray(picture), coding)
        if page.has_plain_strips:
            return turn(self._read_strips(page), page.orientation)
        if page.suits_opencv:
            if picture is not None:
                picture.load()  # Pillow finds damage that OpenCV passes over
            self._file.seek(0)
            return decode_wide(self._file.read(), self._places[number])
        if picture is None or not self._is_read_by_pillow:
            raise self._refuse()
        values = np.asarray(picture)
        return values.view(np.uint32) if page.kind == "u" and page.bits == (32,) else values

    @property
    def _is_read_by_pillow(self) -> bool:
        if self.picture is None:
            return False
        first = self.pages[0]
        return first.is_byte or (self.picture.mode.startswith(("I", "F")) and first.colour == _BLACK_IS_ZERO)

    def _refuse(self) -> UnreadKindError:
        return UnreadKindError(f"kind of TIFF not read ({self.pages[0].describe()})")

    def _read_strips(self, page: Page) -> Pixels:
        """Read a page whose strips are plain; white is made the largest number where it is 0."""
        assert page.dtype is not None
        row_bytes = page.width * page.dtype.itemsize * (1 if page.is_planar else page.channels)
        parts = []
        for offset, count in page.strips:
            self._file.seek(offset)
            part = self._file.read(count)
            if page.compression != _AS_THEY_ARE:
                part = zlib.decompressobj().decompress(part, row_bytes * page.rows)
            parts.append(part[: row_bytes * page.rows])
        shape = (page.height, page.width, page.channels)
        if page.is_planar:
            shape = (page.channels, page.height, page.width)
        values = np.frombuffer(b"".join(parts), page.dtype, count=int(np.prod(shape))).reshape(shape)
        if page.is_planar:
            values = np.moveaxis(values, 0, -1)
        own = page.dtype.newbyteorder("=")
        values = values.astype(own) if page.predictor == 1 else np.cumsum(values, axis=1, dtype=own)
        if page.colour == _WHITE_IS_ZERO:
            values = np.iinfo(own).max - values
        return values[:, :, 0] if page.channels == 1 else values


def _read_pages(file: BinaryIO) -> list[Page]:
    """Read the tags of all pages.

    Raises:
        OSError, ValueError: They are damaged.
    """
    file.seek(0)
    mark = file.read(8)
    if mark[:4] == MARKS[-1]:
        raise UnreadKindError("kind of TIFF not read (64-bit offsets, most significant byte first)")
    directory = TiffImagePlugin.ImageFileDirectory_v2(mark + (file.read(8) if mark[:4] == MARKS[2] else b""))
    pages: list[Page] = []
    seen = {0}
    while (place := directory.next) not in seen and len(pages) < _MOST_PAGES:
        seen.add(place)
        file.seek(place)
        directory.load(file)
        if directory.next == place:  # Pillow stopped reading
            raise OSError("its tags are cut off")
        pages.append(_read_page(dict(directory), "<" if mark[:1] == b"I" else ">"))
    if not pages:
        raise ValueError("it has no page")
    return pages


def _read_page(tags: Mapping[int, Any], order: Literal["<", ">"]) -> Page:
    """Read what the tags of a page say.

    Raises:
        ValueError: It has no size.
    """

    def numbers(tag: int, default: int) -> tuple[int, ...]:
        value = tags.get(tag, default)
        return tuple(int(one) for one in value) if isinstance(value, tuple) else (int(value),)

    def number(tag: int, default: int) -> int:
        return (numbers(tag, default) or (default,))[0]

    height, width, channels = number(257, 0), number(256, 0), number(277, 1)
    if height < 1 or width < 1 or not 1 <= channels <= 1 << 16:
        raise ValueError("it has no size")
    bits = numbers(258, 1)
    bits = bits * channels if len(bits) == 1 else bits[:channels]
    kinds = {_KINDS.get(kind, "?") for kind in numbers(339, 1)}
    kind = kinds.pop() if len(kinds) == 1 else "?"
    sizes = {"u": (8, 16, 32, 64), "i": (8, 16, 32, 64), "f": (16, 32, 64)}.get(kind, ())
    is_known = len(set(bits)) == 1 and bits[0] in sizes and len(bits) == channels
    dtype = np.dtype(f"{kind}{bits[0] // 8}").newbyteorder(order) if is_known else None
    offsets, counts = (numbers(273, 0), numbers(279, 0)) if 273 in tags and 279 in tags else ((), ())
    return Page(
        height=height,
        width=width,
        bits=bits,
        kind=kind,
        dtype=dtype,
        colour=number(262, _BLACK_IS_ZERO),
        extra=numbers(338, 0) if 338 in tags else (),
        orientation=number(274, 1),
        is_planar=number(284, 1) == 2 and channels > 1,
        compression=number(259, _AS_THEY_ARE),
        predictor=number(317, 1),
        strips=tuple(zip(offsets, counts, strict=True)),
        rows=min(number(278, height), height),
        is_reduced=bool(number(254, 0) & 1),
        text=str(tags.get(270, "")),
    )
