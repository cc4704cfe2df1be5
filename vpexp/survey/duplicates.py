"""Pictures that occur twice: the same file, or the same picture saved again or in another size.

A picture that is in two splits is measured on what was learnt. Whether two pictures are the same is decided in three
steps, each of which looks closer at fewer pairs: neighbours among all thumbnails, then the thumbnails, then the files once
more in more detail. Frames of a video differ where something has moved; of two splits, they are listed apart from copies.
Images without contrast are compared by their content alone.

Each image file is read for a signature, which finds damaged files too. Reading goes in threads: decoding, hashing and
waiting for the disk all happen outside of Python's lock, and threads need no start of their own and end with the program.

Legend: I images, T side of a thumbnail, C values of its coarse form, D side of a square in detail.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpexp.console import build_progress, show_progress
from vpexp.data.image_files import ImageFileError
from vpexp.data.images import read_thumbnail
from vpexp.survey.measure import SplitMeasures

COARSE = 4
NEIGHBOURS = 8
LOOKED_AT = 2
"""So many neighbours of a picture are compared by thumbnail, and so many of these in detail: in a video all are alike."""

LEAST_CONTRAST = 1.5
"""Standard deviation of the grey levels (0..255) below which a picture has no features to compare."""

MOST_UNLIKE = 0.04
"""One minus the correlation of two thumbnails of one picture; measured on copies 0.0001 to 0.036, on others from 0.25."""

DETAIL = 256
"""Side of the squares in which the last step compares two files."""

PLACES = 16
"""So many places along a side are looked at: something small that moves fills one of them."""

MOST_CHANGED = 0.2
"""How far a place may differ there, as a share of the picture's contrast: more has moved."""

LEAST_CHANGED = 6.0
"""Grey levels that saving as JPEG changes anyway.

Of what these two allow, copies of photos use 0.61 at most (JPEG of quality 40, half to double size, other shapes, gamma) and
brighter ones 0.1 to 1.1, where light parts lose their shades; frames of videos 0.08 s apart use 1.2 and more, 0.2 s apart
1.7 and more; pictures that are shifted by 1 % from 1.5.
"""

KEPT_IN_DETAIL = 2000
"""Files kept in memory while they are compared."""

SAME_FILE = "same file"
SAME_PICTURE = "same picture, saved again"
ALIKE = "nearly alike, as frames of one video are"
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


