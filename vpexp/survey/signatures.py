"""A signature of each image file, by which the same picture is found again; reading it finds damaged files too.

Reading goes in threads: decoding, hashing and waiting for the disk all happen outside of Python's lock, and threads need
no start of their own and end with the program.

Legend: T side of a thumbnail.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpexp.console import build_progress
from vpexp.data.image_files import ImageFileError
from vpexp.data.images import read_thumbnail

SIDE = 32
DIGEST_BYTES = 16
MOST_THREADS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Signature:
    """What is remembered of an image file.

    Attributes:
        path: the file.
        turned: whether its EXIF orientation counts.
        digest: a hash of its content; empty where it cannot be read.
        thumbnail_TT: uint8, the picture as a small grey square; None where it cannot be decoded.
        damage: why it cannot be decoded; None where it can.
    """

    path: Path
    turned: bool
    digest: bytes
    thumbnail_TT: NDArray[np.uint8] | None
    damage: str | None = None


def read_signatures(paths: Sequence[Path], turned: Sequence[bool]) -> list[Signature]:
    """Read the signatures of image files, with a progress bar.

    Args:
        paths: the files.
        turned: for each, whether its EXIF orientation counts.

    Returns:
        One a file, in their order; a file that cannot be read has one that says so.
    """
    executor = ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS))
    try:
        with build_progress() as progress:
            read = executor.map(_read_signature, paths, turned)
            return list(_track(progress, read, len(paths)))
    finally:
        executor.shutdown(cancel_futures=True)  # after Ctrl-C nothing is read any more


def _track(progress: Any, items: Iterator[Signature], total: int) -> Iterator[Signature]:
    tracked: Iterator[Signature] = progress.track(items, total=total, description="reading images")
    return tracked


def _read_signature(path: Path, turned: bool) -> Signature:
    try:
        content = path.read_bytes()
    except OSError as error:
        return Signature(path, turned, b"", None, f"image file cannot be read ({error.strerror})")
    digest = blake2b(content, digest_size=DIGEST_BYTES).digest()
    try:
        return Signature(path, turned, digest, read_thumbnail(path, SIDE, turned, content=content))
    except ImageFileError as error:
        return Signature(path, turned, digest, None, error.reason)
