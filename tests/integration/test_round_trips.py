"""Data sets that ``stage=predict`` makes of data sets are read back: same images, names, classes and masks; and they train."""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from tests.conftest import RunDebug
from vpexp.config import compose_config
from vpexp.config.schema import DataConfig
from vpexp.data.annotations import AnnotatedDataset
from vpexp.data.dataset import load_dataset
from vpexp.data.masks import decode_rle
from vpexp.data.readers.label_images import build_voc_colors
from vpexp.data.writers.base import name_file
from vpexp.inference.predict_plan import plan_dataset
from vpexp.inference.segment import FoundMask
from vpexp.stages.shared.predicted_dataset import LabelCollector

FORMATS = ("coco", "voc", "datumaro", "common_semantic_segmentation")
CLASSES = ("grape, red", "leaf/stalk")
HEIGHT, WIDTH = 36, 48
BOX = (3, 4, 33, 24)
"""xyxy, of the only object of one image, which has no mask."""
PALETTE = [channel for color in sorted(build_voc_colors(), key=build_voc_colors().__getitem__) for channel in color]
MODES = {".jpg": "CMYK", ".tiff": "RGB", ".PNG": "RGBA", ".png": "P"}
FILES = {
    "train": ("a.b.jpg", "left/shot 1.png", "right/shot 2.png", "ünï.tiff", "bare.jpg"),
    "val": ("turned.jpg", "Big.PNG"),
}


@dataclass(frozen=True)
class Drawn:
    """An image and its objects: (class, mask); none where a box is all that is annotated."""

    name: str
    split: str
    objects: tuple[tuple[str, np.ndarray], ...]

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).with_suffix("").as_posix()

    @property
    def size(self) -> tuple[int, int]:
        return (WIDTH, HEIGHT) if self.name == "turned.jpg" else (HEIGHT, WIDTH)


def draw(name: str, split: str, number: int) -> Drawn:
    """Objects that neither overlap nor touch: one with a hole, one of two parts, one of a single pixel."""
    if name == "bare.jpg":
        return Drawn(name, split, ())
    ring, parts, dot = np.zeros((3, *((WIDTH, HEIGHT) if name == "turned.jpg" else (HEIGHT, WIDTH))), bool)
    ring[2:12, 3 : 15 + number] = True
    ring[5:8, 6:9] = False
    parts[16:20, 2:8] = parts[22:30, 20 : 24 + number] = True
    dot[33, number] = True
    return Drawn(name, split, ((CLASSES[0], ring), (CLASSES[1], parts), (CLASSES[0], dot)))


DRAWN = [draw(name, split, number) for split, names in FILES.items() for number, name in enumerate(names)]


