"""The entries of COCO files: in little memory, and read leniently, as tools write them."""

from array import array
from typing import Any

from vpexp.errors import DataError

Entry = dict[str, Any]
Key = int | str


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
    """Bring an id to one form: 7, 7.0 and '7' are the same id."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else str(value)
    if isinstance(value, str) and value.strip():
        try:
            return int(value.removesuffix(".0"))
        except ValueError:
            return value
    return None


def read_size(entry: Entry) -> tuple[int, int] | None:
    """Read an image entry's (height, width); None if it has none."""
    try:
        height, width = int(entry["height"]), int(entry["width"])
    except (KeyError, OverflowError, TypeError, ValueError):
        return None
    return (height, width) if height > 0 and width > 0 else None


def is_true(value: Any) -> bool:
    """Say whether a flag is set, in whatever way it is written."""
    return value not in (0, False, None, "0", "", "false", "False")


def is_empty(segmentation: Any) -> bool:
    """Say whether there is no segmentation: absent, [], [[]] or an RLE without content."""
    if isinstance(segmentation, list):
        return all(isinstance(part, list) and not part for part in segmentation)
    return not segmentation
