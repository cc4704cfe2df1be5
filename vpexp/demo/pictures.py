"""The file of an image as a page sees it: its content, its size, and whether it is still the same."""

import io
from pathlib import Path

from PIL import Image

from vpexp.data.image_files import ImageFileError
from vpexp.data.images import open_image, read_image, read_image_header

MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
"""Formats that every browser shows."""

SHOWN_ALIKE = ("RGB", "L")  # of other modes the model drops alpha, stretches values, or converts colours in its own way
QUALITY = 95


class PictureChangedError(Exception):
    """Another picture lies where the one was that is labelled."""


def read_stamp(path: Path) -> str:
    """Read what changes with the content of a file.

    Raises:
        ImageFileError: it is not there.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ImageFileError(path, error.strerror or "cannot be read") from error
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"


def read_size(path: Path) -> tuple[int, int]:
    """Read the (height, width) of an image as it is shown.

    Raises:
        ImageFileError: it cannot be read.
    """
    return read_image_header(path).transposed_size


def build_picture(path: Path) -> tuple[bytes, str]:
    """Build what a browser is sent: the file itself where the browser shows it as the model sees it, else a JPEG.

    Returns:
        The content and its media type.

    Raises:
        ImageFileError: the image cannot be read.
    """
    media_type = _find_media_type(path)
    if media_type is not None:
        return path.read_bytes(), media_type
    content = io.BytesIO()
    Image.fromarray(read_image(path)).save(content, "JPEG", quality=QUALITY, subsampling=0)
    return content.getvalue(), MEDIA_TYPES["JPEG"]


def _find_media_type(path: Path) -> str | None:
    """Find the media type of a file that can be sent as it is; None where it cannot."""
    header = read_image_header(path)
    with open_image(path) as file:
        picture = file.picture
        if picture is None or header.orientation != 1 or header.remarks:
            return None
        is_alike = picture.mode in SHOWN_ALIKE and "transparency" not in picture.info
        return MEDIA_TYPES.get(file.format) if is_alike else None
