"""The format of a data set, found by looking at its folder."""

import contextlib
from dataclasses import dataclass

from vpexp.data.folder import Folder
from vpexp.data.readers.base import Reader
from vpexp.data.readers.json_files import describe_unreadable, find_unreadable
from vpexp.errors import DataError
from vpexp.registry import FORMATS, load_target

AUTO = "auto"
_SHOWN = 4
MOST_BESIDE = 30


def get_reader(name: str) -> type[Reader]:
    """Import the reader of a format."""
    reader: type[Reader] = load_target("data.format", FORMATS[name].reader)
    return reader


@dataclass(frozen=True, slots=True)
class Detection:
    """The format of a folder, and the one line to say about how it was found."""

    format: str
    note: str


def detect_format(folder: Folder) -> Detection:
    """Find the format of a data set by looking at its folder.

    Where several fit, one whose files name single objects is taken before one of images, and the others are named.

    Raises:
        DataError: No format fits; the message lists what was looked for.
    """
    readers = {name: get_reader(name) for name in FORMATS}
    ranked = sorted(readers, key=lambda name: not readers[name].names_objects)
    signs = {name: _describe(readers[name].find_signs(folder)) for name in ranked}
    fitting = [name for name in ranked if signs[name]]
    if not fitting:
        *most, last = (f"{readers[name].title} ({readers[name].layout})" for name in ranked)
        unreadable = describe_unreadable(find_unreadable(folder, every=True)) or _look_around(folder)
        raise DataError(
            f"{folder.root}: no known format; looked for {', '.join(most)} and {last}{unreadable and f'; {unreadable}'}"
        )
    chosen, *others = fitting
    note = f"format: {readers[chosen].title} (found {signs[chosen]})"
    if others:
        titles = " or ".join(readers[name].title for name in others)
        note += f"; it could also be {titles}: data.format={others[0]} reads it so"
    return Detection(chosen, note)


def _look_around(folder: Folder) -> str:
    """Describe the data set that a folder is a part of (its images, a split), or what to do with images alone; or nothing."""
    above = folder.root.resolve().parent
    beside = sum(1 for _ in above.iterdir()) if folder.only_file is None else MOST_BESIDE
    if beside < MOST_BESIDE:  # else no data set's folder, but a place where many things lie
        with contextlib.suppress(DataError):
            whole = Folder(above, allow_outside=folder.allow_outside)
            for reader in map(get_reader, FORMATS):
                if reader.find_signs(whole):
                    return f"the folder above it is {reader.title}: data.root={above}"
    if folder.image_count < len(folder.files):
        return ""
    return f"it holds images alone: data.root is the folder of their annotations too, or label them: stage=demo source={folder.root}"


def _describe(signs: list[str]) -> str:
    """Name the first signs of a format."""
    more = f" and {len(signs) - _SHOWN} more" if len(signs) > _SHOWN else ""
    return ", ".join(signs[:_SHOWN]) + more
