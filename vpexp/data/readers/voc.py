"""Pascal VOC: instance masks of SegmentationObject, their classes from SegmentationClass or the XML files.

Mask images are read here and not through Datumaro, which takes 19 ms of every object for decoding palettes, fails where
SegmentationClass is missing, and turns void borders into objects.

Shapes: H W size of the image in pixels.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from vpexp.console import show_progress
from vpexp.data.annotations import AnnotatedImage, Rle
from vpexp.data.folder import Folder
from vpexp.data.masks import compute_box, encode_label_map
from vpexp.data.readers.base import (
    SAME_BOX_IOU,
    ObjectMask,
    PlacedImage,
    Reader,
    Subset,
    compute_box_iou,
    gather_objects,
    keep_box,
    place_image,
    take_unannotated,
)
from vpexp.data.readers.label_images import (
    VOC_LABEL_FILES,
    IndexMask,
    LabelMap,
    MaskFileError,
    build_voc_colors,
    extract_objects,
    find_values,
    find_void,
    has_only_background,
    read_index_mask,
    read_voc_label_map,
)
from vpexp.data.readers.voc_files import (
    VocFolder,
    XmlFile,
    XmlObject,
    describe_voc_folders,
    find_voc_folders,
    read_xml_file,
)
from vpexp.data.skipped import (
    AMBIGUOUS_IMAGE,
    BAD_ENTRY,
    BOX_ONLY,
    DAMAGED_XML,
    MASK_SIZE_DIFFERS,
    MISSING_IMAGE,
    NO_SHAPE,
    NOTHING_USABLE,
    UNDECLARED,
    VOID_REGION,
    SkipCounts,
)
from vpexp.errors import DataError

_ONLY_CATEGORY = "object"
_UNNAMED = f"{{total}} of the objects have no class mask and no XML box that fits: called '{_ONLY_CATEGORY}' (such as {{example}})"


class VocReader(Reader):
    """Reads Pascal VOC; a subset is a list of images in ImageSets, or all images where there are no lists."""

    title = "Pascal VOC"
    layout = "JPEGImages beside SegmentationObject, SegmentationClass or Annotations"

    def __init__(self, folder: Folder, instances: str) -> None:
        """Find the subsets.

        Args:
            folder: The data set's folder.
            instances: ``components`` or ``classes``; counts only where there are class masks without instance masks.

        Raises:
            DataError: Nothing is laid out as Pascal VOC.
        """
        self.notes: list[str] = []
        self.unreadable: dict[str, str] = {}
        self._by_component = instances == "components"
        homes = [VocFolder(folder, name) for name in find_voc_folders(folder)]
        if not homes:
            raise DataError(
                f"{folder.root}: no Pascal VOC; looked for JPEGImages beside SegmentationObject, SegmentationClass, "
                "Annotations and ImageSets"
            )
        self._subsets: dict[str, tuple[VocFolder, list[str]]] = {}
        for home in homes:
            for name, ids in home.list_sets().items():
                own = name if len(homes) == 1 else "/".join(filter(None, [home.name, name]))
                self._subsets[own or "default"] = home, ids

    @staticmethod
    def find_signs(folder: Folder) -> list[str]:
        """List what shows that a folder is of this format."""
        return describe_voc_folders(folder)

    def list_subsets(self) -> Mapping[str, tuple[str, ...]]:
        """List the subsets."""
        return dict.fromkeys(self._subsets, ())

    def read_subset(self, name: str, skips: SkipCounts) -> Subset:
        """Read one subset; see `Reader`."""
        home, ids = self._subsets[name]
        subset = _VocSubset(home, skips, by_component=self._by_component)
        images = []
        for image_id in show_progress(ids, f"Reading masks of {name}"):
            if barred := home.find_barred(image_id):
                skips.skip(*barred)
            elif (image := subset.read_image(image_id)) is not None:
                images.append(image)
        return Subset(tuple(subset.categories), tuple(images))


class _VocSubset:
    """One subset while it is read; its categories grow where XML files name classes that no label map declares."""

    def __init__(self, home: VocFolder, skips: SkipCounts, *, by_component: bool) -> None:
        self._home = home
        self._skips = skips
        self._by_component = by_component
        for name in VOC_LABEL_FILES:
            home.find_to_read(name)
        self._label_map = read_voc_label_map(home.path)
        self._instance_colors = build_voc_colors()
        self.categories = list(self._label_map.categories)

    def read_image(self, image_id: str) -> AnnotatedImage | None:
        """Read one image's masks; None if nothing is left of it."""
        try:
            instances, classes = self._home.instance_masks.get(image_id), self._home.class_masks.get(image_id)
            instances_HW = read_index_mask(instances, self._instance_colors, of_instances=True) if instances else None
            classes_HW = read_index_mask(classes, self._label_map.colors) if classes else None
        except MaskFileError as error:
            self._skips.skip(error.reason, str(error.path))
            return None
        xml = self._read_xml(image_id)
        map_HW = instances_HW if instances_HW is not None else classes_HW
        if map_HW is None:
            return self._read_unmasked(image_id, xml)
        if classes_HW is not None and classes_HW.shape != map_HW.shape:
            self._skips.skip(MASK_SIZE_DIFFERS, f"{image_id}: instance and class mask are of different sizes")
            return None
        path = self._find_image(image_id)
        placed = path and place_image(image_id, path, (map_HW.shape[0], map_HW.shape[1]), self._skips)
        if not placed:
            return None
        if instances_HW is None:
            objects = self._read_classes(image_id, map_HW)
        else:
            objects = self._read_instances(placed, instances_HW, classes_HW, xml.objects)
        if objects is None:
            return take_unannotated(image_id, lambda: placed, self._skips)
        return gather_objects(placed, objects, self._skips)

    def _read_xml(self, image_id: str) -> XmlFile:
        path = self._home.xml_files.get(image_id)
        if path is None:
            return XmlFile()
        try:
            xml = read_xml_file(path)
        except DataError as error:
            self._skips.skip(DAMAGED_XML, str(error))
            return XmlFile()
        self._skips.skip(BAD_ENTRY, f"{path}: an object without a name, or with a box of no numbers", count=xml.bad)
        return xml

    def _read_unmasked(self, image_id: str, xml: XmlFile) -> AnnotatedImage | None:
        """Read or count the boxes of an image without masks."""
        self._skips.skip(NO_SHAPE, f"{image_id}: no mask and no box in {self._home.path}", count=xml.boxless)
        if xml.objects and self._skips.keep_boxes:
            placed = self._place_unmasked(image_id, xml)
            return gather_objects(placed, self._keep_boxes(xml.objects, placed), self._skips) if placed else None
        if xml.objects:
            self._skips.skip(BOX_ONLY, f"{image_id}: no mask in {self._home.path}", count=len(xml.objects))
        elif xml.boxless:
            self._skips.skip(NOTHING_USABLE, image_id)
        elif image_id not in self._home.images and image_id not in self._home.xml_files:
            self._skips.skip(MISSING_IMAGE, f"{image_id} in {self._home.path}")
        else:
            return take_unannotated(image_id, partial(self._place_unmasked, image_id, xml), self._skips)
        return None

    def _place_unmasked(self, image_id: str, xml: XmlFile) -> PlacedImage | None:
        path = self._find_image(image_id)
        return None if path is None else place_image(image_id, path, xml.size, self._skips)

    def _keep_boxes(self, boxes: Sequence[XmlObject], placed: PlacedImage) -> list[ObjectMask]:
        return [
            keep_box(f"box {number}", box.box, self._index(box.name), placed)
            for number, box in enumerate(boxes, start=1)
        ]

    def _find_image(self, image_id: str) -> Path | None:
        """Find the image file; where several have the name, the JPEG that the format asks for."""
        files = self._home.images.get(image_id, [])
        jpegs = [file for file in files if file.suffix.lower() in (".jpg", ".jpeg")]
        if len(files) == 1 or len(jpegs) == 1:
            return (jpegs or files)[0]
        reason = AMBIGUOUS_IMAGE if files else MISSING_IMAGE
        self._skips.skip(reason, f"{image_id} in {self._home.path}")
        return None

    def _read_classes(self, image_id: str, classes_HW: IndexMask) -> list[ObjectMask] | None:
        """Take objects out of a class map that has no instance map; None if it holds only background."""
        if has_only_background(classes_HW, self._label_map):
            return None
        path = self._home.class_masks[image_id]
        return extract_objects(classes_HW, self._label_map, path, self._skips, by_component=self._by_component)

    def _read_instances(
        self, placed: PlacedImage, instances_HW: IndexMask, classes_HW: IndexMask | None, boxes: Sequence[XmlObject]
    ) -> list[ObjectMask] | None:
        """Take objects out of an instance map; None if it holds only background."""
        masks = encode_label_map(instances_HW)
        nothing = {0, find_void(masks)}
        masks = {value: mask for value, mask in masks.items() if value > 0 and value not in nothing}
        if not masks:
            return None
        classes = _find_classes(instances_HW, classes_HW, list(masks), self._label_map)
        objects = []
        for value, mask in masks.items():
            name = self._name_object(f"{placed.image_id}, instance {value}", classes[value], mask, boxes)
            if name is not None:
                objects.append(ObjectMask(str(value), mask, self._index(name)))
        if self._skips.keep_boxes:
            bounds = [compute_box(mask).tolist() for mask in masks.values()]
            bare = [box for box in boxes if all(compute_box_iou(box.box, own) < SAME_BOX_IOU for own in bounds)]
            return objects + self._keep_boxes(bare, placed)
        self._skips.skip(BOX_ONLY, f"{placed.image_id}: boxes without an instance", count=len(boxes) - len(masks))
        return objects

    def _name_object(self, example: str, value: int | None, mask: Rle, boxes: Sequence[XmlObject]) -> str | None:
        """Name the class of an instance: by its class mask, or by the XML box that fits it; None if it was skipped."""
        if value is None or not self._label_map.is_declared:
            by_box = _find_name(mask, boxes)
            if by_box is not None:
                return by_box
        if value is None:
            self._skips.remark({_UNNAMED: 1}, example)
            return _ONLY_CATEGORY
        if self._label_map.is_object(value):
            return self._label_map.names[value]
        reason = VOID_REGION if self._label_map.is_background(value) else UNDECLARED
        self._skips.skip(reason, f"{example}: class {value}")
        return None

    def _index(self, name: str) -> int:
        if name not in self.categories:
            self.categories.append(name)
        return self.categories.index(name)


