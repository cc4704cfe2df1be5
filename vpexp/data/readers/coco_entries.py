"""The entries of COCO files: in little memory, and read leniently, as tools write them."""

import math
from array import array
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from vpexp.data.annotations import read_whole
from vpexp.errors import DataError

Entry = dict[str, Any]
Key = int | float | str


def compact_annotation(entry: Entry) -> Entry:
    """Reduce an annotation to what is read of it, its polygons to arrays of doubles; other objects stay as they are.

    A list of 50 Python numbers takes 2 kB, COCO has 860,000 of them.
    """
    segmentation = entry.get("segmentation")
    if not segmentation or type(segmentation) not in (dict, list):
        return entry
    if "image_id" not in entry or "file_name" in entry:
        return entry  # it is no annotation
    if type(segmentation) is list:
        segmentation = [_compact_numbers(part) for part in segmentation]
    compact: Entry = {key: entry[key] for key in ("id", "image_id", "category_id") if key in entry}
    compact["segmentation"] = segmentation
    if entry.get("iscrowd", 0) != 0:
        compact["iscrowd"] = entry["iscrowd"]
    if "bbox" in entry and not any(segmentation):
        compact["bbox"] = entry["bbox"]
    return compact


def _compact_numbers(part: Any) -> Any:
    """Pack a list of numbers; what is no such list stays, and is judged when it is used."""
    if type(part) is not list or not part:
        return part
    try:
        return array("d", part)
    except (OverflowError, TypeError):
        return part


def list_entries(content: Entry, key: str, path: Any) -> list[Entry]:
    """Take one of the file's lists."""
    entries = content.get(key)
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected a list under '{key}', found {type(entries).__name__}")
    return [entry if isinstance(entry, dict) else {} for entry in entries]


def read_key(value: Any) -> Key | None:
    """Read an id as it stands, but for 7.0, which is 7; None for what is none: nothing, True, NaN, blanks, a list."""
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    whole = read_whole(value)
    if whole is None and not math.isfinite(value):
        return None
    return value if whole is None else whole


class DeclaredIds:
    """The ids that a file declares, and which of them another id means.

    Ids are compared as they stand: ``"1_12"`` is not 112, and ``"01"`` is not ``"1"`` where both are declared. Only where
    none is the same, the one that is the same number is meant: 7, 7.0, "7", "7.0" and "07" are.
    """

    def __init__(self, ids: Iterable[Key | None]) -> None:
        self._ids = set(ids) - {None}
        by_number: dict[int, list[Key]] = defaultdict(list)
        for key in self._ids:
            if key is not None and (number := read_whole(key)) is not None:
                by_number[number].append(key)
        self._by_number = {number: keys[0] for number, keys in by_number.items() if len(keys) == 1}

    def find(self, value: Any) -> Key | None:
        """Find the declared id that is meant; None if there is none, or several that are the same number."""
        key = read_key(value)
        if key in self._ids:
            return key
        number = read_whole(key)
        return None if number is None else self._by_number.get(number)


def read_file_name(entry: Entry) -> str | None:
    """Read the name of an image's file, or its address where there is no name, as in LVIS; None if it has neither."""
    names = (entry.get(key) for key in ("file_name", "coco_url", "url", "flickr_url"))
    return next((name for name in names if isinstance(name, str) and name), None)


def read_size(entry: Entry) -> tuple[int, int] | None:
    """Read an image entry's (height, width); None if it has none."""
    height, width = read_whole(entry.get("height")), read_whole(entry.get("width"))
    return (height, width) if height and width and height > 0 and width > 0 else None


def is_true(value: Any) -> bool:
    """Return whether a flag is set, in whatever way it is written."""
    return value not in (0, False, None, "0", "", "false", "False")


def is_empty(segmentation: Any) -> bool:
    """Return whether there is no segmentation: absent, [], [[]] or an RLE without content."""
    if isinstance(segmentation, list):
        return all(isinstance(part, list) and not part for part in segmentation)
    return not segmentation
