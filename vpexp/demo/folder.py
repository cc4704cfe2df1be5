"""The folder of a data set that is being labelled: who holds it, and how images get into it."""

import filecmp
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vpexp.data.image_finder import list_meanings
from vpexp.demo.pictures import PictureChangedError
from vpexp.errors import CheckpointError, ConfigError, OutputError
from vpexp.runfolder import RunFolder

ANNOTATIONS = Path("annotations", "instances_train.json")
IMAGES = Path("images", "train")
STEM = "instances_"
LISTS = ("images", "annotations", "categories")
DRAFT = re.compile(r"\..+\.[A-Za-z]+\.\d+")  # of a file that is written beside its place, by a process of that number


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a data set has its files.

    Attributes:
        annotations: the COCO file; it may not be there yet.
        images: what file names of images are relative to.
        prefix: of the file names of further images.
    """

    annotations: Path
    images: Path
    prefix: str = ""


def find_layout(folder: Path) -> Layout:
    """Find what to go on with: the page's own file, or the one COCO file that another tool has exported into the folder.

    CVAT has ``annotations/instances_default.json`` and ``images/default/``, Label Studio ``result.json`` and file names as
    ``images/a.jpg``, X-AnyLabeling a file of any name beside or above its images.

    Raises:
        ConfigError: there are several.
    """
    own = Layout(folder / ANNOTATIONS, folder / IMAGES)
    if own.annotations.is_file():
        return own
    files = [path for place in (folder, folder / ANNOTATIONS.parent) for path in sorted(place.glob("*.json"))]
    found = {path: names for path in files if (names := _list_file_names(path)) is not None}
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise ConfigError(f"demo.folder={folder} holds several COCO files ({listed}): leave one of them there")
    if not found:
        return own
    ((path, names),) = found.items()
    parent = IMAGES.parent
    places = (folder, folder / parent / path.stem.removeprefix(STEM), folder / parent, path.parent)
    bases = [PurePosixPath(meaning).name for name in names for meaning in list_meanings(name)]
    images = next((place for place in places if any((place / name).is_file() for name in (*names, *bases))), places[1])
    has_prefix = images == folder and all(name.startswith(f"{parent}/") for name in names)
    return Layout(path, images, f"{parent}/" if has_prefix else "")


def _list_file_names(path: Path) -> list[str] | None:
    """List the images that a COCO file names; None where it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [str(entry["file_name"]) for entry in content["images"]] if all(n in content for n in LISTS) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from labelling into a folder; to be held before it is read.

    Raises:
        ConfigError: one does already.
        OutputError: the folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(RunFolder(folder).hold())
            _remove_drafts(folder)
        except CheckpointError as error:
            raise ConfigError(
                f"demo.folder={folder}: another server labels into it; end that one, or give another folder"
            ) from error
        except OSError as error:
            raise OutputError(f"demo.folder={folder} cannot be written: {error.strerror}") from error
        yield


def place_image(source: Path, place: Path, *, is_labelled: bool) -> None:
    """Put an image into the data set: a hard link where the file system can, which takes no space and cannot dangle.

    Raises:
        PictureChangedError: another picture of this name was labelled.
    """
    if place.exists():
        if is_same(source, place):
            return
        if is_labelled:
            raise PictureChangedError(
                f"{place} is another picture than {source} and has masks: label this one elsewhere"
            )
        place.unlink()
    place.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()
    try:
        os.link(source, place)
    except FileExistsError:
        return
    except OSError:
        draft = place.with_name(f".{place.name}.{os.getpid()}")
        shutil.copy2(source, draft)
        draft.replace(place)


def _remove_drafts(folder: Path) -> None:
    """Remove what a process that was killed has left half written; to be called while the folder is held."""
    for place in (ANNOTATIONS.parent, IMAGES):
        for path in (folder / place).rglob(".*"):
            if DRAFT.fullmatch(path.name) and path.is_file():
                path.unlink()


def is_same(first: Path, second: Path) -> bool:
    """Compare two files by their content; one that cannot be read is like no other."""
    try:
        return first.samefile(second) or filecmp.cmp(first, second)
    except OSError:
        return False
