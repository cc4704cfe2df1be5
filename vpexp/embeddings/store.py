"""Embeddings of one encoder on disk, each image encoded once, ever.

An entry is addressed by content: the image file's bytes, the encoder's weights, its input size, the preprocessing and the
precision. So entries are shared by epochs, stages, runs and processes, and whatever changes asks for other entries.

An entry's file is a header of 64 bytes, then the raw array. The header names what the entry is of and holds a checksum of
itself and the array, so that a file that was cut off, has flipped bits, or lies under another entry's name is never taken
for an embedding. Its draft (``<image key>.part``) is locked as long as its writer lives, and a killed writer's lock goes
with it: where several processes fill one cache, whoever holds the lock encodes the image. File systems that know no locks
give every writer a draft of its own: an image may then be encoded twice, and never wrongly.

Legend: C channels, H W rows and columns of the embedding (S/16), S model input size.
"""

import contextlib
import hashlib
import logging
import mmap
import os
import struct
import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpexp.data.annotations import AnnotatedImage
from vpexp.data.geometry import PREPROCESSING_VERSION
from vpexp.errors import ConfigError

ENTRY = ".emb"
_KEY_BYTES = 16
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
fcntl: ModuleType | None

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
DRAFT = ".part"

log = logging.getLogger(__name__)


class Claim:
    """The right to write one entry; ``publish`` or ``release`` ends it."""

    def __init__(self, entry: Path, draft: Path, descriptor: int) -> None:
        self.entry = entry
        self._draft = draft
        self._descriptor = descriptor

    def publish(self, parts: Sequence[memoryview]) -> None:
        """Write the entry and give it its name; on an OSError nothing is left behind.

        Raises:
            OSError: the disk is full, and the like.
        """
        try:
            os.ftruncate(self._descriptor, 0)  # what a killed writer may have left
            for part in parts:
                _write_all(self._descriptor, part)
            self._draft.replace(self.entry)
        except BaseException:
            self.release()
            raise
        os.close(self._descriptor)

    def release(self) -> None:
        """Give the claim up; the lock goes last, so that no process takes over a draft that is about to go."""
        with contextlib.suppress(OSError):
            if is_same_file(self._descriptor, self._draft):
                self._draft.unlink()
        os.close(self._descriptor)


def claim_entry(entry: Path) -> Claim | None:
    """Claim the writing of an entry that is missing.

    Returns:
        None where another process is writing it, or has written it by now.

    Raises:
        OSError: the folder cannot be written.
    """
    draft = entry.with_suffix(DRAFT)
    while True:
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT, 0o666)
        locked = try_lock(descriptor)
        if locked and is_same_file(descriptor, draft):
            claim = Claim(entry, draft, descriptor)
            if not entry.exists():
                return claim
            claim.release()
            return None
        os.close(descriptor)
        if locked is None:
            return _claim_unlocked(entry, draft)
        if not locked:
            return None

        # The draft that was opened has become an entry, or went away, before its lock was had: look again.


def try_lock(descriptor: int) -> bool | None:
    """Lock a file without waiting; None where that cannot be done at all."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # file systems that know no locks say so in several ways
        return None
    return True


def is_same_file(descriptor: int, path: Path) -> bool:
    """Return whether a path still leads to the file that was opened."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)


def _claim_unlocked(entry: Path, draft: Path) -> Claim | None:
    with contextlib.suppress(OSError):
        draft.unlink()
    if entry.exists():
        return None
    draft = entry.with_name(f"{entry.stem}.{uuid.uuid4().hex}{DRAFT}")
    return Claim(entry, draft, os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))


def _write_all(descriptor: int, part: memoryview) -> None:
    while part:
        part = part[os.write(descriptor, part) :]


def compute_encoder_key(state_hash: str, image_size: int, precision: str) -> str:
    """Compute the name of an encoder's embeddings: 32 hexadecimal digits.

    Args:
        state_hash: of the encoder's weights, ``compute_state_hash``.
        image_size: S, to which images are resized.
        precision: float16 or float32.
    """
    text = f"{state_hash} {image_size} {precision} preprocessing {PREPROCESSING_VERSION}"
    return hashlib.blake2b(text.encode(), digest_size=_KEY_BYTES).hexdigest()


def compute_image_key(content: bytes, *, exif_transpose: bool) -> str:
    """Compute the name of an image's embedding from the bytes of its file: 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=_KEY_BYTES, person=b"turned" if exif_transpose else b"").hexdigest()


@dataclass(frozen=True, slots=True)
class EmbeddingStore:
    """The entries of one encoder.

    Attributes:
        root: folder of the embeddings of all encoders.
        encoder_key: from ``compute_encoder_key``.
        shape: of each embedding, (C, H, W).
        precision: float16 or float32.
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
            Read-only array [C, H, W] of the store's precision; None where the entry is missing, or was damaged, in
            which case it is removed.
        """
        path = self.find_path(image_key)
        try:
            return read_entry(
                path, shape=self.shape, precision=self.precision, encoder_key=self.encoder_key, image_key=image_key
            )
        except DamagedEntryError as error:
            log.warning("%s is damaged (%s): encoded again", path, error)
            with contextlib.suppress(OSError):
                path.unlink()
        except (OSError, ValueError) as error:  # ValueError: mmap's word for a file that shrank meanwhile
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                log.warning("%s cannot be read (%s): encoded again", path, error)
        return None

    def claim(self, image_key: str) -> Claim | None:
        """Claim the writing of a missing entry; None where another process does, or did, write it.

        Raises:
            OSError: the folder cannot be written.
        """
        path = self.find_path(image_key)
        path.parent.mkdir(parents=True, exist_ok=True)
        return claim_entry(path)

    def publish(self, claim: Claim, image_key: str, embedding_CHW: NDArray[Any]) -> None:
        """Write a claimed entry, rounded to the store's precision.

        Raises:
            OSError: it cannot be written; the claim is given up.
        """
        claim.publish(pack_entry(self.round(embedding_CHW), self.encoder_key, image_key))

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
        """Bring an embedding to the precision that entries have.

        Raises:
            ConfigError: its numbers are too large for it.
        """
        if embedding_CHW.shape != self.shape:
            raise ValueError(f"an embedding of {embedding_CHW.shape} does not belong to a store of {self.shape}")
        with np.errstate(over="ignore"):
            rounded_CHW: NDArray[Any] = np.asarray(embedding_CHW, dtype=PRECISIONS[self.precision])
        if np.isinf(rounded_CHW).any() and not np.isinf(embedding_CHW).any():
            raise ConfigError(
                f"this encoder's embeddings reach {np.nanmax(np.abs(embedding_CHW)):.3g}, more than {self.precision} "
                "holds: set cache.precision=float32"
            )
        return rounded_CHW


@dataclass(frozen=True, slots=True)
class StoredEmbeddings:
    """The stored embeddings of the images of a run.

    Attributes:
        store: where they lie.
        keys: image key of each (path, exif_transpose) whose embedding is kept; others were not to be read, or did not
            fit the budget.
    """

    store: EmbeddingStore
    keys: Mapping[tuple[Path, bool], str] = field(default_factory=dict)

    def find_key(self, image: AnnotatedImage) -> str | None:
        """Find an image's key; None where its embedding is not to be kept."""
        return self.keys.get((image.path, image.exif_transpose))

    def read(self, image: AnnotatedImage) -> NDArray[Any] | None:
        """Read an image's embedding; None where there is none, or a damaged one."""
        key = self.find_key(image)
        return None if key is None else self.store.read(key)


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
