"""What writers of data sets share, and the writing itself: whole or not at all.

Images with masks that are to become a data set, and their files: copied or linked, under the names that they have.
"""

import itertools
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from vpexp.config.schema import OutputConfig
from vpexp.data.annotations import AnnotatedImage, Rle
from vpexp.data.folder import HIDDEN
from vpexp.data.readers.label_images import is_background_name
from vpexp.errors import ConfigError, DataError
from vpexp.registry import FORMATS, load_target

COPY, SYMLINK = "copy", "symlink"
LAYOUT_FOLDERS = frozenset({"images", "masks", "jpegimages", "segmentationobject", "segmentationclass", "imagesets"})
"""Folders that make up a layout wherever they lie, in lower case; COCO and Datumaro have none."""

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_DRIVE = re.compile(r"^([A-Za-z]):")
_MOST_BYTES = 255
"""Of a file's name."""

_LONGEST_SUFFIX = len(".png")
"""Of the files that are written beside an image, under its name."""


@dataclass(frozen=True, slots=True)
class LabelledObject:
    """A mask and what it shows.

    Attributes:
        mask: of the image's size, with at least one pixel.
        label: name of its class.
        score: predicted IoU; None: people annotated it.
    """

    mask: Rle
    label: str
    score: float | None = None


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image file and its masks.

    Attributes:
        name: of the file in the data set, folders below that of the images included; see ``NameGiver``.
        path: the file as it lies now.
        height: rows, in the frame of the masks.
        width: columns.
        split: train, val or test.
        objects: in the order in which they are written.
    """

    name: str
    path: Path
    height: int
    width: int
    split: str
    objects: tuple[LabelledObject, ...]


def name_file(image: AnnotatedImage) -> str:
    """Name an image of a data set as its file is called, with its ending, below the folders that its id names."""
    given, own = PurePosixPath(image.image_id.replace("\\", "/")).parts, image.path.parts
    shared = 1
    if given[:1] != ("/",):
        while shared < min(len(given), len(own)) and _is_same_part(given[-1 - shared], own[-1 - shared]):
            shared += 1
    return "/".join(own[-shared:])


def _is_same_part(one: str, other: str) -> bool:
    return normalize("NFC", one).casefold() == normalize("NFC", other).casefold()


class NameGiver:
    """Gives each image of a data set a name that its format tells from all others: as a rule the one it has.

    COCO tells images of a split apart by whole names, Datumaro and masks by names without endings, and Pascal VOC, whose
    splits share a folder, those of all splits. File systems exist that do not tell upper from lower case.

    Attributes:
        renamed: (name, the name that was given) of the images that could not keep theirs.
    """

    def __init__(self, format: str) -> None:  # noqa: A002 (the configuration's word)
        self.renamed: list[tuple[str, str]] = []
        self._format = format
        self._taken: set[tuple[str, str]] = set()

    def choose(self, name: str, split: str) -> str:
        """Choose a name; of two that are the same to the format, the second ``a/b.jpg`` becomes ``a/b_2.jpg``."""
        path = PurePosixPath(*map(self._mend, PurePosixPath(name.replace("\\", "/")).parts))
        numbered = (_number(path, number) for number in itertools.count(1))
        chosen, key = next((one, key) for one in numbered if (key := self._build_key(one, split)) not in self._taken)
        self._taken.add(key)
        if chosen.as_posix() != name:
            self.renamed.append((name, chosen.as_posix()))
        return chosen.as_posix()

    def _build_key(self, path: PurePosixPath, split: str) -> tuple[str, str]:
        own = path if self._format == "coco" else path.with_suffix("")
        return "" if self._format == "voc" else split, normalize("NFC", own.as_posix()).casefold()

    def _mend(self, part: str) -> str:
        """Change what no folder, list or layout holds in a part of a name."""
        part = _UNPRINTABLE.sub("_", part.replace("/", "_"))
        if part.startswith(HIDDEN):  # also the folder above
            part = f"_{part.lstrip('.')}"
        if self._format == "datumaro":  # which refuses what could be a drive of Windows
            part = _DRIVE.sub(r"\1_", part)
        is_layout = self._format not in ("coco", "datumaro") and part.lower() in LAYOUT_FOLDERS
        return f"{part}_" if is_layout else part


def _number(path: PurePosixPath, number: int) -> PurePosixPath:
    """Give a name a number, from the second on, and cut it so that it fits into a file system."""
    end = f"_{number}" if number > 1 else ""
    room = _MOST_BYTES - len(end) - max(len(path.suffix.encode()), _LONGEST_SUFFIX)
    return path.with_name(f"{path.stem.encode()[:room].decode(errors='ignore')}{end}{path.suffix}")


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
        target = prepare_place(folder, image.name)
        if how == SYMLINK:
            target.symlink_to(image.path.resolve())
        else:
            shutil.copyfile(image.path, target)


def prepare_place(folder: Path, name: str, suffix: str | None = None) -> Path:
    """Make the folders above a file that is called as an image, or so with another ending, and give its path."""
    target = folder / (name if suffix is None else f"{PurePosixPath(name).with_suffix('')}{suffix}")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def check_target(folder: Path, format: str, categories: Sequence[str]) -> None:  # noqa: A002 (the configuration's word)
    """Check before the work begins that a data set can be written.

    Args:
        folder: where it is to be.
        format: a key of ``FORMATS``.
        categories: names of the classes that objects may have.

    Raises:
        ConfigError: the folder holds something already, is one that cannot be exchanged for another, or lies below a file
            or where nothing can be written.
        DataError: a class has a name that the format keeps for the background.
    """
    above = next((place for place in folder.absolute().parents if place.exists()), folder)
    if not above.is_dir():
        raise ConfigError(f"output.folder={folder}: {above} is a file, not a folder")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"output.folder={folder} is not empty: name a new folder, so that nothing is overwritten")
    if folder.name in ("", "..") or folder.is_symlink() or folder.is_mount():
        raise ConfigError(f"output.folder={folder}: another cannot take this folder's place, name a new one below it")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"output.folder={folder}: {above} cannot be written to: name a folder elsewhere")
    for name in categories:
        if fault := _find_fault(name, format):
            raise DataError(f"label {name!r} {fault} in format {format}: call it otherwise, or use coco")


def _find_fault(name: str, format: str) -> str | None:  # noqa: A002
    """Describe what stops a format from having objects of a class of this name; None if nothing does."""
    if format != "coco" and is_background_name(name):
        return "means no object"
    is_text = name and name == name.encode("utf-8", "replace").decode()
    return None if is_text or format != "datumaro" else "cannot be written"


def write_dataset(
    folder: Path, settings: OutputConfig, images: Sequence[LabelledImage], categories: Sequence[str]
) -> list[str]:
    """Write a data set beside its place, and move it there when it is whole.

    Args:
        folder: must not exist, or be empty.
        settings: the section ``output``: format, form of the masks, and whether image files are copied.
        images: at least one object each; of formats whose masks cannot overlap, without overlaps.
        categories: names of all classes, in their order.

    Returns:
        Lines on what the format cannot tell of these objects.

    Raises:
        ConfigError: the folder cannot be written.
        DataError: the format cannot hold these objects.
    """
    format_ = settings.format
    assert format_ is not None, "null writes no data set"
    write = partial(load_target("output.format", FORMATS[format_].writer), placing=settings.images)
    if format_ == "coco":
        write = partial(write, shape=settings.masks)
    categories = [name for name in categories if not _find_fault(name, format_)]  # no object is of these: check_target
    draft = folder.with_name(f".dataset.{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        notes: list[str] = write(draft, images, categories)
        if folder.is_dir():
            folder.rmdir()
        draft.replace(folder)
    except OSError as error:
        raise ConfigError(f"output.folder={folder} cannot be written: {error.strerror} ({error.filename})") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return notes
