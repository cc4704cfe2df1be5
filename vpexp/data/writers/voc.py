"""Pascal VOC: instance and class masks with the palette, XML files with boxes and scores, and lists of the splits."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree as ET

from vpexp.data.masks import compute_box
from vpexp.data.types import SCORE_DIGITS
from vpexp.data.writers.images import group_by_split, place_images
from vpexp.data.writers.label_images import check_numbers, list_colors, number_classes, paint, save_numbers
from vpexp.data.writers.labelled import LabelledImage, LabelledObject

LISTS = ("ImageSets/Segmentation", "ImageSets/Main")  # some tools look into one of them only


def write_voc(folder: Path, images: Sequence[LabelledImage], categories: Sequence[str], *, placing: str) -> list[str]:
    """Write a data set in Pascal VOC's layout.

    Args:
        folder: exists, and is empty.
        images: with objects that share no pixel.
        categories: names; the first has the number 1.
        placing: see ``place_images``.

    Raises:
        DataError: more classes, or objects of an image, than a palette has colours.
    """
    check_numbers("classes", len(categories))
    for image in images:
        check_numbers(f"objects of {image.path}", len(image.objects))
    for name in ("SegmentationObject", "SegmentationClass", "Annotations", *LISTS):
        (folder / name).mkdir(parents=True)
    colors = list_colors(len(categories) + 1)
    lines = [
        f"{name}:{','.join(map(str, color))}::" for name, color in zip(["background", *categories], colors, strict=True)
    ]
    (folder / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(lines) + "\n", "utf-8")
    for split, own in group_by_split(images).items():
        place_images(own, folder / "JPEGImages", placing)
        for image in own:
            _write_annotations(folder, image, categories)
        names = "".join(f"{PurePosixPath(image.name).stem}\n" for image in own)
        for lists in LISTS:
            (folder / lists / f"{split}.txt").write_text(names, "utf-8")
    return []


def _write_annotations(folder: Path, image: LabelledImage, categories: Sequence[str]) -> None:
    stem = PurePosixPath(image.name).stem
    instances_HW = paint(image, range(1, len(image.objects) + 1))
    save_numbers(instances_HW, folder / "SegmentationObject" / f"{stem}.png")
    classes_HW = paint(image, number_classes(image.objects, categories))
    save_numbers(classes_HW, folder / "SegmentationClass" / f"{stem}.png")
    root = ET.Element("annotation")
    _add(root, "filename", image.name)
    size = ET.SubElement(root, "size")
    for key, value in (("width", image.width), ("height", image.height), ("depth", 3)):
        _add(size, key, value)
    _add(root, "segmented", 1)
    for one in image.objects:
        _add_object(root, one)
    ET.indent(root)
    ET.ElementTree(root).write(folder / "Annotations" / f"{stem}.xml", encoding="utf-8")


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
    ET.SubElement(parent, name).text = str(text)