def save_image(drawn: Drawn, path: Path) -> None:
    """An image of one colour that no other has, in one of many modes; ``turned.jpg`` is stored on its side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shade = 20 + 30 * DRAWN.index(drawn)
    image = Image.new("RGB", (WIDTH, HEIGHT), (shade, 255 - shade, shade // 2)).convert(MODES[path.suffix])
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, **({"exif": exif} if drawn.name == "turned.jpg" else {}))


def save_mask(values_HW: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values_HW.astype(np.uint8)).convert("L")
    image.putpalette(PALETTE)
    image.save(path)


def paint(drawn: Drawn, values: list[int]) -> np.ndarray:
    painted_HW = np.zeros(drawn.size, int)
    for value, (_, mask) in zip(values, drawn.objects, strict=True):
        painted_HW[mask] = value
    return painted_HW


def list_classes(drawn: Drawn) -> list[int]:
    return [1 + CLASSES.index(name) for name, _ in drawn.objects]


def encode(mask_HW: np.ndarray) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask_HW, np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def build_coco(root: Path) -> None:
    (root / "annotations").mkdir(parents=True)
    for split in FILES:
        images, annotations = [], []
        for drawn in (one for one in DRAWN if one.split == split):
            save_image(drawn, root / "images" / split / drawn.name)
            height, width = drawn.size
            images.append({"id": len(images), "file_name": drawn.name, "height": height, "width": width})
            objects = [
                {"segmentation": encode(mask), "category_id": CLASSES.index(name)} for name, mask in drawn.objects
            ]
            x0, y0, x1, y1 = BOX
            for one in objects or [{"segmentation": [], "category_id": 0, "bbox": [x0, y0, x1 - x0, y1 - y0]}]:
                annotations.append({"id": len(annotations), "image_id": len(images) - 1, "iscrowd": 0, **one})
        categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))


def build_voc(root: Path) -> None:
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    lines = [
        f"{name}:{','.join(map(str, PALETTE[3 * n : 3 * n + 3]))}::" for n, name in enumerate(("background", *CLASSES))
    ]
    (root / "labelmap.txt").write_text("\n".join(lines))
    for drawn in DRAWN:
        save_image(drawn, root / "JPEGImages" / drawn.name)
        if drawn.objects:
            save_mask(paint(drawn, [1, 2, 3]), root / f"SegmentationObject/{drawn.stem}.png")
            save_mask(paint(drawn, list_classes(drawn)), root / f"SegmentationClass/{drawn.stem}.png")
        else:
            xml = ET.Element("annotation")
            element = ET.SubElement(xml, "object")
            ET.SubElement(element, "name").text = CLASSES[0]
            box = ET.SubElement(element, "bndbox")
            for key, value in zip(("xmin", "ymin", "xmax", "ymax"), (BOX[0] + 1, BOX[1] + 1, *BOX[2:]), strict=True):
                ET.SubElement(box, key).text = str(value)
            (root / "Annotations").mkdir()
            ET.ElementTree(xml).write(root / f"Annotations/{drawn.stem}.xml")
    for split in FILES:
        names = [one.stem for one in DRAWN if one.split == split]
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names))


def build_datumaro(root: Path) -> None:
    (root / "annotations").mkdir(parents=True)
    labels = [{"name": name, "parent": "", "attributes": []} for name in CLASSES]
    for split in FILES:
        items = []
        for drawn in (one for one in DRAWN if one.split == split):
            save_image(drawn, root / "images" / split / drawn.name)
            objects = [
                {"type": "mask", "rle": encode(mask), "label_id": CLASSES.index(name)} for name, mask in drawn.objects
            ]
            x0, y0, x1, y1 = BOX
            objects = objects or [{"type": "bbox", "bbox": [x0, y0, x1 - x0, y1 - y0], "label_id": 0}]
            annotations = [
                {"id": n, "group": n, "attributes": {}, "z_order": 0, **one} for n, one in enumerate(objects, 1)
            ]
            image = {"path": drawn.name, "size": list(drawn.size)}
            items.append({"id": drawn.stem, "annotations": annotations, "image": image})
        content = {"info": {}, "categories": {"label": {"labels": labels, "attributes": []}}, "items": items}
        (root / f"annotations/{split}.json").write_text(json.dumps(content))


def build_semantic(root: Path) -> None:
    for drawn in DRAWN:
        if drawn.objects:
            save_image(drawn, root / drawn.split / "images" / drawn.name)
            save_mask(paint(drawn, list_classes(drawn)), root / drawn.split / f"masks/{drawn.stem}.png")
    meta = {"label_map": {str(number): name for number, name in enumerate(("background", *CLASSES))}}
    for split in FILES:
        (root / split / "dataset_meta.json").write_text(json.dumps(meta))


BUILDERS = dict(zip(FORMATS, (build_coco, build_voc, build_datumaro, build_semantic), strict=True))


@pytest.fixture(scope="module", params=FORMATS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A format, and the drawn images in it."""
    root = tmp_path_factory.mktemp(request.param) / "my data"
    BUILDERS[request.param](root)
    return request.param, root


def read_masks(dataset: AnnotatedDataset) -> dict[tuple[str, str], list[tuple[str, np.ndarray]]]:
    """Split and file name -> class and mask of each object; the masks of one class together, as class masks have them."""
    together = dataset.format == "common_semantic_segmentation"
    found = {}
    for split in FILES:
        for image in dataset.splits[split].images:
            named = [
                (dataset.categories[label], decode_rle(mask))
                for label, mask in zip(image.labels_N, image.masks, strict=True)
            ]
            found[split, name_file(image)] = join_classes(named) if together else named
    return found


