"""One embedding on disk: a header of 64 bytes, then the raw array.

The header names what the entry is of and holds a checksum of itself and the array, so that a file that was cut off, has
flipped bits, or lies under another entry's name is never taken for an embedding.

Legend: C channels, H W rows and columns of the embedding (S/16).
"""

import mmap
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PRECISIONS: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
"""How embeddings may be kept."""

HEADER_BYTES = 64
_MAGIC = b"VPEXPEMB"
_VERSION = 1
# magic, version, bytes a number, three sides, encoder key, image key; the checksum of all that and the array comes last.
_HEADER = struct.Struct("<8sHH3I16s16s")
_CHECKSUM = struct.Struct("<I")
_CHECKSUM_AT = HEADER_BYTES - _CHECKSUM.size

Shape = tuple[int, int, int]


class DamagedEntryError(Exception):
    """A file that does not hold the embedding that its name promises; the message says what is wrong with it."""


def compute_entry_bytes(shape: Shape, precision: str) -> int:
    """Compute the size of an entry's file."""
    return HEADER_BYTES + int(np.prod(shape)) * PRECISIONS[precision].itemsize


def pack_entry(array_CHW: NDArray[Any], encoder_key: str, image_key: str) -> list[memoryview]:
    """Lay out an entry.

    Args:
        array_CHW: float16 or float32.
        encoder_key: 32 hexadecimal digits.
        image_key: the same.

    Returns:
        Header and array, to be written one after the other.
    """
    array_CHW = np.ascontiguousarray(array_CHW, dtype=array_CHW.dtype.newbyteorder("<"))
    header = bytearray(HEADER_BYTES)
    _HEADER.pack_into(header, 0, *_describe(array_CHW.shape, array_CHW.itemsize, encoder_key, image_key))
    raw = memoryview(array_CHW.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # numpy knows it is a buffer
    _CHECKSUM.pack_into(header, _CHECKSUM_AT, _compute_checksum(header[:_CHECKSUM_AT], raw))
    return [memoryview(header), raw]


def read_entry(path: Path, *, shape: Shape, precision: str, encoder_key: str, image_key: str) -> NDArray[Any]:
    """Map an entry into memory and check all of it.

    Returns:
        Read-only array [C, H, W] that stays on disk until it is looked at again.

    Raises:
        FileNotFoundError: there is no such entry.
        DamagedEntryError: the file is something else, or damaged.
        OSError: the file cannot be read.
    """
    wanted = compute_entry_bytes(shape, precision)
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size != wanted:
            raise DamagedEntryError(f"{size} bytes instead of {wanted}")
        mapped = memoryview(mmap.mmap(file.fileno(), wanted, access=mmap.ACCESS_READ))
    expected = _HEADER.pack(*_describe(shape, PRECISIONS[precision].itemsize, encoder_key, image_key))
    if mapped[: _HEADER.size] != expected:
        raise DamagedEntryError("its header is of another entry")
    raw = mapped[HEADER_BYTES:]
    if _CHECKSUM.unpack_from(mapped, _CHECKSUM_AT)[0] != _compute_checksum(mapped[:_CHECKSUM_AT], raw):
        raise DamagedEntryError("its checksum is wrong")
    array_CHW: NDArray[Any] = np.frombuffer(raw, dtype=PRECISIONS[precision]).reshape(shape)
    return array_CHW


def _describe(shape: tuple[int, ...], itemsize: int, encoder_key: str, image_key: str) -> tuple[Any, ...]:
    return _MAGIC, _VERSION, itemsize, *shape, bytes.fromhex(encoder_key), bytes.fromhex(image_key)


def _compute_checksum(header: Any, raw: memoryview) -> int:
    return zlib.crc32(raw, zlib.crc32(header))
