"""Image files that cannot be used: named one by one, because the reader counts them and names the first only."""

from collections.abc import Collection, Iterable
from pathlib import Path

from vpexp.data.folder import list_files
from vpexp.data.image_files import DAMAGED_IMAGE, IMAGE_SUFFIXES, NOT_AN_IMAGE, ImageFileError
from vpexp.data.images import read_image_header
from vpexp.data.progress import show_progress
from vpexp.survey.measure import SplitMeasures
from vpexp.survey.signatures import Signature
from vpexp.survey.types import DamagedFile

BROKEN = (NOT_AN_IMAGE, DAMAGED_IMAGE)


def list_damaged(root: Path, splits: Iterable[SplitMeasures], signatures: Iterable[Signature]) -> list[DamagedFile]:
    """List the image files that cannot be read.

    Args:
        root: the data set's folder.
        splits: whose images were found good as far as their headers and ends go.
        signatures: of these images, if they were read whole.
    """
    splits = tuple(splits)
    damaged = {one.path: one.damage for one in signatures if one.damage}
    if any(reason in split.skipped for split in splits for reason in BROKEN):
        damaged |= _look_through(root, {path for split in splits for path in split.paths})
    return [DamagedFile(path, reason) for path, reason in sorted(damaged.items())]


def _look_through(root: Path, good: Collection[Path]) -> dict[Path, str]:
    """Look at the headers and ends of all image files of a folder that no split uses."""
    names = [name for name in list_files(root) if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    damaged = {}
    for name in show_progress(names, "looking for damaged files"):
        path = root / name
        if path in good:
            continue
        try:
            read_image_header(path)
        except ImageFileError as error:
            if error.reason in BROKEN:
                damaged[path] = error.reason
    return damaged
