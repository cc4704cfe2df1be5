"""The image files of a data set that is written: copied, or linked, under names that are unique."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from vpexp.data.writers.labelled import LabelledImage

COPY, SYMLINK = "copy", "symlink"


class NameGiver:
    """Gives each image a file name of its own, without folders; no two have the same stem."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def choose(self, name: str) -> str:
        """Choose a name: ``a/b.jpg`` becomes ``a_b.jpg``, a second one ``a_b_2.jpg``."""
        path = PurePosixPath(name.replace("/", "_").replace("\\", "_"))
        stem, number = path.stem, 1
        while stem.lower() in self._taken:  # file systems exist that tell no case apart
            number += 1
            stem = f"{path.stem}_{number}"
        self._taken.add(stem.lower())
        return f"{stem}{path.suffix}"


def group_by_split(images: Iterable[LabelledImage]) -> dict[str, list[LabelledImage]]:
    """Group images by split, in the order of their first appearance."""
    groups: dict[str, list[LabelledImage]] = {}
    for image in images:
        groups.setdefault(image.split, []).append(image)
    return groups


def place_images(images: Sequence[LabelledImage], folder: Path, how: str) -> None:
    """Copy images into a folder, or link to them by absolute paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        target = folder / image.name
        if how == SYMLINK:
            target.symlink_to(image.path.resolve())
        else:
            shutil.copyfile(image.path, target)