def _find_classes(
    instances_HW: IndexMask, classes_HW: IndexMask | None, instances: list[int], label_map: LabelMap
) -> dict[int, int | None]:
    """Find the class of each instance: the one that most of its pixels have, background only where there is no other.

    Returns:
        Instance -> number of its class, None where there is no class map.
    """
    if classes_HW is None:
        return dict.fromkeys(instances)
    inside_HW = np.isin(instances_HW, instances)
    places = np.searchsorted(instances, instances_HW[inside_HW])
    values = find_values(classes_HW)
    columns = np.searchsorted(values, classes_HW[inside_HW])
    counts = np.bincount(places * len(values) + columns, minlength=len(instances) * len(values))
    table = counts.reshape(len(instances), len(values)).astype(np.float64)
    table[:, [label_map.is_background(value) for value in values]] *= 1e-9  # the last choice
    return {instance: values[column] for instance, column in zip(instances, table.argmax(axis=1), strict=True)}


def _find_name(mask: Rle, boxes: Sequence[XmlObject]) -> str | None:
    """Find the name of the XML box that fits a mask best; None if none overlaps it by half."""
    if not boxes:
        return None
    x0, y0, x1, y1 = compute_box(mask).tolist()
    scores = [compute_box_iou((x0, y0, x1, y1), box.box) for box in boxes]
    best = scores.index(max(scores))
    return boxes[best].name if scores[best] >= SAME_BOX_IOU else None
