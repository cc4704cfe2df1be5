"""Datumaro's own format, read by Datumaro, with an error policy that skips what is bad instead of ending the import.

Datumaro is imported when a subset is read: it takes half a second. It gives every part of an object and its box the same
group number. Where a file repeats annotation ids, several objects share a number; their boxes then separate them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from vpexp.console import show_progress
from vpexp.data.annotations import AnnotatedImage, Rle, read_whole
from vpexp.data.folder import Folder
from vpexp.data.image_finder import ImageFinder, UnusableImageError
from vpexp.data.masks import MaskError, check_rle, compute_box, merge_rles, polygons_to_rle, rle_to_json
from vpexp.data.readers.base import (
    SAME_BOX_IOU,
    Box,
    ObjectMask,
    PlacedImage,
    Subset,
    compute_box_area,
    compute_box_iou,
    compute_intersection,
    describe_repeated,
    gather_objects,
    keep_box,
    make_unique,
    place_image,
    take_unannotated,
)
from vpexp.data.readers.json_files import (
    JsonReader,
    find_json_files,
    is_true,
    list_entries,
    load_json,
    read_key,
)
from vpexp.data.readers.label_images import is_background_name
from vpexp.data.skipped import (
    BAD_ENTRY,
    BOX_ONLY,
    CROWD,
    MISSING_IMAGE,
    NO_IMAGE,
    NO_MASK_TYPE,
    UNDECLARED,
    VOID_REGION,
    SkipCounts,
)
from vpexp.errors import DataError

_ONLY_CATEGORY = "object"
_NO_LABEL = -1
"""In the place of a label that is not declared."""

_ANY_MEDIA = 1
"""Datumaro's number of media of all types, so that it reads the images among them."""

_SILENT_TYPES = frozenset({"label", "caption"})
"""Annotations of the whole image: no objects, so nothing is lost with them."""

_OnError = Callable[[str, Any, Exception], None]
"""Called with what could not be read (item or annotation), its id, and why."""

_PART_TYPES = ("polygon", "mask")


@dataclass(slots=True)
class Group:
    """The annotations of one object.

    Attributes:
        parts: Polygons and masks: what the object's mask is made of.
        boxes: Its boxes.
        others: Annotations without a mask, such as points and polylines.
    """

    parts: list[Any] = field(default_factory=list)
    boxes: list[Any] = field(default_factory=list)
    others: list[Any] = field(default_factory=list)

    def add(self, annotation: Any) -> None:
        """Put an annotation where it belongs by its type."""
        kind = annotation.type.name
        (self.parts if kind in _PART_TYPES else self.boxes if kind == "bbox" else self.others).append(annotation)


def group_annotations(annotations: Sequence[Any]) -> list[Group]:
    """Gather the annotations of each object of one image.

    Annotations of the same group number and label are one object; number 0 means no group. A group with several boxes
    is several objects: each part goes to the box that holds it best.

    Args:
        annotations: Datumaro annotations of one item.
    """
    groups: dict[tuple[Any, ...], Group] = {}
    for place, annotation in enumerate(annotations):
        label = getattr(annotation, "label", None)
        key = (annotation.group, label) if annotation.group else (0, label, place)
        groups.setdefault(key, Group()).add(annotation)
    return [one for group in groups.values() for one in _split_by_boxes(group)]


def _split_by_boxes(group: Group) -> list[Group]:
    """Split a group with several boxes into one group a box."""
    if len(group.boxes) < 2 or not group.parts:
        return [group]
    boxes = [to_xyxy(box) for box in group.boxes]
    split = [Group(boxes=[box]) for box in group.boxes]
    split[0].others = group.others
    for part in group.parts:
        bounds = to_xyxy(part)
        scores = [(compute_intersection(bounds, box), -compute_box_area(box)) for box in boxes]
        split[scores.index(max(scores))].parts.append(part)
    return split