@dataclass(frozen=True, slots=True)
class Member:
    """An image of a group of copies."""

    split: str
    image_id: str
    path: str
    width: int
    height: int
    objects: int


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images that are the same picture, or nearly so, the one of the earlier split first."""

    first: Member
    second: Member
    kind: str

    @property
    def is_leak(self) -> bool:
        """Return whether the picture is in two splits."""
        return self.first.split != self.second.split


@dataclass(frozen=True, slots=True)
class Duplicates:
    """All pictures that occur twice.

    Attributes:
        pairs: each copy with the first image of its picture, leaks first; then by split and name.
        leaks: images whose picture is in an earlier split too, by (earlier split, split).
        repeated: images whose picture is in the same split before, by split.
        alike: images of two splits that are nearly alike, but no copies.
    """

    pairs: tuple[Pair, ...]
    leaks: dict[tuple[str, str], int]
    repeated: dict[str, int]
    alike: tuple[Pair, ...] = ()

    @property
    def leak_count(self) -> int:
        """Count the images that are in an earlier split too."""
        return sum(self.leaks.values())

    @property
    def repeated_count(self) -> int:
        """Count the images that are in their own split before."""
        return sum(self.repeated.values())


def find_duplicates(splits: Sequence[SplitMeasures], signatures: Sequence[Signature]) -> Duplicates:
    """Find the pictures that occur twice.

    Args:
        splits: all splits, in their order.
        signatures: of all their images, one after another.
    """
    from scipy.cluster.hierarchy import DisjointSet

    places = [(split, row) for split in splits for row in range(split.image_count)]
    groups = DisjointSet(range(len(signatures)))
    for first, second in _find_same_files(signatures):
        groups.merge(first, second)
    files = [index for index in groups if groups[index] == index]
    shortest = [int(split.sizes_I2[row].min()) for split, row in places]
    alike = []
    for first, second, is_same in _compare_pictures(signatures, shortest, files):
        if is_same:
            groups.merge(first, second)
        elif places[first][0] is not places[second][0]:
            alike.append(Pair(_describe(*places[first]), _describe(*places[second]), ALIKE))
    pairs: list[Pair] = []
    leaks: dict[tuple[str, str], int] = {}
    repeated: dict[str, int] = {}
    for group in sorted(sorted(subset) for subset in groups.subsets() if len(subset) > 1):
        members = [_describe(*places[index]) for index in group]
        head = members[0]
        for index, member in zip(group[1:], members[1:], strict=True):
            same = signatures[index].digest == signatures[group[0]].digest
            pairs.append(Pair(head, member, SAME_FILE if same else SAME_PICTURE))
            if member.split != head.split:
                key = (head.split, member.split)
                leaks[key] = leaks.get(key, 0) + 1
            else:
                repeated[member.split] = repeated.get(member.split, 0) + 1
    pairs.sort(key=lambda pair: not pair.is_leak)
    return Duplicates(tuple(pairs), leaks, repeated, tuple(alike))


def _describe(split: SplitMeasures, row: int) -> Member:
    height, width = split.sizes_I2[row].tolist()
    return Member(
        split.name, split.image_ids[row], str(split.paths[row]), width, height, int(split.object_counts_I[row])
    )


def _find_same_files(signatures: Sequence[Signature]) -> Iterator[tuple[int, int]]:
    first_with: dict[bytes, int] = {}
    for index, signature in enumerate(signatures):
        if signature.digest:
            first = first_with.setdefault(signature.digest, index)
            if first != index:
                yield first, index


def _compare_pictures(
    signatures: Sequence[Signature], shortest: Sequence[int], files: Sequence[int]
) -> Iterator[tuple[int, int, bool]]:
    """Find pairs of pictures that look alike, of ``files``, which differ, and whether they are the same picture.

    ``shortest`` are the shorter sides of all files, in pixels.
    """
    kept = [
        index
        for index in files
        if (thumbnail_TT := signatures[index].thumbnail_TT) is not None and thumbnail_TT.std() >= LEAST_CONTRAST
    ]
    if len(kept) < 2:
        return
    candidates = _find_candidates(np.stack([_normalize(signatures[index].thumbnail_TT) for index in kept]))
    read = lru_cache(KEPT_IN_DETAIL)(_read_detail)
    for first, second in show_progress(candidates, "comparing pictures"):
        one, other = kept[first], kept[second]
        first_DD, second_DD = read(signatures[one]), read(signatures[other])
        if first_DD is not None and second_DD is not None:
            yield one, other, _agree(first_DD, second_DD, min(shortest[one], shortest[other]))


def _normalize(thumbnail_TT: NDArray[np.uint8] | None) -> NDArray[np.float32]:
    """Shift and scale grey levels to mean 0 and deviation 1."""
    assert thumbnail_TT is not None
    values_TT = thumbnail_TT.astype(np.float32)
    normal_TT: NDArray[np.float32] = (values_TT - values_TT.mean()) / values_TT.std()
    return normal_TT


def _find_candidates(thumbnails_ITT: NDArray[np.float32]) -> list[tuple[int, int]]:
    """Find pairs whose thumbnails are alike: each picture with the few that are most like it.

    Neighbours are looked for by coarse forms. Means over blocks are never further apart, in proportion, than what they
    are means of, so that no pair of thumbnails that are alike is further apart than the radius.
    """
    from scipy.spatial import KDTree

    count, side, _ = thumbnails_ITT.shape
    block = side // COARSE
    coarse_IC = thumbnails_ITT.reshape(count, COARSE, block, COARSE, block).mean(axis=(2, 4)).reshape(count, -1)
    radius = COARSE * (2 * MOST_UNLIKE) ** 0.5
    _, neighbours = KDTree(coarse_IC).query(coarse_IC, k=min(NEIGHBOURS + 1, count), distance_upper_bound=radius)
    pairs = set()
    for index, row in enumerate(neighbours):
        others = [int(other) for other in row if other not in (index, count)]  # count: there is no such neighbour
        if others:
            unlike = 1 - np.einsum("tu,itu->i", thumbnails_ITT[index], thumbnails_ITT[others]) / side**2
            best = np.argsort(unlike)[:LOOKED_AT]
            pairs |= {tuple(sorted((index, others[place]))) for place in best if unlike[place] <= MOST_UNLIKE}
    return sorted(pairs)


def _read_detail(signature: Signature) -> NDArray[np.uint8] | None:
    """Read a file in more detail; None where it is gone by now."""
    try:
        return read_thumbnail(signature.path, DETAIL, signature.turned)
    except ImageFileError:
        return None


def _agree(first_DD: NDArray[np.uint8], second_DD: NDArray[np.uint8], shortest: int) -> bool:
    """Compare two pictures place by place, once one has the grey levels of the other, which makes up for other brightness.

    Args:
        first_DD: one picture.
        second_DD: the other.
        shortest: the shorter side of the smaller file, which can show no more detail than it has.
    """
    from scipy import ndimage

    block = 1
    while DETAIL // block > max(shortest, SIDE):
        block *= 2
    pictures = []
    for picture_DD in (first_DD, second_DD):
        blocks = picture_DD.reshape(DETAIL // block, block, DETAIL // block, block).astype(np.float32)
        pictures.append(ndimage.gaussian_filter(blocks.mean(axis=(1, 3)), 1.0))
    one, other = pictures
    allowed = max(MOST_CHANGED * min(float(one.std()), float(other.std())), LEAST_CHANGED)
    return min(_measure_change(one, other), _measure_change(other, one)) <= allowed


def _measure_change(picture_DD: NDArray[np.float32], other_DD: NDArray[np.float32]) -> float:
    """Measure how many grey levels two pictures differ where they differ most, as a root mean square over the place.

    The first is given the second's histogram before: what has no shades any more in the second loses them in both.
    """
    from scipy import ndimage

    matched_DD = np.empty_like(other_DD)
    matched_DD.flat[np.argsort(picture_DD, axis=None, kind="stable")] = np.sort(other_DD, axis=None)
    squares_DD = ndimage.uniform_filter((matched_DD - other_DD) ** 2, other_DD.shape[0] // PLACES)
    return float(np.sqrt(squares_DD.max()))
