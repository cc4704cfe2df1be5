"""Small data sets drawn at random, written in every format by json, numpy and PIL alone, with what is right to read of them.

Each image is of one grey that no other image has, so that a wrong file shows. Objects of one image do not share pixels.
"""

import json
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

SPLITS = ("train", "val")
NAMES = ("a.png", "a.bmp", "A2.PNG", "a.b.png", "s/a.png", "t/a.png", "ü.png", "e\u0301.tiff", "two words.png", "two.png", "1 1.png",
         "#x.png", "%20.png", "train/a.png", "images/a.png", "1.png", "01.png", "10.png", "a_mask.png", "val.png")  # fmt: skip
CLASSES = ("cell", "a, b", "0", "1", "00", "x/y", "\u0663", "q\"'", "Cell", "class 7")
IDS = (
    0,
    1,
    -1,
    7,
    "007",
    "1_12",
    "11_2",
    112,
    "\u0663",
    3,
    1.5,
    "1.5",
    "a",
    "A",
    2**53 + 1,
    2**53,
    "1e3",
    1000,
    "0x1",
    " 5",
    10**30,
)
MODES = ("RGB", "L", "P", "RGBA")

Read = tuple[str, int, str, bytes]
"""Split, grey of the image's pixels, class, and packed mask."""


@dataclass
class DrawnObject:
    """A mask, its class, and how an annotation file has it."""

    mask: np.ndarray
    label: str
    kind: str


@dataclass
class DrawnPicture:
    """An image file; ``is_missing``: it is declared and not there."""

    name: str
    split: str
    grey: int
    mode: str
    size: tuple[int, int]
    is_missing: bool
    objects: list[DrawnObject] = field(default_factory=list)

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).with_suffix("").as_posix()

    def save(self, path: Path) -> None:
        if not self.is_missing:
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.new("RGB", self.size[::-1], (self.grey,) * 3)
            mode = "L" if path.suffix == ".bmp" else self.mode
            image.convert(mode, palette=Image.Palette.ADAPTIVE).save(path)

    def paint(self, values: list[int], dtype: Any) -> np.ndarray:
        painted_HW = np.zeros(self.size, dtype)
        for one, value in zip(self.objects, values, strict=True):
            painted_HW[one.mask] = value
        return painted_HW


@dataclass
class DrawnSet:
    """Images of two splits, and the ids and classes that the files use."""

    pictures: list[DrawnPicture]
    classes: list[str]
    ids: list[Hashable]
    category_ids: list[Hashable]

    def of_split(self, split: str) -> list[DrawnPicture]:
        return [one for one in self.pictures if one.split == split]


Outcome = tuple[str, np.ndarray, str | None]
"""Class and mask of an object, and why it is to be left out, if it is."""


@dataclass
class Expected:
    """What is right to read: objects, and how many objects and images are left out by each reason."""

    objects: Counter[Read] = field(default_factory=Counter)
    skipped: dict[str, Counter[str]] = field(default_factory=lambda: {split: Counter() for split in SPLITS})

    def add(self, picture: DrawnPicture, outcomes: list[Outcome]) -> None:
        skipped = self.skipped[picture.split]
        read = [(label, mask) for label, mask, reason in outcomes if reason is None]
        if not outcomes:
            skipped["image without annotations"] += 1
        elif picture.is_missing:
            skipped["image file is missing"] += 1
        else:
            skipped.update(reason for _, _, reason in outcomes if reason is not None)
            skipped.update([] if read else ["image left without objects"])
            self.objects.update(
                (picture.split, picture.grey, label, np.packbits(mask).tobytes()) for label, mask in read
            )


def draw_set(seed: int, kinds: tuple[str, ...], *, by_stem: bool = False, shared: bool = False) -> DrawnSet:
    """Draw a data set; the first image of each split is there and has an object.

    Args:
        seed: of what is drawn.
        kinds: how objects may be annotated.
        by_stem: no two images of a split may have the same name without ending.
        shared: nor may two of different splits.
    """
    rng = np.random.default_rng(seed)
    classes = rng.permutation(CLASSES)[: rng.integers(1, 5)].tolist()
    pictures: list[DrawnPicture] = []
    taken: set[str] = set()
    for split in SPLITS:
        taken = taken if shared else set()
        names = []
        for name in rng.permutation(NAMES)[: rng.integers(1, 5)].tolist():
            key = str(PurePosixPath(name).with_suffix("")).lower() if by_stem else name
            if key not in taken:
                names.append(name)
            taken.add(key)
        names = names or [f"only {split}.png"]
        for place, name in enumerate(names):
            size = (int(rng.integers(1, 10)), int(rng.integers(1, 10)))
            mode = str(rng.choice(MODES))
            picture = DrawnPicture(
                name, split, 5 * len(pictures) + 3, mode, size, place > 0 and bool(rng.random() < 0.2)
            )
            parts_HW = (
                rng.integers(0, rng.integers(2, 5), size) if place == 0 or rng.random() < 0.8 else np.zeros(size, int)
            )
            parts_HW[0, 0] = 1 if place == 0 else parts_HW[0, 0]
            for number in (1, 2, 3):
                if (parts_HW == number).any():
                    label, kind = str(rng.choice(classes)), str(rng.choice(kinds))
                    picture.objects.append(DrawnObject(parts_HW == number, label, kind))
            picture.is_missing &= bool(picture.objects)
            pictures.append(picture)
    ids = [IDS[place] for place in rng.permutation(len(IDS))]
    category_ids = [IDS[place] for place in rng.permutation(len(IDS))]
    return DrawnSet(pictures, classes, ids[: len(pictures)], category_ids[: len(classes)])


