"""Keeps the folder of embeddings within its budget: what was not used for longest goes first.

The time of an entry's last use is its file's modification time.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vpexp.data.embedding_claim import DRAFT, is_same_file, try_lock
from vpexp.data.embedding_store import ENTRY

LOCK = ".evicting"
_FORGOTTEN_SECONDS = 86400.0  # drafts of file systems without locks


@dataclass(frozen=True, slots=True)
class Eviction:
    """What was removed to make room.

    Attributes:
        entries: how many.
        bytes: of how many bytes.
        kept_bytes: what the folder holds now, entries in use included.
    """

    entries: int = 0
    bytes: int = 0
    kept_bytes: int = 0


def make_room(root: Path, *, budget: int, needed: int, in_use: AbstractSet[Path]) -> Eviction:
    """Remove the entries that were not used for longest until ``needed`` more bytes fit.

    Does nothing where another process is at it. What cannot be removed stays.

    Args:
        root: folder of the embeddings of all encoders; it may be missing.
        budget: bytes that the folder may hold.
        needed: bytes about to be written.
        in_use: entries that are never removed.
    """
    with _hold_lock(root) as mine:
        if not mine:
            return Eviction()
        found: list[tuple[float, int, Path]] = []
        for path in _list_files(root):
            with contextlib.suppress(OSError):
                if path.suffix == DRAFT:
                    _remove_forgotten(path)
                elif path.suffix == ENTRY:
                    about = path.stat()
                    found.append((about.st_mtime, about.st_size, path))
        held, entries, freed = sum(size for _, size, _ in found), 0, 0
        for _, size, path in sorted(found):
            if held - freed + needed <= budget:
                break
            if path not in in_use:
                with contextlib.suppress(OSError):
                    path.unlink()
                    entries, freed = entries + 1, freed + size
        return Eviction(entries, freed, held - freed)


def _list_files(root: Path) -> Iterator[Path]:
    """List files two folders down, ``<encoder>/<2 digits>/<file>``; what goes away meanwhile is passed over."""
    for encoder in _list_folders(root):
        for part in _list_folders(encoder):
            with contextlib.suppress(OSError), os.scandir(part) as files:
                yield from [Path(file.path) for file in files]


def _list_folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as children:
            return [Path(child.path) for child in children if child.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _remove_forgotten(draft: Path) -> None:
    """Remove the draft of a writer that is no more: nobody holds its lock."""
    descriptor = os.open(draft, os.O_RDWR)
    try:
        locked = try_lock(descriptor)
        is_old = time.time() - os.fstat(descriptor).st_mtime > _FORGOTTEN_SECONDS
        if (locked or (locked is None and is_old)) and is_same_file(descriptor, draft):
            draft.unlink()
    finally:
        os.close(descriptor)


@contextmanager
def _hold_lock(root: Path) -> Iterator[bool]:
    """Let one process evict at a time; False where another one does, or where nothing can be removed anyway."""
    try:
        descriptor = os.open(root / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        yield False
        return
    try:
        yield try_lock(descriptor) is not False
    finally:
        os.close(descriptor)