def to_xyxy(annotation: Any) -> Box:
    """Compute the bounds of an annotation of Datumaro."""
    x, y, width, height = (float(value) for value in annotation.get_bbox())
    return x, y, x + width, y + height


class DatumaroReader(JsonReader):
    """Reads Datumaro exports; every subset is one JSON file."""

    title = "Datumaro"
    layout = "*.json with 'items'"
    content = "the keys 'categories' and 'items', such as annotations/train.json"

    @staticmethod
    def find_signs(folder: Folder) -> list[str]:
        """List what shows that a folder is of this format."""
        return find_json_files(folder, "datumaro")

    def read_subset(self, name: str, skips: SkipCounts) -> Subset:
        """Read one subset; see `Reader`."""
        return _DatumaroFile(self._folder, self._files[name], name, skips).read(self.notes)


def _build_context(on_error: _OnError) -> Any:
    """Build the import context whose error policy reports what is bad and goes on."""
    from datumaro.components.contexts.importer import ImportContext, ImportErrorPolicy

    class SkippingPolicy(ImportErrorPolicy):  # type: ignore[misc]
        def report_item_error(self, error: Exception, *, item_id: tuple[str, str]) -> None:
            on_error("item", item_id[0], error)

        def report_annotation_error(self, error: Exception, *, item_id: tuple[str, str]) -> None:
            on_error("annotation", item_id[0], error)

    return ImportContext(error_policy=SkippingPolicy())


def _import_items(content: dict[str, Any], path: Path, subset: str, on_error: _OnError) -> list[Any]:
    """Import the content of a file by Datumaro."""
    from datumaro.plugins.data_formats.datumaro.base import DatumaroBase, JsonReader

    class ContentReader(JsonReader):  # type: ignore[misc]
        def _init_reader(self, path: str) -> dict[str, Any]:
            del path
            return content

    class ContentBase(DatumaroBase):  # type: ignore[misc]
        def _load_impl(self, path: str) -> None:
            folders = self._rootpath, self._images_dir, self._pcd_dir, self._video_dir
            self._reader = ContentReader(path, self._subset, *folders, self._ctx, self._allow_external_media)

    return list(ContentBase(str(path), subset=subset, allow_external_media=True, ctx=_build_context(on_error)))


def _read_labels(content: Mapping[str, Any]) -> list[str | None]:
    """Read the names of the labels by their number, None for one without a name; nothing where none are declared.

    Names may repeat: labels of two parents, as the points of skeletons, can have one name, which Datumaro refuses.
    """
    entries: Any = content
    for key in ("categories", "label", "labels"):
        entries = entries.get(key) if isinstance(entries, dict) else None
    names = [one.get("name") if isinstance(one, dict) else one for one in entries] if isinstance(entries, list) else []
    return [None if name is None else str(name) for name in names]


def _make_plain(content: dict[str, Any], path: Path, labels: Mapping[int, int]) -> dict[str, Any]:
    """Make a file's content such that Datumaro misunderstands nothing of it, and a bad entry does not end the import.

    Datumaro takes the group "1_12" for 112, the label "1_0" for 10 and True for 1, and refuses a file for an item that is called
    "" or "c:x". Items and groups are numbered anew, ids of annotations that are no whole numbers get negative ones.

    Args:
        content: Changed in place, and returned.
        path: The file, for errors.
        labels: Number of a label in the file -> index of its category.
    """
    content |= {"media_type": _ANY_MEDIA, "categories": {}, "items": list_entries(content, "items", path)}
    for place, item in enumerate(content["items"]):
        if not item.get("image") and isinstance(item.get("media"), dict):
            item["image"] = item.pop("media")
        if "id" in item:
            if isinstance(item.get("image"), dict):
                item["image"]["path"] = item["image"].get("path") or f"{item['id']}.jpg"
            item["id"] = str(place)
        item["annotations"] = list_entries({"annotations": item.get("annotations") or []}, "annotations", path)
        ids: dict[Any, int] = {}
        groups: dict[Any, int] = {None: 0, 0: 0}  # 0 means no group
        for entry in item["annotations"]:
            own, group = read_key(entry.get("id")), read_key(entry.get("group"))
            number = read_whole(own)
            entry["id"] = ids.setdefault(own, -1 - len(ids)) if number is None else number
            number = read_whole(group)
            entry["group"] = groups.setdefault(group if number is None else number, len(groups))
            if entry.get("label_id") is not None:
                label = read_whole(entry["label_id"])
                entry["label_id"] = _NO_LABEL if label is None else labels.get(label, _NO_LABEL)
            if "rle" in entry:
                entry["rle"] = _compress_counts(entry["rle"])
    return content