def _encode(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def _count_runs(mask: np.ndarray) -> list[int]:
    flat = mask.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return [0, *runs] if flat[0] else runs


def _outline(mask: np.ndarray) -> list[list[float]]:
    """One square a pixel, which pycocotools fills with just that pixel."""
    return [
        [x, y, x + 1, y, x + 1, y + 1, x, y + 1] for y, x in zip(*map(np.ndarray.tolist, np.nonzero(mask)), strict=True)
    ]


COCO_KINDS = (
    "rle",
    "runs",
    "polygons",
    "float polygons",
    "crowd",
    "box",
    "undeclared",
    "odd",
    "other size",
    "nothing",
    "list of rles",
)


def write_coco(drawn: DrawnSet, root: Path) -> Expected:
    """Write COCO files; ``images/<split>``."""
    expected = Expected()
    (root / "annotations").mkdir(parents=True)
    for split in SPLITS:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for key, picture in zip(drawn.ids, drawn.pictures, strict=True):
            if picture.split == split:
                picture.save(root / "images" / split / picture.name)
                height, width = picture.size
                images.append({"id": key, "file_name": picture.name, "height": height, "width": width})
                expected.add(picture, [_annotate(one, picture, key, drawn, annotations) for one in picture.objects])
        annotations.append({"id": "x", "image_id": "no such image", "segmentation": [[0, 0, 1, 0, 1, 1]]})
        expected.skipped[split]["annotation of an undeclared image"] += 1
        categories = [{"id": key, "name": name} for key, name in zip(drawn.category_ids, drawn.classes, strict=True)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return expected


def _annotate(
    one: DrawnObject, picture: DrawnPicture, key: Hashable, drawn: DrawnSet, annotations: list[dict[str, Any]]
) -> Outcome:
    """Write an object as COCO does; polygons are what pycocotools makes of them."""
    height, width = picture.size
    shift = 0.31 if one.kind == "float polygons" else 0
    parts = [[value + shift for value in part] for part in _outline(one.mask)]
    mask = one.mask
    if one.kind.endswith("polygons"):
        mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, height, width))).astype(bool)
    segmentations: dict[str, Any] = {
        "polygons": parts,
        "float polygons": parts,
        "runs": {"size": [height, width], "counts": _count_runs(one.mask)},
        "list of rles": [_encode(one.mask), _encode(np.roll(one.mask, 1, 0) & one.mask)],
        "box": [],
        "nothing": [[]],
        "odd": [[0, 0, 1, 0, 1, 1, 0]],
        "other size": {"size": [height + 1, width], "counts": [(height + 1) * width]},
    }
    reasons = {
        "crowd": "crowd region",
        "undeclared": "undeclared category",
        "box": "box only, no mask",
        "nothing": "neither mask nor box",
        "odd": "polygon with an odd number of values",
        "other size": "RLE size differs from the image's",
    }
    category = "no such category" if one.kind == "undeclared" else drawn.category_ids[drawn.classes.index(one.label)]
    entry = {"id": len(annotations), "image_id": key, "category_id": category, "iscrowd": int(one.kind == "crowd")}
    entry |= {"segmentation": segmentations.get(one.kind, _encode(one.mask))}
    annotations.append(entry | ({} if one.kind == "nothing" else {"bbox": [0, 0, 1, 1]}))
    return one.label, mask, reasons.get(one.kind, None if mask.any() else "no pixel of the mask inside the image")


DATUMARO_KINDS = ("rle", "polygons", "crowd", "box", "undeclared", "points")


def write_datumaro(drawn: DrawnSet, root: Path) -> Expected:
    """Write Datumaro's files; ids of annotations are of all types."""
    expected = Expected()
    (root / "annotations").mkdir(parents=True)
    labels = [{"name": name, "parent": "", "attributes": []} for name in drawn.classes]
    for split in SPLITS:
        items = []
        for picture in drawn.of_split(split):
            picture.save(root / "images" / split / picture.name)
            annotations: list[dict[str, Any]] = []
            expected.add(picture, [_annotate_item(one, picture, drawn, annotations) for one in picture.objects])
            image = {"path": picture.name, "size": list(picture.size)}
            items.append({"id": picture.stem, "annotations": annotations, "image": image})
        content = {"info": {}, "categories": {"label": {"labels": labels, "attributes": []}}, "items": items}
        (root / f"annotations/{split}.json").write_text(json.dumps(content))
    return expected


