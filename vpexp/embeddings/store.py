"""Embeddings of one encoder on disk, each image encoded once, ever.

An entry is addressed by content: the image file's bytes (and the window, where tiles are encoded, and the variant, where it is turned), the encoder's weights, its input size, the preprocessing and the
precision. So entries are shared by epochs, stages, runs and processes, and whatever changes asks for other entries.

An entry is a safetensors file of one array, or, where a number takes 8 bits, of three: what each channel is multiplied with, what is
added to it, and whole numbers of 0 to 255. Its metadata name the encoder and the image and hold a CRC-32 of the arrays, so that
a file that was cut off, has flipped bits, or lies under another entry's name is never taken for an embedding. The header is
written here, always alike, and compared, not parsed: the array can be mapped, which saves a copy of it. Who encodes an
image holds a lock beside its entry (``<image key>.part``), and a killed process's lock goes with it: where several processes
fill one cache, one of them encodes the image. On file systems that know no locks an image may be encoded twice, and never
wrongly.

Legend: C channels, H W rows and columns of the embedding (S/16), S model input size.
"""

import contextlib
import hashlib
import logging
import math
import mmap
import os
import zlib
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import BaseFileLock, FileLock, Timeout
from numpy.typing import NDArray

from vpexp.data.annotations import AnnotatedImage, ImagePlace, Region
from vpexp.data.geometry import PREPROCESSING_VERSION
from vpexp.data.interface import FIT
from vpexp.errors import ConfigError
from vpexp.files import replacing

ENTRY = ".emb"
LOCK = ".part"
PRECISIONS: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4"), "int8": np.dtype("<f4")}
"""How embeddings may be kept, and the type of what is read."""
FLOAT32, BFLOAT16 = "float32", "bfloat16"
"""What an encoder may compute in."""

_VERSION = 2  # of the entries' format: 1 had a header of vpexp's own
_KEY_BYTES = 16
_HEADER = '{"__metadata__": {"encoder": "%s", "image": "%s", "crc32": "%08x"}, %s}'
_ARRAY = '"%s": {"dtype": "%s", "shape": %s, "data_offsets": [%d, %d]}'
_DTYPES = {1: "U8", 2: "F16", 4: "F32"}  # safetensors' names by bytes a number
_LEVELS = 255  # of 8 bits, beside 0
Shape = tuple[int, int, int]
Arrays = dict[str, NDArray[Any]]

log = logging.getLogger(__name__)


def try_lock(path: Path) -> BaseFileLock | None:
    """Lock a file without waiting, for as long as this process lives; ``release`` ends it.

    Returns:
        None where another process holds it. Where it cannot be locked at all, the lock that was tried: whoever goes on to
        write finds out whether the folder can be written.
    """
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    except OSError as error:
        log.info("%s cannot be locked: %s", path, error)
    return lock


def release(lock: BaseFileLock) -> None:
    """Remove the locked file, then let go of it: in this order no other process holds what is removed."""
    with contextlib.suppress(OSError):
        Path(lock.lock_file).unlink()
    lock.release()


def compute_encoder_key(
    state_hash: str,
    image_size: int,
    precision: str,
    resize: str = FIT,
    *,
    block: int | None = None,
    computed: str = FLOAT32,
) -> str:
    """Compute the name of an encoder's embeddings: 32 hexadecimal digits.

    Args:
        state_hash: of the encoder's weights, ``compute_state_hash``.
        image_size: S, to which images are resized.
        precision: float16, float32 or int8.
        resize: how images become the square, see ``compute_resized_size``.
        block: before which the encoder is cut; None: it is whole.
        computed: what the encoder computes in, float32 or bfloat16.
    """
    text = f"{state_hash} {image_size} {precision} preprocessing {PREPROCESSING_VERSION} entries {_VERSION}"
    if resize != FIT:
        text += f" {resize}"
    if block is not None:
        text += f" before block {block}"
    if computed != FLOAT32:
        text += f" computed in {computed}"
    return hashlib.blake2b(text.encode(), digest_size=_KEY_BYTES).hexdigest()


def compute_image_key(content: bytes, *, exif_transpose: bool) -> str:
    """Compute the name of an image's embedding from the bytes of its file: 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=_KEY_BYTES, person=b"turned" if exif_transpose else b"").hexdigest()


def compute_place_key(image_key: str, window: Region | None, variant: int = 0) -> str:
    """Compute the name of the embedding of a window from that of its image, or of a turned variant of either; None and 0: the image's own."""
    if window is None and variant == 0:
        return image_key
    text = image_key if window is None else f"{image_key} {window.top} {window.left} {window.bottom} {window.right}"
    if variant:
        text += f" variant {variant}"
    return hashlib.blake2b(text.encode(), digest_size=_KEY_BYTES).hexdigest()


