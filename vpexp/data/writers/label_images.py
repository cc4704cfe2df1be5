"""Pascal VOC and common semantic segmentation: masks as images whose pixels are numbers, in colours that people see.

Pascal VOC has instance and class masks, XML files with boxes and scores, and lists of the splits. The other has
``<split>/images``, ``<split>/masks`` whose pixels are classes, and ``dataset_meta.json``.

Legend: H W size of the image.
"""

import csv
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vpexp.data.annotations import SCORE_DIGITS
from vpexp.data.masks import compute_box, decode_rle
from vpexp.data.readers.label_images import LABEL_MAP_FILE, META_FILE, VOID, Color, build_voc_colors, read_voc_label_map
from vpexp.data.writers.base import LabelledImage, LabelledObject, group_by_split, place_images, prepare_place
from vpexp.errors import DataError

MOST_VALUES = 65_533
"""0 is background, 255 and 65535 are void."""

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
LISTS = ("ImageSets/Segmentation", "ImageSets/Main")  # some tools look into one of them only
SCORES = ("image", "label", "x0", "y0", "x1", "y1", "score")


def paint(image: LabelledImage, values: Sequence[int]) -> NDArray[np.uint16]:
    """Paint each object's pixels, which no other may have, with its number; uint16 [H, W], 0 is background."""
    numbers_HW = np.zeros((image.height, image.width), dtype=np.uint16)
    for one, value in zip(image.objects, values, strict=True):
        numbers_HW[decode_rle(one.mask)] = value
    return numbers_HW


def save_numbers(numbers_HW: NDArray[np.uint16], path: Path) -> None:
    """Save numbers losslessly as a PNG: with Pascal VOC's palette, or grey of 16 bits where there are more than it has."""
    if numbers_HW.max() > VOID:
        Image.fromarray(numbers_HW).save(path)
        return
    picture = Image.fromarray(numbers_HW.astype(np.uint8)).convert("P")
    picture.putpalette([channel for color in list_colors(VOID + 1) for channel in color])
    picture.save(path, optimize=False)


def list_colors(count: int) -> list[Color]:
    """List the colours of the numbers from 0 on, as Pascal VOC has them."""
    by_number = {number: color for color, number in build_voc_colors().items()}
    return [by_number[number] for number in range(count)]


def number(what: str, count: int) -> list[int]:
    """Number things from 1 on; 255, which means void, is left out.

    Raises:
        DataError: there are more than masks of 16 bits hold.
    """
    if count > MOST_VALUES:
        raise DataError(f"{what}: {count} do not fit into masks of 16 bits, which hold {MOST_VALUES}: use format coco")
    return [value for value in range(1, count + 2) if value != VOID][:count]


def number_classes(objects: Sequence[LabelledObject], categories: Sequence[str]) -> list[int]:
    """Number the classes of objects in the order of the categories."""
    numbers = dict(zip(categories, number("classes", len(categories)), strict=True))
    return [numbers[one.label] for one in objects]


def write_meta(path: Path, categories: Sequence[str]) -> None:
    """Write a dataset_meta.json: the name and, where the palette has as many, the colour of each number."""
    numbers = [0, *number("classes", len(categories))]
    names = ["background", *categories]
    meta = {
        "label_map": {str(value): name for value, name in zip(numbers, names, strict=True)},
        "segmentation_colors": [list(color) for color in list_colors(len(names))] if numbers[-1] < VOID else [],
        "background_label": "0",
    }
    path.write_text(json.dumps(meta, indent=2) + "\n", "utf-8")


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


def write_semantic(
    folder: Path, images: Sequence[LabelledImage], categories: Sequence[str], *, placing: str
) -> list[str]:
    """Write a data set of class masks; scores, which masks cannot hold, go to ``<split>/scores.csv``.

    Args:
        folder: exists, and is empty.
        images: with objects that share no pixel; those of one class that touch will be read as one.
        categories: names; the first has the pixel value 1.
        placing: see ``place_images``.

    Raises:
        DataError: more classes than a mask has values.
    """
    for split, own in group_by_split(images).items():
        place_images(own, folder / split / "images", placing)
        (folder / split / "masks").mkdir()
        for image in own:
            classes_HW = paint(image, number_classes(image.objects, categories))
            save_numbers(classes_HW, prepare_place(folder / split / "masks", image.name, ".png"))
        write_meta(folder / split / META_FILE, categories)
        _write_scores(folder / split / "scores.csv", own)
    losses = np.sum([_count_losses(image) for image in images], axis=0).tolist()
    losses_described = (
        "objects touch another of their class: class masks make one of them",
        "objects have several parts: class masks make one object of each",
    )
    return [f"{count} {what}" for count, what in zip(losses, losses_described, strict=True) if count]


def _count_losses(image: LabelledImage) -> tuple[int, int]:
    """Count the objects that connected parts of a class mask do not give back: those that touch, those of many parts."""
    from scipy import ndimage  # not needed where an exported model is served

    merged = parted = 0
    for label in {one.label for one in image.objects}:
        masks = [decode_rle(one.mask) for one in image.objects if one.label == label]
        parts_HW, _ = ndimage.label(np.any(masks, axis=0), structure=np.ones((3, 3)))
        claims = [set(np.unique(parts_HW[mask_HW]).tolist()) for mask_HW in masks]
        merged += sum(any(own & other for other in claims[:place]) for place, own in enumerate(claims))
        parted += sum(len(own) > 1 for own in claims)
    return merged, parted


def _write_scores(path: Path, images: Sequence[LabelledImage]) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(SCORES)
        for image in images:
            for one in image.objects:
                rows.writerow([image.name, one.label, *compute_box(one.mask).astype(int).tolist(), one.score])
