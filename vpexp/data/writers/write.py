"""A data set in one of four formats, written whole or not at all."""

import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vpexp.config.schema import OutputConfig
from vpexp.data.readers.label_images import is_background_name
from vpexp.data.writers.images import LabelledImage
from vpexp.errors import ConfigError, DataError
from vpexp.registry import FORMATS, load_target


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
