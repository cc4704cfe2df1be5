"""COCO instance annotations: one JSON file a subset, wherever it lies and whatever it is called.

The JSON is read here and not through Datumaro, whose import ends at the first bad annotation, keeps polygons as float32
(which moves pixels) and joins objects that share an id. Polygons are rasterised by pycocotools from the numbers as the
file has them.
"""

from array import array
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpexp.console import show_progress
from vpexp.data.annotations import Rle, read_number
from vpexp.data.folder import Folder
from vpexp.data.image_finder import ImageFinder, UnusableImageError
from vpexp.data.masks import MaskError, check_polygon, check_rle, merge_rles, rasterize_polygons
from vpexp.data.readers.base import (
    ObjectMask,
    PlacedImage,
    Subset,
    describe_repeated,
    gather_objects,
    keep_box,
    make_unique,
    place_image,
    take_unannotated,
)
from vpexp.data.readers.json_files import (
    DeclaredIds,
    Entry,
    JsonReader,
    Key,
    compact_annotation,
    find_json_files,
    holds_objects,
    is_empty,
    is_true,
    list_entries,
    load_json,
    name_subset,
    read_file_name,
    read_key,
    read_size,
)
from vpexp.data.skipped import (
    BAD_ENTRY,
    BAD_PART,
    BOX_ONLY,
    CROWD,
    MISSING_IMAGE,
    NO_SHAPE,
    OF_SHARED_ID,
    REPEATED_IMAGE,
    SHARED_ID,
    UNDECLARED,
    UNKNOWN_IMAGE,
    SkipCounts,
)
from vpexp.errors import DataError

_UNREADABLE_TASKS = ("captions_", "image_info_", "labels_", "panoptic_")
_LESSER_TASKS = ("person_keypoints_", "stuff_")
_ONLY_CATEGORY = "object"
_BOX_NUMBERS = 4


class CocoReader(JsonReader):
    """Reads COCO files; every subset is one JSON file."""

    title = "COCO"
    layout = "*.json with 'images' and 'annotations'"
    content = "a list of 'images', such as annotations/instances_train.json"

    @staticmethod
    def find_signs(folder: Folder) -> list[str]:
        """List what shows that a folder is of this format."""
        return find_json_files(folder, "coco")

    def read_subset(self, name: str, skips: SkipCounts) -> Subset:
        """Read one subset; see `Reader`."""
        return _CocoFile(self._folder, self._files[name], name, skips, self.notes).read()

    def _choose_files(self, files: list[str]) -> list[str]:
        return _choose_tasks(files, self._folder)


def _choose_tasks(files: list[str], folder: Folder) -> list[str]:
    """Leave out the files of tasks without masks, and keypoint or stuff files where instances exist beside them.

    A name alone says nothing: makesense.ai calls polygons ``labels_<project>_<date>.json``.
    """
    readable = [
        file
        for file in files
        if not PurePosixPath(file).name.startswith(_UNREADABLE_TASKS) or holds_objects(folder.path(file))
    ]
    if not readable:
        names = ", ".join(PurePosixPath(file).name for file in files[:4])
        raise DataError(
            f"{folder.root}: found only COCO files without object masks ({names}); vpexp learns from instance masks, "
            "as in annotations/instances_train.json"
        )
    instances = {name_subset(file) for file in readable if not PurePosixPath(file).name.startswith(_LESSER_TASKS)}
    chosen: dict[str, str] = {}
    others = []
    for file in readable:
        task = next((task for task in _LESSER_TASKS if PurePosixPath(file).name.startswith(task)), None)
        if task is None:
            others.append(file)
        elif name_subset(file) not in instances:
            chosen.setdefault(name_subset(file), file)  # person_keypoints sorts before stuff
    return sorted([*others, *chosen.values()])


