"""Embeddings of one encoder on disk, each image encoded once, ever.

An entry is addressed by content: the image file's bytes, the encoder's weights, its input size, the preprocessing and the
precision. So entries are shared by epochs, stages, runs and processes, and whatever changes asks for other entries.

Legend: C channels, H W rows and columns of the embedding (S/16), S model input size.
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpexp.data.embedding_claim import Claim, claim_entry
from vpexp.data.embedding_entry import (
    PRECISIONS,
    DamagedEntryError,
    Shape,
    compute_entry_bytes,
    pack_entry,
    read_entry,
)
from vpexp.data.geometry import PREPROCESSING_VERSION
from vpexp.data.types import AnnotatedImage
from vpexp.errors import ConfigError

ENTRY = ".emb"
_KEY_BYTES = 16

log = logging.getLogger(__name__)


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
        """Say where an entry lies or would lie."""
        return self.folder / image_key[:2] / f"{image_key}{ENTRY}"

    def has(self, image_key: str) -> bool:
        """Say whether there is an entry of the right length; whether it is whole shows when it is read."""
        try:
            return self.find_path(image_key).stat().st_size == self.entry_bytes
        except OSError:
            return False

    def remove_cut_off(self, image_key: str) -> bool:
        """Remove an entry of the wrong length; say whether there was one."""
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
        """Write an entry unless it is there, or being written; say whether it was.

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
