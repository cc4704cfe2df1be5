"""Kept masks as a COCO data set in memory: what there is, and how it is written.

Every change makes a new set, so that one that cannot be written is dropped and leaves nothing behind.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from vpexp.data.annotations import Rle, read_whole
from vpexp.data.masks import MaskError, check_rle, compute_area, compute_box, polygons_to_rle
from vpexp.data.readers.json_files import load_json
from vpexp.errors import DataError

_LISTS = ("categories", "images", "annotations")

Entry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class KeptMask:
    """A kept mask: its COCO annotation, and the line that it is in the file."""

    entry: Entry
    line: str

    @classmethod
    def of(cls, entry: Entry) -> Self:
        """Write the line once; a file of thousands is then only joined."""
        return cls(entry, json.dumps(entry, allow_nan=False))


@dataclass(frozen=True, slots=True)
class LabelSet:
    """A COCO data set.

    Attributes:
        head: what the file holds beside its three lists.
        categories: by id, in the order in which they were first used.
        images: by file name.
        masks: by id.
    """

    head: Entry = field(default_factory=dict)
    categories: Mapping[int, Entry] = field(default_factory=dict)
    images: Mapping[str, Entry] = field(default_factory=dict)
    masks: Mapping[int, KeptMask] = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, int]:
        """Category ids by name."""
        return {str(entry["name"]): number for number, entry in self.categories.items()}

    def count_by_image(self) -> Counter[str]:
        """Count the masks of each image, by its file name."""
        names = {entry["id"]: name for name, entry in self.images.items()}
        return Counter(names[mask.entry["image_id"]] for mask in self.masks.values())

    def list_masks(self, file_name: str) -> list[KeptMask]:
        """List the masks of one image."""
        image = self.images.get(file_name)
        return [] if image is None else [m for m in self.masks.values() if m.entry["image_id"] == image["id"]]

    def find(self, uid: str) -> list[KeptMask]:
        """Find what was kept under a name of the page's own: one mask, or all that were found at once."""
        return [mask for mask in self.masks.values() if mask.entry.get("uid") == uid]

    def with_label(self, label: str) -> "LabelSet":
        """Add a category, unless there is one of this name."""
        if label in self.labels:
            return self
        number = max(self.categories, default=0) + 1
        return replace(self, categories={**self.categories, number: {"id": number, "name": label}})

    def with_image(self, file_name: str, height: int, width: int, number: int) -> "LabelSet":
        """Add an image, unless it is there."""
        if file_name in self.images:
            return self
        entry = {"id": number, "file_name": file_name, "width": width, "height": height}
        return replace(self, images={**self.images, file_name: entry})

    def with_masks(self, masks: Iterable[KeptMask]) -> "LabelSet":
        """Add masks, or put each in the place of the one of its id."""
        return replace(self, masks={**self.masks, **{mask.entry["id"]: mask for mask in masks}})

    def without_masks(self, numbers: Collection[int]) -> "LabelSet":
        """Take masks away, and images whose last ones they were."""
        masks = {number: mask for number, mask in self.masks.items() if number not in numbers}
        gone = {self.masks[number].entry["image_id"] for number in numbers}
        gone -= {mask.entry["image_id"] for mask in masks.values()}
        images = {name: entry for name, entry in self.images.items() if entry["id"] not in gone}
        return replace(self, masks=masks, images=images)

    def write(self) -> Iterator[str]:
        """Write the set as JSON, piece by piece: one entry a line, so that changes can be compared."""
        yield "{"
        for name, value in self.head.items():
            yield f"{json.dumps(name)}: {json.dumps(value)},\n"
        lines = {
            "categories": [json.dumps(entry) for entry in self.categories.values()],
            "images": [json.dumps(entry) for entry in self.images.values()],
            "annotations": [mask.line for mask in self.masks.values()],
        }
        for name in _LISTS:
            joined = ",\n".join(lines[name])
            yield f'"{name}": [\n{joined}\n]'
            yield "}\n" if name == _LISTS[-1] else ",\n"


def read_labels(path: Path) -> LabelSet:
    """Read a COCO file to go on with: one of this page, or of another tool.

    Raises:
        DataError: it is damaged, or ids are missing, repeated, or lead nowhere.
    """
    content = load_json(path)
    try:
        categories = {_read_id(entry): entry for entry in content["categories"]}
        images = {str(entry["file_name"]): entry for entry in content["images"]}
        masks = {_read_id(entry): KeptMask.of(entry) for entry in content["annotations"]}
        known = {_read_id(entry) for entry in images.values()}
        is_sound = (
            len(categories) == len(content["categories"])
            and len(images) == len(known) == len(content["images"])
            and len(masks) == len(content["annotations"])
            and all("name" in entry for entry in categories.values())
            and all(m.entry["image_id"] in known and m.entry["category_id"] in categories for m in masks.values())
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: cannot be gone on with: no COCO annotations as expected ({error!r})") from error
    if not is_sound:
        raise DataError(f"{path}: cannot be gone on with: ids are repeated, or name no image or category")
    head = {name: value for name, value in content.items() if name not in _LISTS}
    return LabelSet(head, categories, images, masks)


def _read_id(entry: Entry) -> int:
    number = read_whole(entry["id"])
    if number is None:
        raise ValueError(f"id {entry['id']!r} is no whole number")
    return number


def build_annotation(number: int, image_id: int, category_id: int, rle: Rle, extra: Mapping[str, Any]) -> Entry:
    """Build the COCO annotation of a mask.

    As run lengths with ``iscrowd`` 0: polygons know no holes and would move pixels, and pycocotools, Datumaro and vpexp
    all read run lengths as one object.
    """
    left, top, right, bottom = compute_box(rle).tolist()
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [left, top, right - left, bottom - top],
        "area": compute_area(rle),
        "iscrowd": 0,
        "segmentation": {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")},
        **extra,
    }


def read_mask(entry: Entry, height: int, width: int) -> Rle | None:
    """Read the mask of an annotation of any tool; None where it has none that can be shown."""
    segmentation = entry.get("segmentation")
    try:
        if isinstance(segmentation, dict):
            return check_rle(segmentation, height, width)
        return polygons_to_rle(segmentation, height, width, decimals=None) if segmentation else None
    except (MaskError, TypeError):
        return None
