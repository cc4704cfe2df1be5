"""Datumaro's own format, read by Datumaro, with an error policy that skips what is bad instead of ending the import.

Datumaro is imported when a subset is read: it takes half a second.
"""

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from vpexp.data.folder import AmbiguousImageError, Folder, ImageFinder, is_file
from vpexp.data.ledger import (
    AMBIGUOUS_IMAGE,
    BAD_ENTRY,
    BOX_ONLY,
    CROWD,
    MISSING_IMAGE,
    NO_IMAGE,
    NO_MASK_TYPE,
    UNDECLARED,
    VOID_REGION,
    SkipLedger,
)
from vpexp.data.masks import MaskError, check_rle, compute_box, merge_rles, polygons_to_rle
from vpexp.data.progress import show_progress
from vpexp.data.readers.base import (
    ObjectMask,
    PlacedImage,
    Subset,
    gather_objects,
    keep_box,
    make_unique,
    place_image,
    skip_unannotated,
)
from vpexp.data.readers.boxes import SAME_BOX_IOU, compute_box_iou
from vpexp.data.readers.groups import Group, group_annotations, to_xyxy
from vpexp.data.readers.json_files import describe_unreadable, find_json_files, find_unreadable, name_subsets
from vpexp.data.readers.label_maps import is_background_name
from vpexp.data.types import AnnotatedImage, Rle
from vpexp.errors import DataError

_ONLY_CATEGORY = "object"
_SILENT_TYPES = frozenset({"label", "caption"})
"""Annotations of the whole image: no objects, so nothing is lost with them."""


class DatumaroReader:
    """Reads Datumaro exports; every subset is one JSON file."""

    format = "datumaro"

    def __init__(self, folder: Folder) -> None:
        """Find the annotation files.

        Args:
            folder: The data set's folder.

        Raises:
            DataError: There is no Datumaro file.
        """
        self.notes: list[str] = []
        self._folder = folder
        self.unreadable = find_unreadable(folder)
        self._files = name_subsets(find_json_files(folder, "datumaro"))
        if not self._files:
            unreadable = describe_unreadable(self.unreadable)
            raise DataError(
                f"{folder.root}: no Datumaro annotations; looked for *.json files with the keys 'categories' and 'items', "
                f"such as annotations/train.json{unreadable and f'; {unreadable}'}"
            )

    def list_subsets(self) -> Mapping[str, tuple[str, ...]]:
        """List the subsets, each also by its file's name."""
        return {name: (PurePosixPath(file).stem, file) for name, file in self._files.items()}

    def read_subset(self, name: str, ledger: SkipLedger) -> Subset:
        """Read one subset; see `Reader`."""
        file = self._files[name]
        return _DatumaroFile(self._folder, file, name, ledger).read(self.notes)


def _build_context(on_error: Callable[[str, Exception], None]) -> Any:
    """Build the import context whose error policy reports what is bad and goes on."""
    from datumaro.components.contexts.importer import ImportContext, ImportErrorPolicy

    class SkippingPolicy(ImportErrorPolicy):  # type: ignore[misc]
        def report_item_error(self, error: Exception, *, item_id: tuple[str, str]) -> None:
            on_error(f"item {item_id[0]}", error)

        def report_annotation_error(self, error: Exception, *, item_id: tuple[str, str]) -> None:
            on_error(f"annotation {item_id[0]}", error)

    return ImportContext(error_policy=SkippingPolicy())