@dataclass(frozen=True, slots=True)
class EmbeddingStore:
    """The entries of one encoder.

    Attributes:
        root: folder of the embeddings of all encoders.
        encoder_key: from ``compute_encoder_key``.
        shape: of each embedding, (C, H, W).
        precision: float16, float32 or int8.
    """

    root: Path
    encoder_key: str
    shape: Shape
    precision: str = "float16"

    @property
    def folder(self) -> Path:
        """Where this encoder's entries lie."""
        return self.root / self.encoder_key

    @property
    def entry_bytes(self) -> int:
        """Size of an entry's file."""
        return compute_entry_bytes(self.shape, self.precision)

    def find_path(self, image_key: str) -> Path:
        """Return where an entry lies or would lie."""
        return self.folder / image_key[:2] / f"{image_key}{ENTRY}"

    def has(self, image_key: str) -> bool:
        """Return whether there is an entry of the right length; whether it is whole shows when it is read."""
        try:
            return self.find_path(image_key).stat().st_size == self.entry_bytes
        except OSError:
            return False

    def remove_cut_off(self, image_key: str) -> bool:
        """Remove an entry of the wrong length; return whether there was one."""
        path = self.find_path(image_key)
        with contextlib.suppress(OSError):
            if path.stat().st_size != self.entry_bytes:
                path.unlink()
                return True
        return False

    def touch(self, image_key: str) -> None:
        """Note that an entry is in use: the ones not used for longest go first."""
        with contextlib.suppress(OSError):  # a folder that is only read evicts nothing either
            os.utime(self.find_path(image_key))

    def read(self, image_key: str) -> NDArray[Any] | None:
        """Read an embedding.

        Returns:
            Array [C, H, W] of the store's precision, float32 where that is int8, else read-only; None where the entry is
            missing, or was damaged, in which case it is removed.
        """
        path = self.find_path(image_key)
        try:
            return read_entry(path, self.shape, self.precision, self.encoder_key, image_key)
        except DamagedEntryError as error:
            log.warning("%s is damaged (%s): encoded again", path, error)
            with contextlib.suppress(OSError):
                path.unlink()
        except (OSError, ValueError) as error:  # ValueError: mmap's word for a file that shrank meanwhile
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                log.warning("%s cannot be read (%s): encoded again", path, error)
        return None

    def claim(self, image_key: str) -> BaseFileLock | None:
        """Claim the writing of a missing entry: ``publish`` it, or ``release`` the claim.

        Returns:
            None where another process is writing it, or has written it by now.

        Raises:
            OSError: the folder cannot be written.
        """
        path = self.find_path(image_key)
        path.parent.mkdir(parents=True, exist_ok=True)
        claim = try_lock(path.with_suffix(LOCK))
        if claim is not None and path.exists():
            release(claim)
            return None
        return claim

    def publish(self, claim: BaseFileLock, image_key: str, embedding_CHW: NDArray[Any]) -> None:
        """Write a claimed entry, rounded to the store's precision, and end the claim.

        Raises:
            OSError: it cannot be written; nothing is left behind.
        """
        try:
            parts = pack_entry(self._to_arrays(embedding_CHW), self.encoder_key, image_key)
            with replacing(self.find_path(image_key)) as draft, draft.open("wb") as file:
                file.writelines(parts)
        finally:
            release(claim)

    def write(self, image_key: str, embedding_CHW: NDArray[Any]) -> bool:
        """Write an entry unless it is there, or being written; return whether it was.

        Raises:
            OSError: it cannot be written.
        """
        claim = self.claim(image_key)
        if claim is None:
            return False
        self.publish(claim, image_key, embedding_CHW)
        return True

    def round(self, embedding_CHW: NDArray[Any]) -> NDArray[Any]:
        """Bring an embedding to what is read once it is stored.

        Raises:
            ConfigError: its numbers are too large for the precision.
        """
        return _from_arrays(self._to_arrays(embedding_CHW))

    def _to_arrays(self, embedding_CHW: NDArray[Any]) -> Arrays:
        if embedding_CHW.shape != self.shape:
            raise ValueError(f"an embedding of {embedding_CHW.shape} does not belong to a store of {self.shape}")
        arrays = to_arrays(embedding_CHW, self.precision)
        if np.isinf(arrays["embedding"]).any() and not np.isinf(embedding_CHW).any():
            raise ConfigError(
                f"this encoder's embeddings reach {np.nanmax(np.abs(embedding_CHW)):.3g}, more than {self.precision} "
                "holds: set cache.precision=float32"
            )
        return arrays


@dataclass(frozen=True, slots=True)
class StoredEmbeddings:
    """The stored embeddings of the images of a run.

    Attributes:
        store: where they lie.
        keys: image key of each (path, exif_transpose) whose embedding, or those of whose windows, are kept; others were not to
            be read, or did not fit the budget.
        left_out: keys of windows of these images that did not fit the budget.
    """

    store: EmbeddingStore
    keys: Mapping[tuple[Path, bool], str] = field(default_factory=dict)
    left_out: AbstractSet[str] = frozenset()

    def find_key(self, image: AnnotatedImage | ImagePlace) -> str | None:
        """Find the key of an image, a window or a variant; None where its embedding is not to be kept."""
        image_key = self.keys.get((image.path, image.exif_transpose))
        key = image_key and compute_place_key(image_key, image.window, image.variant)
        return None if key in self.left_out else key

    def read(self, image: AnnotatedImage | ImagePlace) -> NDArray[Any] | None:
        """Read an image's embedding; None where there is none, or a damaged one."""
        key = self.find_key(image)
        return None if key is None else self.store.read(key)


