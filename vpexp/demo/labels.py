"""Kept masks as a COCO data set in memory: what there is, and how it is written.

Every change makes a new set, so that one that cannot be written is dropped and leaves nothing behind.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
from scipy import ndimage

from vpexp.data.annotations import Region, Rle, read_whole
from vpexp.data.image_finder import list_meanings
from vpexp.data.image_source import SourceImage
from vpexp.data.masks import MaskError, check_rle, compute_area, compute_box, decode_rle, encode_part, polygons_to_rle
from vpexp.data.readers.json_files import load_json
from vpexp.errors import DataError

EDITED = "edited"
"""Of an annotation: its pixels were drawn by hand."""
DONE = "done"
"""Of an image: it is labelled whole, with masks or without any."""
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
        images: by the name that their source has for them, which is mostly their file name.
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

    @property
    def done(self) -> list[str]:
        """File names of the images that are labelled whole."""
        return [name for name, entry in self.images.items() if entry.get(DONE)]

    @property
    def labelled(self) -> list[str]:
        """Names of the images that have masks, or are marked as done; another tool's file lists further ones."""
        counts = self.count_by_image()
        return [name for name, entry in self.images.items() if name in counts or entry.get(DONE)]

    def with_label(self, label: str, number: int) -> "LabelSet":
        """Add a category under a number, unless there is one of this name."""
        if label in self.labels:
            return self
        return replace(self, categories={**self.categories, number: {"id": number, "name": label}})

    def with_renamed(self, label: str, name: str) -> "LabelSet":
        """Give a category another name."""
        number = self.labels[label]
        return replace(self, categories={**self.categories, number: {**self.categories[number], "name": name}})

    def without_label(self, label: str) -> "LabelSet":
        """Take a category away that no mask has."""
        return replace(self, categories={n: entry for n, entry in self.categories.items() if entry["name"] != label})

    def with_done(self, file_name: str, done: bool) -> "LabelSet":
        """Mark an image as labelled whole, or not; one that then has neither mask nor mark leaves the set."""
        entry = {name: value for name, value in self.images[file_name].items() if name != DONE}
        if done:
            entry[DONE] = True
        images = {**self.images, file_name: entry}
        if not done and not self.list_masks(file_name):
            del images[file_name]
        return replace(self, images=images)

    def with_image(self, file_name: str, height: int, width: int, number: int, prefix: str = "") -> "LabelSet":
        """Add an image, unless it is there."""
        if file_name in self.images:
            return self
        entry = {"id": number, "file_name": f"{prefix}{file_name}", "width": width, "height": height}
        return replace(self, images={**self.images, file_name: entry})

    def with_masks(self, masks: Iterable[KeptMask]) -> "LabelSet":
        """Add masks, or put each in the place of the one of its id."""
        return replace(self, masks={**self.masks, **{mask.entry["id"]: mask for mask in masks}})

    def without_masks(self, numbers: Collection[int]) -> "LabelSet":
        """Take masks away, and images whose last ones they were, unless these are marked as done."""
        masks = {number: mask for number, mask in self.masks.items() if number not in numbers}
        gone = {self.masks[number].entry["image_id"] for number in numbers}
        gone -= {mask.entry["image_id"] for mask in masks.values()}
        images = {name: entry for name, entry in self.images.items() if entry["id"] not in gone or entry.get(DONE)}
        return replace(self, masks=masks, images=images)

    def choose(self, names: Collection[str]) -> "LabelSet":
        """Take some images, by their names, which become their file names, with their masks; all categories stay."""
        images = {name: {**entry, "file_name": name} for name, entry in self.images.items() if name in names}
        known = {entry["id"] for entry in images.values()}
        masks = {number: mask for number, mask in self.masks.items() if mask.entry["image_id"] in known}
        return replace(self, images=images, masks=masks)

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


def read_labels(path: Path, sources: Sequence[SourceImage] = ()) -> LabelSet:
    """Read a COCO file to go on with: one of this page, or of another tool.

    Args:
        path: the file.
        sources: images that are labelled; one that a file name means is known by its own name.

    Raises:
        DataError: it is damaged, or ids are missing, repeated, or lead nowhere.
    """
    content = load_json(path)
    try:
        categories = {_read_id(entry): entry for entry in content["categories"]}
        names = [str(entry["file_name"]) for entry in content["images"]]
        own = _find_sources(names, sources)
        images = {own[name]: entry for name, entry in zip(names, content["images"], strict=True)}
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


def _find_sources(file_names: Sequence[str], sources: Sequence[SourceImage]) -> dict[str, str]:
    """Find the source's own name of what each file name means; one that means none of its images stays as it is."""
    known = {image.name for image in sources}
    by_base: dict[str, list[str]] = defaultdict(list)
    for image in sources:
        by_base[image.path.name].append(image.name)
    found = {}
    for file_name in file_names:
        meanings = list(list_meanings(file_name))
        exact = [meaning for meaning in meanings if meaning in known]
        alike = [
            by_base[base][0]
            for base in (PurePosixPath(meaning).name for meaning in meanings)
            if len(by_base.get(base, ())) == 1
        ]
        found[file_name] = next(iter([*exact, *alike]), file_name)
    return found


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
    return {"id": number, "image_id": image_id, "category_id": category_id, **_describe_pixels(rle), **extra}


def reshape(entry: Entry, rle: Rle, *, edited: bool) -> Entry:
    """Give an annotation other pixels; ``edited``: they were drawn by hand."""
    changed = {name: value for name, value in entry.items() if name != EDITED} | _describe_pixels(rle)
    return {**changed, EDITED: True} if edited else changed


def _describe_pixels(rle: Rle) -> Entry:
    left, top, right, bottom = compute_box(rle).tolist()
    return {
        "bbox": [left, top, right - left, bottom - top],
        "area": compute_area(rle),
        "iscrowd": 0,
        "segmentation": {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")},
    }


def split_parts(rle: Rle) -> list[Rle]:
    """Split a mask into its connected parts, the largest first; pixels that touch at a corner are of one part."""
    left, top, right, bottom = compute_box(rle).astype(int).tolist()
    height, width = rle["size"]
    mask_hw = decode_rle(rle)[top:bottom, left:right]
    parts_hw, count = ndimage.label(mask_hw, structure=np.ones((3, 3)))
    region = Region(top, left, bottom, right)
    parts = [encode_part(parts_hw == number, region, height, width) for number in range(1, count + 1)]
    return sorted(parts, key=compute_area, reverse=True)


def read_mask(entry: Entry, height: int, width: int) -> Rle | None:
    """Read the mask of an annotation of any tool; None where it has none that can be shown."""
    segmentation = entry.get("segmentation")
    try:
        if isinstance(segmentation, dict):
            return check_rle(segmentation, height, width)
        return polygons_to_rle(segmentation, height, width, decimals=None) if segmentation else None
    except (MaskError, TypeError):
        return None