class _CocoFile:
    """One COCO JSON file while it is read."""

    def __init__(self, folder: Folder, file: str, subset: str, skips: SkipCounts, notes: list[str]) -> None:
        self._path = folder.path(file)
        self._file = file
        self._skips = skips
        self._notes = notes
        content = load_json(self._path, on_object=compact_annotation)
        self._images = list_entries(content, "images", self._path)
        self._keys = [read_key(entry.get("id")) for entry in self._images]
        words = [subset, PurePosixPath(file).parent.name, *subset.split("_")]
        self._finder = ImageFinder(folder, file, words, filter(None, map(read_file_name, self._images)))
        self._annotations = list_entries({"annotations": [], **content}, "annotations", self._path)
        self._index_by_key, self._categories = self._read_categories(content.get("categories") or [])
        self._category_ids = DeclaredIds(self._index_by_key)

    def read(self) -> Subset:
        """Read all images and their objects."""
        shared = self._find_shared_ids()
        annotations = self._group_annotations(shared)
        names = make_unique(str(read_file_name(entry)) for entry in self._images)
        named = list(zip(names, self._keys, self._images, strict=True))
        seen: set[Key] = set()
        images = []
        for name, key, entry in show_progress(named, f"Reading {self._path.name}"):
            file_name = read_file_name(entry)
            if key is None or file_name is None:
                self._skips.skip(BAD_ENTRY, f"{self._path.name}: image {entry.get('id')!r}")
            elif key in shared:
                self._skips.skip(SHARED_ID, shared[key])
            elif key in seen:
                self._skips.skip(REPEATED_IMAGE, f"{self._path.name}: image {key} ({file_name})")
            elif key not in annotations:
                place = partial(self._place, name, file_name, entry)
                images.append(take_unannotated(f"{self._path.name}: {file_name}", place, self._skips))
            else:
                image = self._place(name, file_name, entry)
                if image is not None:
                    objects = [one for one in (self._read_object(a, image) for a in annotations.pop(key)) if one]
                    images.append(gather_objects(image, objects, self._skips))
            if key is not None:
                seen.add(key)
        usable = tuple(image for image in images if image is not None)
        self._notes += describe_repeated(self._path.name, usable)
        return Subset(self._categories, usable)

    def _read_categories(self, entries: Any) -> tuple[dict[Key, int], tuple[str, ...]]:
        """Map category ids to indices of names; the same name twice is one category."""
        names: dict[str, int] = {}
        name_of: dict[Key, str] = {}
        for entry in entries if isinstance(entries, list) else []:
            key = read_key(entry.get("id")) if isinstance(entry, dict) else None
            if key is None or entry.get("name") is None:
                self._skips.skip(BAD_ENTRY, f"{self._path.name}: category {entry!r}")
                continue
            name = str(entry["name"])
            if name_of.setdefault(key, name) != name:
                raise DataError(
                    f"{self._path}: category id {key} is declared twice, as '{name_of[key]}' and as '{name}'; "
                    "give each category its own id"
                )
            names.setdefault(name, len(names))
        if not names:
            self._notes.append(f"{self._path.name} declares no categories: every object is called '{_ONLY_CATEGORY}'")
            return {}, (_ONLY_CATEGORY,)
        return {key: names[name] for key, name in name_of.items()}, tuple(names)

    def _find_shared_ids(self) -> dict[Key, str]:
        """Find the image ids that several files have: nothing tells whose the annotations of such an id are.

        Returns:
            Image id -> what is wrong with it, with two of its files.
        """
        names: dict[Key, dict[str, None]] = defaultdict(dict)
        for key, entry in zip(self._keys, self._images, strict=True):
            if key is not None and (file_name := read_file_name(entry)) is not None:
                names[key].setdefault(file_name)
        shared = {}
        for key, (first, *others) in names.items():
            file = self._identify(first) if others else ""
            other = next((name for name in others if self._identify(name) != file), None)
            if other is not None:
                shared[key] = f"{self._path.name}: image id {key!r} is {first} and {other}"
        return shared

    def _identify(self, file_name: str) -> str:
        """Name the file that is meant, whether there is one or not."""
        try:
            return str(self._finder.find(file_name) or file_name)
        except UnusableImageError as error:
            return error.example

    def _group_annotations(self, shared: Mapping[Key, str]) -> dict[Key, list[Entry]]:
        """Sort annotations by image; those of images that are not declared, or of several files, are skipped."""
        declared = DeclaredIds(self._keys)
        grouped: dict[Key, list[Entry]] = defaultdict(list)
        for entry in self._annotations:
            key = declared.find(entry.get("image_id"))
            example = f"{self._path.name}: annotation {entry.get('id')} of image {entry.get('image_id')!r}"
            if key is None:
                self._skips.skip(UNKNOWN_IMAGE, example)
            elif key in shared:
                self._skips.skip(OF_SHARED_ID, example)
            else:
                grouped[key].append(entry)
        self._annotations.clear()  # each is let go as soon as its image is read
        return grouped

    def _place(self, name: str, file_name: str, entry: Entry) -> PlacedImage | None:
        """Find an image's file and look at its header."""
        try:
            path = self._finder.find(file_name)
        except UnusableImageError as error:
            self._skips.skip(error.reason, error.example)
            return None
        if path is None:
            self._skips.skip(MISSING_IMAGE, f"{file_name} ({self._path.name})")
            return None
        return place_image(name, path, read_size(entry), self._skips)

    def _read_object(self, entry: Entry, image: PlacedImage) -> ObjectMask | None:
        """Read one annotation; None if it was skipped."""
        example = f"{image.path}, annotation {entry.get('id')} of {self._path.name}"
        if is_true(entry.get("iscrowd", 0)) and not self._skips.keep_crowds:
            self._skips.skip(CROWD, example)
            return None
        label = self._find_label(entry.get("category_id"))
        if label is None:
            self._skips.skip(UNDECLARED, f"{example}: category {entry.get('category_id')!r}")
            return None
        segmentation = entry.get("segmentation")
        if is_empty(segmentation):
            return self._read_box(entry, label, image, example)
        try:
            mask = self._read_mask(segmentation, image, example)
        except MaskError as error:
            self._skips.skip(str(error), example)
            return None
        return ObjectMask(str(entry.get("id")), mask, label)

    def _read_box(self, entry: Entry, label: int, image: PlacedImage, example: str) -> ObjectMask | None:
        """Read an object without a mask, where such are wanted; None if it was skipped."""
        bbox = entry.get("bbox")
        if not bbox:
            self._skips.skip(NO_SHAPE, example)
            return None
        if not self._skips.keep_boxes:
            self._skips.skip(BOX_ONLY, example)
            return None
        numbers = [read_number(value) for value in bbox] if isinstance(bbox, list) else []
        if len(numbers) != _BOX_NUMBERS or None in numbers:
            self._skips.skip(BAD_ENTRY, f"{example}: bbox {bbox!r}")
            return None
        x, y, width, height = (number for number in numbers if number is not None)
        return keep_box(str(entry.get("id")), (x, y, x + width, y + height), label, image)

    def _find_label(self, category_id: Any) -> int | None:
        """Find the category's index; a file without categories has the one that all objects are of."""
        if not self._index_by_key:
            return 0
        key = self._category_ids.find(category_id)
        return None if key is None else self._index_by_key[key]

    def _read_mask(self, segmentation: Any, image: PlacedImage, example: str) -> Rle:
        """Read a segmentation of any kind as one mask: polygon parts, or RLE of either form."""
        if isinstance(segmentation, dict):
            return check_rle(segmentation, image.height, image.width)
        if not isinstance(segmentation, list):
            raise MaskError("segmentation of unknown kind")
        if all(isinstance(part, dict) for part in segmentation):
            return merge_rles([check_rle(part, image.height, image.width) for part in segmentation])
        if not isinstance(segmentation[0], list | array):
            segmentation = [segmentation]  # one polygon without the list around it
        return rasterize_polygons(self._keep_good_parts(segmentation, image, example), image.height, image.width)

    def _keep_good_parts(self, parts: list[Any], image: PlacedImage, example: str) -> list[NDArray[np.float64]]:
        """Leave out the bad parts of an object; an object of bad parts only is itself bad."""
        good = []
        errors: list[MaskError] = []
        for part in filter(None, parts):
            try:
                good.append(check_polygon(part, image.height, image.width))
            except MaskError as error:
                errors.append(error)
        if not good:
            raise errors[0]
        for bad in errors:
            self._skips.skip(BAD_PART, f"{example}: {bad}")
        return good
