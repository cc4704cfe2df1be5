"""COCO's annotation entries in little memory: what is not used falls away while the file is being parsed."""

from array import array
from typing import Any

Entry = dict[str, Any]


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
