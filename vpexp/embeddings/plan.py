"""What a run needs of the store of embeddings: what is there, what is missing, and what the budget has room for.

Where there is too little room, what was not used for longest goes first; the time of an entry's last use is its file's
modification time.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vpexp.console import build_progress
from vpexp.data.annotations import AnnotatedImage, ImagePlace
from vpexp.embeddings.store import (
    ENTRY,
    LOCK,
    EmbeddingStore,
    compute_image_key,
    compute_place_key,
    release,
    try_lock,
)

# Files are looked up by threads: they wait for the disk, and hashing lets go of the interpreter.
MOST_READERS = 8
EVICTING = ".evicting"  # held by the process that makes room


@dataclass(frozen=True, slots=True)
class EmbeddingPlan:
    """What is to be done before a run.

    Attributes:
        keys: image key of each (path, exif_transpose) whose embedding, or those of whose windows, are kept.
        missing: one image or window of each key that has no entry yet, in the order in which the run named them.
        found: entries that are there.
        damaged: entries of the wrong length, removed; they are among the missing.
        left_out: keys of the images and windows that do not fit the budget.
        needed_bytes: what the entries of all images take, those that do not fit included.
        evicted: entries of others that had to go.
        unreadable: image files that could not be read.
    """

    keys: dict[tuple[Path, bool], str]
    missing: list[AnnotatedImage | ImagePlace]
    found: int
    damaged: int
    left_out: frozenset[str]
    needed_bytes: int
    evicted: int
    unreadable: int

    @property
    def not_kept(self) -> int:
        """Count the different images and windows that do not fit the budget."""
        return len(self.left_out)


def plan_embeddings(
    store: EmbeddingStore, images: Sequence[AnnotatedImage | ImagePlace], *, max_bytes: int
) -> EmbeddingPlan:
    """Look up the images that a run needs, and make room for the missing ones.

    Entries that are needed are never removed for others of the same run: as many as fit are kept, first those that are
    there, then the missing ones in order.

    Args:
        store: of the run's encoder.
        images: images or windows that the run needs, the most important first.
        max_bytes: what the folder of all encoders may hold.
    """
    places = list(dict.fromkeys((image.path, image.exif_transpose) for image in images))
    keys = _identify(places)
    by_key: dict[str, AnnotatedImage | ImagePlace] = {}
    for image in images:
        if (image_key := keys.get((image.path, image.exif_transpose))) is not None:
            by_key.setdefault(compute_place_key(image_key, image.window, image.variant), image)
    damaged = sum(store.remove_cut_off(key) for key in by_key)
    found = [key for key in by_key if store.has(key)]
    there = set(found)
    chosen = set([*found, *(key for key in by_key if key not in there)][: max_bytes // store.entry_bytes])
    missing = [image for key, image in by_key.items() if key in chosen and key not in there]
    for key in there & chosen:
        store.touch(key)
    evicted = make_room(
        store.root,
        budget=max_bytes,
        needed=len(missing) * store.entry_bytes,
        in_use={store.find_path(key) for key in chosen},
    )
    left_out = frozenset(by_key.keys() - chosen)
    return EmbeddingPlan(
        keys={place: key for place, key in keys.items() if key not in left_out},
        missing=missing,
        found=len(there & chosen),
        damaged=damaged,
        left_out=left_out,
        needed_bytes=len(by_key) * store.entry_bytes,
        evicted=evicted,
        unreadable=len(places) - len(keys),
    )


def _identify(places: Sequence[tuple[Path, bool]]) -> dict[tuple[Path, bool], str]:
    """Compute the key of every image from its file's bytes; files that cannot be read have none."""

    def identify(place: tuple[Path, bool]) -> str | None:
        try:
            return compute_image_key(place[0].read_bytes(), exif_transpose=place[1])
        except OSError:
            return None

    keys: dict[tuple[Path, bool], str] = {}
    threads = ThreadPoolExecutor(MOST_READERS)
    try:
        with build_progress() as progress:
            task = progress.add_task("looking for embeddings", total=len(places))
            for place, key in zip(places, threads.map(identify, places), strict=True):
                if key is not None:
                    keys[place] = key
                progress.advance(task)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)  # Ctrl-C does not wait for the files that remain
    return keys


def make_room(root: Path, *, budget: int, needed: int, in_use: AbstractSet[Path]) -> int:
    """Remove the entries that were not used for longest until ``needed`` more bytes fit; return how many.

    Does nothing where another process is at it. What cannot be removed stays.

    Args:
        root: folder of the embeddings of all encoders; it may be missing.
        budget: bytes that the folder may hold.
        needed: bytes about to be written.
        in_use: entries that are never removed.
    """
    lock = try_lock(root / EVICTING) if root.is_dir() else None
    if lock is None:
        return 0
    found: list[tuple[float, int, Path]] = []
    for path in _list_files(root):
        if path.suffix == LOCK:
            _remove_forgotten(path)
        elif ENTRY in path.suffixes:  # also of formats before, and drafts of processes that were killed
            with contextlib.suppress(OSError):
                about = path.stat()
                found.append((about.st_mtime, about.st_size, path))
    held, evicted = sum(size for _, size, _ in found), 0
    for _, size, path in sorted(found):
        if held + needed <= budget:
            break
        if path not in in_use:
            with contextlib.suppress(OSError):
                path.unlink()
                held, evicted = held - size, evicted + 1
    lock.release()
    return evicted


def _remove_forgotten(path: Path) -> None:
    """Remove the lock of a process that is gone."""
    if (lock := try_lock(path)) is not None:
        release(lock)


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