class DamagedEntryError(Exception):
    """A file that does not hold the embedding that its name promises; the message says what is wrong with it."""


def to_arrays(embedding_CHW: NDArray[Any], precision: str) -> Arrays:
    """Bring an embedding to the arrays that are kept of it, by name: of 8 bits, each channel spans its own 256 levels.

    A channel with a number that is none, or infinite, has none left where 8 bits are kept.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        numbers_CHW: NDArray[Any] = np.ascontiguousarray(embedding_CHW, dtype=PRECISIONS[precision])
        if precision != "int8":
            return {"embedding": numbers_CHW}
        lowest_C = numbers_CHW.min(axis=(1, 2))
        scale_C = (numbers_CHW.max(axis=(1, 2)) - lowest_C) / _LEVELS
        levels_CHW = numbers_CHW - lowest_C[:, None, None]
        levels_CHW /= np.where(scale_C > 0, scale_C, 1)[:, None, None]
        # Numbers of float32 come first: safetensors wants arrays to begin at multiples of their numbers' size.
        return {"scale": scale_C, "offset": lowest_C, "embedding": np.rint(levels_CHW, out=levels_CHW).astype(np.uint8)}


def _from_arrays(arrays: Arrays) -> NDArray[Any]:
    """Undo ``to_arrays``."""
    if "scale" not in arrays:
        return arrays["embedding"]
    embedding_CHW: NDArray[Any] = arrays["embedding"].astype(PRECISIONS["int8"])
    with np.errstate(invalid="ignore"):
        embedding_CHW *= arrays["scale"][:, None, None]
        embedding_CHW += arrays["offset"][:, None, None]
    return embedding_CHW


@cache
def compute_entry_bytes(shape: Shape, precision: str) -> int:
    """Compute the size of an entry's file."""
    arrays = to_arrays(np.zeros(shape, np.float32), precision)
    return sum(map(len, pack_entry(arrays, "0" * 2 * _KEY_BYTES, "0" * 2 * _KEY_BYTES)))


def pack_entry(arrays: Arrays, encoder_key: str, image_key: str) -> Sequence[bytes | memoryview]:
    """Lay out an entry.

    Args:
        arrays: from ``to_arrays``.
        encoder_key: 32 hexadecimal digits.
        image_key: the same.

    Returns:
        Header and arrays, to be written one after the other.
    """
    return _build_header(arrays, encoder_key, image_key), *(array.data.cast("B") for array in arrays.values())


def read_entry(path: Path, shape: Shape, precision: str, encoder_key: str, image_key: str) -> NDArray[Any]:
    """Map an entry into memory and check all of it.

    Returns:
        Array [C, H, W]; but for int8 it is read-only, and stays on disk until it is looked at again.

    Raises:
        FileNotFoundError: there is no such entry.
        DamagedEntryError: the file is something else, or damaged.
        OSError: the file cannot be read.
    """
    wanted = compute_entry_bytes(shape, precision)
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size != wanted:
            raise DamagedEntryError(f"{size} bytes instead of {wanted}")
        mapped = memoryview(mmap.mmap(file.fileno(), wanted, access=mmap.ACCESS_READ))
    layout = _list_layout(shape, precision)
    start = wanted - sum(math.prod(sides) * dtype.itemsize for sides, dtype in layout.values())
    arrays: Arrays = {}
    end = start
    for name, (sides, dtype) in layout.items():
        begin, end = end, end + math.prod(sides) * dtype.itemsize
        arrays[name] = np.frombuffer(mapped[begin:end], dtype).reshape(sides)
    if mapped[:start] != _build_header(arrays, encoder_key, image_key):
        raise DamagedEntryError("it is of another image or encoder, or its checksum is wrong")
    return _from_arrays(arrays)


@cache
def _list_layout(shape: Shape, precision: str) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """List shape and type of each array of an entry, in order."""
    return {name: (a.shape, a.dtype) for name, a in to_arrays(np.zeros(shape, np.float32), precision).items()}


def _build_header(arrays: Arrays, encoder_key: str, image_key: str) -> bytes:
    """Build the header of a safetensors file: the length of a JSON text of a multiple of 8 bytes, and the text."""
    checksum, end, entries = 0, 0, []
    for name, array in arrays.items():
        checksum = zlib.crc32(array.data, checksum)
        begin, end = end, end + array.nbytes
        entries.append(_ARRAY % (name, _DTYPES[array.itemsize], list(array.shape), begin, end))
    text = (_HEADER % (encoder_key, image_key, checksum, ", ".join(entries))).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