def join_classes(objects: list[tuple[str, np.ndarray]]) -> list[tuple[str, np.ndarray]]:
    names = sorted({name for name, _ in objects})
    return [(name, np.any([mask for own, mask in objects if own == name], axis=0)) for name in names]


def fill_box() -> np.ndarray:
    filled_HW = np.zeros((HEIGHT, WIDTH), bool)
    filled_HW[BOX[1] : BOX[3], BOX[0] : BOX[2]] = True
    return filled_HW


def freeze(objects: list[tuple[str, np.ndarray]]) -> list[tuple[str, tuple[int, ...], bytes]]:
    return sorted((name, mask.shape, np.packbits(mask).tobytes()) for name, mask in objects)


def convert(source_format: str, root: Path, target: str, out: Path) -> AnnotatedDataset:
    """Do what ``stage=predict prompts=dataset`` does, with a model that fills boxes; return what is read of the result.

    Class masks have no boxes, so all of their objects are predicted anew, by a model that knows the masks.
    """
    anew = source_format == "common_semantic_segmentation"
    dataset = load_dataset(DataConfig(format=source_format, root=root, instances="classes"), keep_boxes=True)
    plan = plan_dataset(dataset, keep_annotated=not anew)
    collector = LabelCollector(compose_config([f"output.format={target}"]).output, out, plan)
    images = [image for split in FILES for image in dataset.splits[split].images]
    for task, image in zip(plan.tasks, images, strict=True):
        bare_N = np.ones(len(image), bool) if image.box_only_N is None else image.box_only_N
        masks = [mask for mask, is_bare in zip(image.masks, bare_N, strict=True) if is_bare]
        labels = task.prompts.labels if task.prompts else ()
        found = [
            FoundMask(mask, 0.9, prompt, label) for prompt, (mask, label) in enumerate(zip(masks, labels, strict=False))
        ]
        collector.add(task, (image.height, image.width), found)
    collector.write()
    return load_dataset(DataConfig(format="auto", root=out, instances="classes", strict=True))


@pytest.mark.parametrize("target", FORMATS)
def test_label_collector__a_data_set_of_any_format_becomes_one_of_any_other(
    source: tuple[str, Path], target: str, tmp_path: Path
) -> None:
    name, root = source

    dataset = convert(name, root, target, tmp_path / "new data")

    assert (dataset.format, dataset.categories) == (target, CLASSES)
    together = "common_semantic_segmentation" in {name, target}
    expected = {
        (one.split, one.name): join_classes(list(one.objects)) if together else list(one.objects)
        for one in (DRAWN if name != "common_semantic_segmentation" else [one for one in DRAWN if one.objects])
    }
    found = read_masks(dataset)
    assert found.keys() == expected.keys()
    for key, objects in expected.items():
        assert freeze(found[key]) == freeze(objects or [(CLASSES[0], fill_box())]), key
    before = {"voc": "JPEGImages", "common_semantic_segmentation": "{split}/images"}.get(name, "images/{split}")
    for split in FILES:
        for image in dataset.splits[split].images:
            original = root / before.format(split=split) / name_file(image)
            assert image.path.read_bytes() == original.read_bytes()
            assert image.exif_transpose == (original.name == "turned.jpg")


@pytest.mark.slow
@pytest.mark.parametrize("target", FORMATS)
def test_predict__a_data_set_made_of_pascal_voc_trains(target: str, tmp_path: Path, run_debug: RunDebug) -> None:
    build_voc(tmp_path / "voc")
    out = tmp_path / "labels"
    run_debug(
        *(
            tmp_path,
            "experiment=debug",
            "stage=predict",
            "checkpoint=null",
            "data=voc",
            f"data.root='{tmp_path / 'voc'}'",
        ),
        *("prompts=dataset", f"output.format={target}", f"output.folder='{out}'", "tracking=none"),
    )

    trained = run_debug(
        *(tmp_path, "experiment=debug", "stage=train", "data=auto", f"data.root='{out}'", "stage.test=false"),
        *("callbacks.progress=null", "trainer.max_epochs=1", "tracking=none"),
    )

    assert trained.folder is not None
    record = json.loads((trained.folder / "run.json").read_text())
    assert {name: split["images"] for name, split in record["splits"].items()} == {"train": 5, "val": 2}
    assert not any(split["skipped"] for split in record["splits"].values())