def _compress_counts(rle: Any) -> Any:
    """Compress an encoding that is a list of counts, which Datumaro does not read; others stay, damaged ones too."""
    try:
        height, width = (read_whole(side) or 0 for side in rle["size"])
        return rle_to_json(check_rle(rle, height, width)) if isinstance(rle["counts"], list) else rle
    except (KeyError, TypeError, ValueError):  # counted when Datumaro meets it
        return rle


class _DatumaroFile:
    """One Datumaro JSON file while it is read."""

    def __init__(self, folder: Folder, file: str, subset: str, skips: SkipCounts) -> None:
        self._path = folder.path(file)
        self._skips = skips
        self._folder = folder
        self._file = file
        self._subset = subset
        self._categories: tuple[str, ...] = ()

    def read(self, notes: list[str]) -> Subset:
        """Read all items and their objects."""
        content = load_json(self._path)
        labels = _read_labels(content)
        self._categories = tuple(dict.fromkeys(name for name in labels if name is not None))
        places = {number: self._categories.index(name) for number, name in enumerate(labels) if name is not None}
        if not self._categories:
            notes.append(f"{self._path.name} declares no categories: every object is called '{_ONLY_CATEGORY}'")
        entries = list_entries(content, "items", self._path)
        self._item_ids = [str(entry.get("id")).replace("\\", "/") for entry in entries]
        content = _make_plain(content, self._path, places)
        try:
            items = _import_items(content, self._path, self._subset, self._skip_error)
        except Exception as error:
            raise DataError(f"{self._path}: Datumaro cannot read it ({type(error).__name__}: {error})") from error
        named = list(zip(make_unique(map(self._name_item, items)), items, strict=True))
        files = [self._get_file_name(item.media) for item in items if getattr(item.media, "path", None)]
        self._finder = ImageFinder(self._folder, self._file, [self._subset, self._path.stem], files)
        read = (self._read_item(name, item) for name, item in show_progress(named, f"Reading {self._path.name}"))
        images = tuple(image for image in read if image is not None)
        notes += describe_repeated(self._path.name, images)
        return Subset(self._categories or (_ONLY_CATEGORY,), images)

    def _name_item(self, item: Any) -> str:
        """Name an item as its image file, so that a.png and a.jpg stay apart."""
        suffix = PurePosixPath(str(getattr(item.media, "path", "") or "")).suffix
        return f"{self._item_ids[int(item.id)]}{suffix}"

    def _skip_error(self, what: str, own_id: Any, error: Exception) -> None:
        """Count what Datumaro refused."""
        if what == "item" and own_id is not None:
            own_id = self._item_ids[int(own_id)]
        reason = "polygon with fewer than 3 points or an odd number of values" if "polygon" in str(error) else BAD_ENTRY
        self._skips.skip(reason, f"{self._path.name}: {what} {own_id} ({error or type(error).__name__})")

    def _read_item(self, name: str, item: Any) -> AnnotatedImage | None:
        """Read one item; None if nothing is left of it."""
        annotations = [one for one in item.annotations if one.type.name not in _SILENT_TYPES]
        if not annotations:
            place = partial(self._place, name, item.media)
            return take_unannotated(f"{self._path.name}: {name}", place, self._skips)
        placed = self._place(name, item.media)
        if placed is None:
            return None
        groups = group_annotations(annotations)
        objects = [one for group in groups if group.parts and (one := self._read_object(group, placed))]
        boxes = [box for group in groups if not group.parts for box in self._read_partless(group, objects, placed)]
        return gather_objects(placed, [*objects, *boxes], self._skips)

    def _place(self, name: str, media: Any) -> PlacedImage | None:
        """Find an item's image file and look at its header."""
        from datumaro.components.media import Image

        if not isinstance(media, Image) or not getattr(media, "path", None):
            self._skips.skip(NO_IMAGE, f"{self._path.name}: {name}")
            return None
        try:
            path = self._finder.find(self._get_file_name(media))
        except UnusableImageError as error:
            self._skips.skip(error.reason, error.example)
            return None
        if path is None:
            self._skips.skip(MISSING_IMAGE, f"{media.path} ({self._path.name})")
            return None
        return place_image(name, path, media.size if media.has_size else None, self._skips)

    def _get_file_name(self, media: Any) -> str:
        """Get the name that the file gives an image, without the folders that Datumaro puts before it."""
        path = PurePosixPath(Path(media.path).as_posix())
        images = PurePosixPath(self._path.parents[1].as_posix(), "images")
        for place in (images / self._subset, images, PurePosixPath(self._subset)):
            if path.is_relative_to(place):
                return path.relative_to(place).as_posix()
        return path.as_posix()

    def _read_object(self, group: Group, placed: PlacedImage) -> ObjectMask | None:
        """Read the parts of one object as one mask; None if it was skipped."""
        first = group.parts[0]
        example = f"{placed.path}, annotation {first.id} of {self._path.name}"
        if any(is_true(part.attributes.get("is_crowd")) for part in group.parts) and not self._skips.keep_crowds:
            self._skips.skip(CROWD, example)
            return None
        label = self._find_label(first, example)
        if label is None:
            return None
        try:
            mask = merge_rles([_read_mask(part, placed) for part in group.parts])
        except MaskError as error:
            self._skips.skip(str(error), example)
            return None
        return ObjectMask(str(first.id), mask, label)

    def _find_label(self, annotation: Any, example: str) -> int | None:
        """Find the category's index; a file without categories has the one that all objects are of."""
        label: int | None = annotation.label if self._categories else 0
        if label is None or not 0 <= label < max(len(self._categories), 1):
            self._skips.skip(UNDECLARED, example)
            return None
        if self._categories and is_background_name(self._categories[label]):
            self._skips.skip(VOID_REGION, example)
            return None
        return label

    def _read_partless(self, group: Group, objects: list[ObjectMask], placed: PlacedImage) -> list[ObjectMask]:
        """Read or count boxes without a mask, unless one is just the box of an object that is in another group."""
        boxes = []
        for annotation in (*group.boxes, *group.others):
            example = f"{placed.path}, annotation {annotation.id} of {self._path.name}"
            if annotation in group.others:
                self._skips.skip(NO_MASK_TYPE, f"{example} ({annotation.type.name})")
            elif not any(one.label == annotation.label and _is_box_of(annotation, one.mask) for one in objects):
                if not self._skips.keep_boxes:
                    self._skips.skip(BOX_ONLY, example)
                elif (label := self._find_label(annotation, example)) is not None:
                    boxes.append(keep_box(str(annotation.id), to_xyxy(annotation), label, placed))
        return boxes


def _read_mask(part: Any, placed: PlacedImage) -> Rle:
    """Read a polygon or mask; Datumaro holds points as float32, so they are rounded back to its two decimals."""
    if part.type.name == "polygon":
        return polygons_to_rle([part.points], placed.height, placed.width)
    return check_rle(dict(part.rle), placed.height, placed.width)


def _is_box_of(box: Any, mask: Rle) -> bool:
    x0, y0, x1, y1 = compute_box(mask).tolist()
    return compute_box_iou((x0, y0, x1, y1), to_xyxy(box)) >= SAME_BOX_IOU