class _DatumaroFile:
    """One Datumaro JSON file while it is read."""

    def __init__(self, folder: Folder, file: str, subset: str, ledger: SkipLedger) -> None:
        self._path = folder.path(file)
        self._ledger = ledger
        self._finder = ImageFinder(folder, file, [subset, PurePosixPath(file).stem])
        self._subset = subset
        self._categories: tuple[str, ...] = ()

    def read(self, notes: list[str]) -> Subset:
        """Read all items and their objects."""
        from datumaro.components.annotation import AnnotationType
        from datumaro.plugins.data_formats.datumaro.base import DatumaroBase

        try:
            base = DatumaroBase(
                str(self._path), subset=self._subset, allow_external_media=True, ctx=_build_context(self._skip_error)
            )
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{self._path}: Datumaro cannot read it ({type(error).__name__}: {error})") from error
        labels = base.categories().get(AnnotationType.label)
        categories = tuple(label.name for label in labels.items) if labels is not None else ()
        if not categories:
            categories = (_ONLY_CATEGORY,)
            notes.append(f"{self._path.name} declares no categories: every object is called '{_ONLY_CATEGORY}'")
        items = list(base)
        named = list(zip(make_unique(_name_item(item) for item in items), items, strict=True))
        self._categories = categories if labels else ()
        read = (self._read_item(name, item) for name, item in show_progress(named, f"Reading {self._path.name}"))
        return Subset(categories, tuple(image for image in read if image is not None))

    def _skip_error(self, what: str, error: Exception) -> None:
        """Count what Datumaro refused."""
        reason = "polygon with fewer than 3 points or an odd number of values" if "polygon" in str(error) else BAD_ENTRY
        self._ledger.skip(reason, f"{self._path.name}: {what} ({error or type(error).__name__})")

    def _read_item(self, name: str, item: Any) -> AnnotatedImage | None:
        """Read one item; None if nothing is left of it."""
        annotations = [one for one in item.annotations if one.type.name not in _SILENT_TYPES]
        if not annotations:
            skip_unannotated(f"{self._path.name}: {name}", self._ledger)
            return None
        placed = self._place(name, item.media)
        if placed is None:
            return None
        groups = group_annotations(annotations)
        objects = [one for group in groups if group.parts and (one := self._read_object(group, placed))]
        boxes = [box for group in groups if not group.parts for box in self._read_partless(group, objects, placed)]
        return gather_objects(placed, [*objects, *boxes], self._ledger)

    def _place(self, name: str, media: Any) -> PlacedImage | None:
        """Find an item's image file and look at its header."""
        from datumaro.components.media import Image

        if not isinstance(media, Image) or not getattr(media, "path", None):
            self._ledger.skip(NO_IMAGE, f"{self._path.name}: {name}")
            return None
        try:
            path = self._find(Path(media.path))
        except AmbiguousImageError as error:
            self._ledger.skip(AMBIGUOUS_IMAGE, str(error))
            return None
        if path is None:
            self._ledger.skip(MISSING_IMAGE, f"{media.path} ({self._path.name})")
            return None
        return place_image(name, path, media.size if media.has_size else None, self._ledger)

    def _find(self, path: Path) -> Path | None:
        """Take the file where Datumaro looked for it, or else find one of this name."""
        inside = path.is_absolute() or path.is_relative_to(self._path.parents[1])
        return path if inside and is_file(path) else self._finder.find(path.as_posix())

    def _read_object(self, group: Group, placed: PlacedImage) -> ObjectMask | None:
        """Read the parts of one object as one mask; None if it was skipped."""
        first = group.parts[0]
        example = f"{placed.path}, annotation {first.id} of {self._path.name}"
        if any(part.attributes.get("is_crowd") for part in group.parts):
            self._ledger.skip(CROWD, example)
            return None
        label = self._find_label(first, example)
        if label is None:
            return None
        try:
            mask = merge_rles([_read_mask(part, placed) for part in group.parts])
        except MaskError as error:
            self._ledger.skip(str(error), example)
            return None
        return ObjectMask(str(first.id), mask, label)

    def _find_label(self, annotation: Any, example: str) -> int | None:
        """Find the category's index; a file without categories has the one that all objects are of."""
        label: int | None = annotation.label if self._categories else 0
        if label is None or not 0 <= label < max(len(self._categories), 1):
            self._ledger.skip(UNDECLARED, f"{example}: label {label}")
            return None
        if self._categories and is_background_name(self._categories[label]):
            self._ledger.skip(VOID_REGION, example)
            return None
        return label

    def _read_partless(self, group: Group, objects: list[ObjectMask], placed: PlacedImage) -> list[ObjectMask]:
        """Read or count boxes without a mask, unless one is just the box of an object that is in another group."""
        boxes = []
        for annotation in (*group.boxes, *group.others):
            example = f"{placed.path}, annotation {annotation.id} of {self._path.name}"
            if annotation in group.others:
                self._ledger.skip(NO_MASK_TYPE, f"{example} ({annotation.type.name})")
            elif not any(one.label == annotation.label and _is_box_of(annotation, one.mask) for one in objects):
                if not self._ledger.keep_boxes:
                    self._ledger.skip(BOX_ONLY, example)
                elif (label := self._find_label(annotation, example)) is not None:
                    boxes.append(keep_box(str(annotation.id), to_xyxy(annotation), label, placed))
        return boxes


def _name_item(item: Any) -> str:
    """Name an item as its image file, so that a.png and a.jpg stay apart."""
    suffix = PurePosixPath(str(getattr(item.media, "path", "") or "")).suffix
    return f"{item.id}{suffix}"


def _read_mask(part: Any, placed: PlacedImage) -> Rle:
    """Read a polygon or mask; Datumaro holds points as float32, so they are rounded back to its two decimals."""
    if part.type.name == "polygon":
        return polygons_to_rle([part.points], placed.height, placed.width)
    return check_rle(dict(part.rle), placed.height, placed.width)


def _is_box_of(box: Any, mask: Rle) -> bool:
    x0, y0, x1, y1 = compute_box(mask).tolist()
    return compute_box_iou((x0, y0, x1, y1), to_xyxy(box)) >= SAME_BOX_IOU
