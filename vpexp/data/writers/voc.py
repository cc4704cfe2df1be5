"""Pascal VOC: instance and class masks with the palette, XML files with boxes and scores, and lists of the splits."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree as ET

from vpexp.data.annotations import SCORE_DIGITS
from vpexp.data.masks import compute_box
from vpexp.data.readers.label_images import LABEL_MAP_FILE, META_FILE, VOID, read_voc_label_map
from vpexp.data.writers.images import LabelledImage, LabelledObject, group_by_split, place_images, prepare_place
from vpexp.data.writers.label_images import list_colors, number, number_classes, paint, save_numbers, write_meta
from vpexp.errors import DataError

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
LISTS = ("ImageSets/Segmentation", "ImageSets/Main")  # some tools look into one of them only


def write_voc(folder: Path, images: Sequence[LabelledImage], categories: Sequence[str], *, placing: str) -> list[str]:
    """Write a data set in Pascal VOC's layout.

    Args:
        folder: exists, and is empty.
        images: with objects that share no pixel.
        categories: names; the first has the number 1.
        placing: see ``place_images``.

    Raises:
        DataError: more classes, or objects of an image, than a mask has values.
    """
    for name in ("SegmentationObject", "SegmentationClass", "Annotations", *LISTS):
        (folder / name).mkdir(parents=True)
    _write_label_map(folder, categories)
    for split, own in group_by_split(images).items():
        place_images(own, folder / "JPEGImages", placing)
        for image in own:
            _write_annotations(folder, image, categories)
        names = "".join(f"{PurePosixPath(image.name).with_suffix('')}\n" for image in own)
        for lists in LISTS:
            (folder / lists / f"{split}.txt").write_text(names, "utf-8")
    return []


def _write_label_map(folder: Path, categories: Sequence[str]) -> None:
    """Write labelmap.txt; where these classes would not come back from it, a dataset_meta.json, which is read alike."""
    if len(categories) < VOID:
        path = folder / LABEL_MAP_FILE
        named = zip(["background", *categories], list_colors(len(categories) + 1), strict=True)
        lines = ["# label:color_rgb:parts:actions", *(f"{name}:{','.join(map(str, color))}::" for name, color in named)]
        path.write_text("\n".join(lines) + "\n", "utf-8", errors="replace")
        with suppress(DataError):  # a colon in a name
            if read_voc_label_map(folder).categories == tuple(categories):
                return
        path.unlink()
    write_meta(folder / META_FILE, categories)


def _write_annotations(folder: Path, image: LabelledImage, categories: Sequence[str]) -> None:
    instances_HW = paint(image, number(f"objects of {image.path}", len(image.objects)))
    save_numbers(instances_HW, prepare_place(folder / "SegmentationObject", image.name, ".png"))
    classes_HW = paint(image, number_classes(image.objects, categories))
    save_numbers(classes_HW, prepare_place(folder / "SegmentationClass", image.name, ".png"))
    root = ET.Element("annotation")
    _add(root, "filename", image.name)
    size = ET.SubElement(root, "size")
    for key, value in (("width", image.width), ("height", image.height), ("depth", 3)):
        _add(size, key, value)
    _add(root, "segmented", 1)
    for one in image.objects:
        _add_object(root, one)
    ET.indent(root)
    ET.ElementTree(root).write(prepare_place(folder / "Annotations", image.name, ".xml"), encoding="utf-8")


def _add_object(root: ET.Element, one: LabelledObject) -> None:
    element = ET.SubElement(root, "object")
    _add(element, "name", one.label)
    left, top, right, bottom = compute_box(one.mask).astype(int).tolist()
    box = ET.SubElement(element, "bndbox")  # pixels count from 1, both ends included
    for key, value in (("xmin", left + 1), ("ymin", top + 1), ("xmax", right), ("ymax", bottom)):
        _add(box, key, value)
    if one.score is not None:
        attribute = ET.SubElement(ET.SubElement(element, "attributes"), "attribute")
        _add(attribute, "name", "score")
        _add(attribute, "value", round(one.score, SCORE_DIGITS))


def _add(parent: ET.Element, name: str, text: object) -> None:
    ET.SubElement(parent, name).text = _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", str(text))