def _annotate_item(
    one: DrawnObject, picture: DrawnPicture, drawn: DrawnSet, annotations: list[dict[str, Any]]
) -> Outcome:
    """Write an object as Datumaro does; of polygons the first pixel."""
    mask = one.mask
    part = _outline(mask)[0]
    if one.kind == "polygons":
        mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([part], *picture.size))).astype(bool)
    shapes: dict[str, dict[str, Any]] = {
        "polygons": {"type": "polygon", "points": part},
        "box": {"type": "bbox", "bbox": [100, 100, 1, 1]},
        "points": {"type": "points", "points": [0, 0], "visibility": [2]},
    }
    reasons = {
        "crowd": "crowd region",
        "undeclared": "undeclared category",
        "box": "box only, no mask",
        "points": "annotation type without a mask",
    }
    label = 99 if one.kind == "undeclared" else drawn.classes.index(one.label)
    key = drawn.ids[len(annotations) % len(drawn.ids)]
    entry = {"id": key, "group": 0, "label_id": label, "attributes": {"is_crowd": one.kind == "crowd"}, "z_order": 0}
    annotations.append(entry | shapes.get(one.kind, {"type": "mask", "rle": _encode(one.mask)}))
    return one.label, mask, reasons.get(one.kind, None if mask.any() else "no pixel of the mask inside the image")


MASK_KINDS = ("L", "16", "P")


def _save_mask(values_HW: np.ndarray, kind: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "16":
        Image.fromarray(values_HW.astype(np.uint16)).save(path)
        return
    image = Image.fromarray(values_HW.astype(np.uint8))
    if kind == "P":
        image.putpalette([channel for value in range(256) for channel in (value, 255 - value, 7)])
    image.save(path)


def write_semantic(drawn: DrawnSet, root: Path) -> Expected:
    """Write class masks, one object a class."""
    expected = Expected()
    numbers = {name: (3, 77, 200, 254)[place] for place, name in enumerate(drawn.classes)}
    meta = {
        "label_map": {"0": "background", **{str(number): name for name, number in numbers.items()}},
        "background_label": "0",
    }
    for split in SPLITS:
        for picture in drawn.of_split(split):
            picture.save(root / split / "images" / picture.name)
            classes_HW = picture.paint([numbers[one.label] for one in picture.objects], int)
            kind = picture.objects[0].kind if picture.objects else "L"
            _save_mask(classes_HW, kind, root / split / f"masks/{picture.stem}.png")
            names = sorted({one.label for one in picture.objects})
            expected.add(picture, [(name, classes_HW == numbers[name], None) for name in names])
        (root / split / "images").mkdir(parents=True, exist_ok=True)
        (root / split / "dataset_meta.json").write_text(json.dumps(meta))
    return expected


def write_voc(drawn: DrawnSet, root: Path) -> Expected:
    """Write instance and class masks with a dataset_meta.json, lists of images, and XML files beside some of them."""
    expected = Expected()
    meta = {"label_map": {str(number): name for number, name in enumerate(["background", *drawn.classes])}}
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    (root / "dataset_meta.json").write_text(json.dumps(meta))
    for split in SPLITS:
        for picture in drawn.of_split(split):
            picture.save(root / "JPEGImages" / picture.name)
            kind = picture.objects[0].kind if picture.objects else "L"
            values = [1, 255 if kind == "16" else 9, 300 if kind == "16" else 254][: len(picture.objects)]
            if kind == "16" and len(values) == 2:  # 255 is void where nothing is above it
                values = [1, 300]
            _save_mask(picture.paint(values, int), kind, root / f"SegmentationObject/{picture.stem}.png")
            labels = [1 + drawn.classes.index(one.label) for one in picture.objects]
            _save_mask(picture.paint(labels, int), "L", root / f"SegmentationClass/{picture.stem}.png")
            expected.add(picture, [(one.label, one.mask, None) for one in picture.objects])
            if kind == "P":
                _write_xml(picture, root / f"Annotations/{picture.stem}.xml")
        names = "".join(f"{one.stem}\n" for one in drawn.of_split(split))
        (root / f"ImageSets/Segmentation/{split}.txt").write_text(names, encoding="utf-8")
    return expected


def _write_xml(picture: DrawnPicture, path: Path) -> None:
    root = ET.Element("annotation")
    for one in picture.objects:
        element = ET.SubElement(root, "object")
        ET.SubElement(element, "name").text = one.label
        box = ET.SubElement(element, "bndbox")
        rows, columns = np.nonzero(one.mask)
        for key, value in (
            ("xmin", columns.min() + 1),
            ("ymin", rows.min() + 1),
            ("xmax", columns.max() + 1),
            ("ymax", rows.max() + 1),
        ):
            ET.SubElement(box, key).text = str(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    ET.ElementTree(root).write(path, encoding="utf-8")
