"""What a run needs of the store of embeddings: what is there, what is missing, and what the budget has no room for."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vpexp.console import build_progress
from vpexp.data.embedding_budget import make_room
from vpexp.data.embedding_store import EmbeddingStore, compute_image_key
from vpexp.data.types import AnnotatedImage

# Files are looked up by threads: they wait for the disk, and hashing lets go of the interpreter.
MOST_READERS = 8


@dataclass(frozen=True, slots=True)
class EmbeddingPlan:
    """What is to be done before a run.

    Attributes:
        keys: image key of each (path, exif_transpose) whose embedding is kept.
        missing: one image of each key that has no entry yet, in the order in which the run named them.
        found: entries that are there.
        damaged: entries of the wrong length, removed; they are among the missing.
        not_kept: different images that do not fit the budget.
        needed_bytes: what the entries of all images take, those that do not fit included.
        evicted: entries of others that had to go.
        unreadable: image files that could not be read.
    """

    keys: dict[tuple[Path, bool], str]
    missing: list[AnnotatedImage]
    found: int
    damaged: int
    not_kept: int
    needed_bytes: int
    evicted: int
    unreadable: int


def plan_embeddings(
    store: EmbeddingStore, images: Sequence[AnnotatedImage], *, max_bytes: int, readers: int = MOST_READERS
) -> EmbeddingPlan:
    """Look up the images that a run needs, and make room for the missing ones.

    Entries that are needed are never removed for others of the same run: as many as fit are kept, first those that are
    there, then the missing ones in order.

    Args:
        store: of the run's encoder.
        images: what the run needs, the most important first.
        max_bytes: what the folder of all encoders may hold.
        readers: threads.
    """
    by_place = {(image.path, image.exif_transpose): image for image in images}
    keys = _identify(list(by_place), readers)
    by_key: dict[str, AnnotatedImage] = {}
    for place, key in keys.items():
        by_key.setdefault(key, by_place[place])
    damaged = sum(store.remove_cut_off(key) for key in by_key)
    found = [key for key in by_key if store.has(key)]
    there = set(found)
    chosen = set([*found, *(key for key in by_key if key not in there)][: max_bytes // store.entry_bytes])
    missing = [image for key, image in by_key.items() if key in chosen and key not in there]
    for key in there & chosen:
        store.touch(key)
    eviction = make_room(
        store.root,
        budget=max_bytes,
        needed=len(missing) * store.entry_bytes,
        in_use={store.find_path(key) for key in chosen},
    )
    return EmbeddingPlan(
        keys={place: key for place, key in keys.items() if key in chosen},
        missing=missing,
        found=len(there & chosen),
        damaged=damaged,
        not_kept=len(by_key) - len(chosen),
        needed_bytes=len(by_key) * store.entry_bytes,
        evicted=eviction.entries,
        unreadable=len(by_place) - len(keys),
    )


def _identify(places: Sequence[tuple[Path, bool]], readers: int) -> dict[tuple[Path, bool], str]:
    """Compute the key of every image from its file's bytes; files that cannot be read have none."""

    def identify(place: tuple[Path, bool]) -> str | None:
        try:
            return compute_image_key(place[0].read_bytes(), exif_transpose=place[1])
        except OSError:
            return None

    keys: dict[tuple[Path, bool], str] = {}
    threads = ThreadPoolExecutor(readers)
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
