"""The one door through which image files are opened: which files count, which formats are read, and what goes wrong.

Pillow is given a list of formats, because some that it knows start other programs (EPS starts Ghostscript).
"""

import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path, PurePath
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from vpexp.data.skipped import MISSING_IMAGE, UNREAD_KIND, UNREAD_TYPE
from vpexp.errors import DataError

FORMATS = (
    *("JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000"),
    *("TGA", "PCX", "PSD", "QOI", "SGI", "SUN", "ICO"),
)
"""Pillow's names of the formats that are read; none of them runs a program or opens further files."""

Image.MAX_IMAGE_PIXELS = 250 * 10**6  # Pillow refuses twice as many; 500 megapixels are 1.5 GB as RGB
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # what is not refused is meant to be read

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
        *(".tga", ".icb", ".vda", ".vst", ".pcx", ".psd", ".qoi", ".sgi", ".rgb", ".rgba", ".bw", ".ras", ".ico"),
    }
)
"""File name endings, in lower case, of the image files that are read."""

UNREAD_SUFFIXES = frozenset(
    {
        *(".heic", ".heif", ".hif", ".jxl", ".jxr", ".eps", ".svg", ".exr", ".hdr", ".dds", ".fits", ".fit", ".xcf"),
        *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".pef", ".srw", ".dcm", ".dicom", ".npy"),
        *(".svs", ".ndpi", ".czi", ".nd2", ".lif", ".mrxs", ".vsi", ".nii", ".nrrd", ".mha"),
    }
)
"""Endings of image files that are not read: they are counted where they lie among images."""

NOT_AN_IMAGE = "no image, or its header is damaged"
DAMAGED_IMAGE = "image file is truncated or damaged"
NOT_A_FILE = "no regular file, so it is not opened"
PIL_ERRORS = (
    *(OSError, EOFError, ValueError, TypeError, SyntaxError, RuntimeError, LookupError, ArithmeticError),
    *(AttributeError, MemoryError, struct.error, zlib.error),
)
"""What reading a damaged file raises; each of them was seen, or is raised by a plugin on purpose."""


class ImageFileError(DataError):
    """An image file that cannot be used; ``reason`` says why in a few words, for counting."""

    def __init__(self, path: Path, reason: str, detail: str = "") -> None:
        super().__init__(f"{path}: {reason}{f' ({detail})' if detail else ''}")
        self.reason = reason


class UnreadKindError(Exception):
    """A sound file of a kind that cannot be read right.

    Args:
        name: Pillow's name of the format.
        kind: What is special about it.
    """

    def __init__(self, name: str, kind: str) -> None:
        super().__init__(f"{UNREAD_KIND} {name} not read ({kind})")


def describe_unread(name: str) -> str:
    """Give the reason for which a file of this name is not read."""
    return f"{UNREAD_TYPE} ({PurePath(name).suffix.lower() or 'no ending'})"


def prefer_read(names: list[str]) -> list[str]:
    """Pass over files of types that are not read where others of them are: of ``a.dng`` and ``a.jpg`` the second."""
    read = [name for name in names if PurePath(name).suffix.lower() not in UNREAD_SUFFIXES]
    return read or names


def is_image_file(folder: Path, name: str) -> bool:
    """Return whether a file counts as an image: by the ending of its name, or where it has none by its content.

    Files of types that are known and not read count too, so that they are reported where an image is looked for.

    Args:
        folder: The folder.
        name: The file's path relative to it.
    """
    suffix = PurePath(name).suffix.lower()
    if suffix:
        return suffix in IMAGE_SUFFIXES or suffix in UNREAD_SUFFIXES
    try:
        with open_regular(folder / name) as file, Image.open(file, formats=[name for name in FORMATS if name != "TGA"]):
            return True  # (TGA has no signature)
    except (ImageFileError, Image.DecompressionBombError, *PIL_ERRORS):
        return False


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading: a pipe, a socket or a device could block or act.

    Raises:
        ImageFileError: it is missing, or no regular file.
        OSError: it cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageFileError(path, NOT_A_FILE)
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageFileError(path, MISSING_IMAGE) from error


@contextmanager
def open_bytes(path: Path, content: bytes | None) -> Iterator[BinaryIO]:
    """Open an image file, or its content where that has been read already.

    Raises:
        ImageFileError: in place of whatever its reader raises; it names the file and the reason.
    """
    try:
        with open_regular(path) if content is None else BytesIO(content) as file:
            yield file
    except UnreadKindError as error:
        raise ImageFileError(path, str(error)) from error
    except UnidentifiedImageError as error:
        known = path.suffix.lower() in IMAGE_SUFFIXES or not path.suffix
        raise ImageFileError(path, NOT_AN_IMAGE if known else describe_unread(path.name)) from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6  # PIL warns at the limit, and refuses at twice of it
        raise ImageFileError(path, f"image is larger than {limit} megapixels") from error
    except PIL_ERRORS as error:
        raise ImageFileError(path, DAMAGED_IMAGE, str(error)) from error
