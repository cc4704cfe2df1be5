"""Data sets that are written are read back with the same masks: by vpexp, and by pycocotools and Datumaro alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from vpexp.data.load import load_dataset
from vpexp.data.masks import decode_rle, encode_mask
from vpexp.data.writers.images import NameGiver
from vpexp.data.writers.labelled import LabelledImage, LabelledObject
from vpexp.data.writers.overlap import cut_overlaps
from vpexp.data.writers.write import ONE_OBJECT_A_PIXEL, WRITERS, check_target, write_dataset
from vpexp.errors import ConfigError, DataError

CATEGORIES = ("grape bunch", "leaf", "unused")
HEIGHT, WIDTH = 60, 80


def draw_masks(rng: np.random.Generator) -> list[np.ndarray]:
    """A rectangle with a hole, two parts, and noise with pixels that touch at corners."""
    masks = np.zeros((4, HEIGHT, WIDTH), bool)
    left, top = rng.integers(0, 30, 2)
    masks[0, top : top + 20, left : left + 25] = True
    masks[0, top + 5 : top + 9, left + 5 : left + 9] = False
    masks[1, 0:6, 70:80] = masks[1, 50:60, 60:64] = True
    masks[2, 30:50, 40:70] = rng.random((20, 30)) < 0.5
    masks[3, top + 3 : top + 22, left + 10 : left + 40] = True
    return list(masks)


@pytest.fixture
def images(tmp_path: Path) -> list[LabelledImage]:
    rng = np.random.default_rng(7)
    made = []
    for place in range(5):
        path = tmp_path / f"photo.{place}{'.jpg' if place % 2 else '.png'}"
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)
        objects = tuple(
            LabelledObject(encode_mask(mask), CATEGORIES[number % 2], None if number == 2 else 0.5 + number / 10)
            for number, mask in enumerate(draw_masks(rng))
        )
        split = ("train", "train", "val", "train", "test")[place]
        made.append(LabelledImage(path.name, path, HEIGHT, WIDTH, split, objects))
    return made


def cut(images: list[LabelledImage]) -> list[LabelledImage]:
    return [
        LabelledImage(one.name, one.path, one.height, one.width, one.split, tuple(cut_overlaps(one.objects)))
        for one in images
    ]


def describe(masks, labels) -> list[tuple[str, bytes]]:
    return sorted((label, np.packbits(mask).tobytes()) for mask, label in zip(masks, labels, strict=True))


def expect(image: LabelledImage) -> list[tuple[str, bytes]]:
    return describe([decode_rle(one.mask) for one in image.objects], [one.label for one in image.objects])


@pytest.mark.parametrize("format_", ["coco", "voc", "datumaro"])
def test_write_dataset__is_read_back_with_the_same_masks(images, tmp_path, format_):
    images = cut(images) if format_ in ONE_OBJECT_A_PIXEL else images
    write_dataset(tmp_path / "out", format_, images, CATEGORIES)

    dataset = load_dataset(format="auto", root=tmp_path / "out", strict=True)

    assert dataset.format == format_
    assert dataset.categories == CATEGORIES
    assert {name: len(split.images) for name, split in dataset.splits.items()} == {"train": 3, "val": 1, "test": 1}
    by_stem = {Path(image.name).stem: image for image in images}
    for split in dataset.splits.values():
        assert split.skipped == {}
        for read in split.images:
            written = by_stem.pop(read.path.stem)
            assert read.path.read_bytes() == written.path.read_bytes()
            labels = [dataset.categories[label] for label in read.labels_N]
            assert describe([decode_rle(mask) for mask in read.masks], labels) == expect(written)
    assert not by_stem


@pytest.mark.parametrize("instances", ["components", "classes"])
def test_write_dataset__semantic_masks_come_back_by_class(images, tmp_path, instances):
    images = cut(images)
    write_dataset(tmp_path / "out", "common_semantic_segmentation", images, CATEGORIES)

    dataset = load_dataset(format="auto", root=tmp_path / "out", instances=instances)

    assert dataset.format == "common_semantic_segmentation"
    assert dataset.categories == CATEGORIES
    by_stem = {Path(image.name).stem: image for image in images}
    for split in dataset.splits.values():
        for read in split.images:
            written = by_stem.pop(read.path.stem)
            for label, name in enumerate(CATEGORIES):
                ours = [decode_rle(one.mask) for one in written.objects if one.label == name]
                theirs = [decode_rle(mask) for mask, own in zip(read.masks, read.labels_N, strict=True) if own == label]
                empty = np.zeros((1, HEIGHT, WIDTH), bool)
                np.testing.assert_array_equal(np.any([*ours, *empty], 0), np.any([*theirs, *empty], 0))
    assert not by_stem
    rows = (tmp_path / "out/val/scores.csv").read_text().splitlines()
    assert rows[0] == "image,label,x0,y0,x1,y1,score"
    assert {row.rpartition(",")[2] for row in rows[1:]} <= {"", "0.5", "0.6", "0.8"}


@pytest.mark.parametrize("shape", ["polygon", "rle"])
def test_write_dataset__pycocotools_alone_reads_coco(images, tmp_path, shape):
    write_dataset(tmp_path / "out", "coco", images, CATEGORIES, shape=shape)

    coco = COCO(tmp_path / "out/annotations/instances_train.json")

    train = {image.name: image for image in images if image.split == "train"}
    kinds = set()
    for entry in coco.loadImgs(coco.getImgIds()):
        annotations = coco.loadAnns(coco.getAnnIds(entry["id"]))
        names = [coco.loadCats(one["category_id"])[0]["name"] for one in annotations]
        masks = [coco.annToMask(one).astype(bool) for one in annotations]
        assert describe(masks, names) == expect(train.pop(entry["file_name"]))
        assert [one["area"] for one in annotations] == [mask.sum() for mask in masks]
        assert [one.get("score") for one in annotations] == [0.5, 0.6, None, 0.8]
        kinds |= {type(one["segmentation"]) for one in annotations}
    assert not train
    assert kinds == ({dict, list} if shape == "polygon" else {dict})


@pytest.mark.parametrize(("format_", "theirs"), [("coco", "coco_instances"), ("voc", "voc"), ("datumaro", "datumaro")])
def test_write_dataset__datumaro_alone_reads_it(images, tmp_path, format_, theirs):
    from datumaro.components.dataset import Dataset

    images = cut(images) if format_ in ONE_OBJECT_A_PIXEL else images
    write_dataset(tmp_path / "out", format_, images, CATEGORIES)

    options = {"merge_instance_polygons": True} if format_ == "coco" else {}
    dataset = Dataset.import_from(str(tmp_path / "out"), theirs, **options)

    names = [label.name for label in dataset.categories()[next(iter(dataset.categories()))]]
    by_stem = {Path(image.name).stem: image for image in images}
    for item in dataset:
        written = by_stem.pop(item.id)
        assert item.subset == written.split
        assert item.media.data.shape[:2] == (HEIGHT, WIDTH)
        masks = [one for one in item.annotations if one.type.name == "mask"]
        assert describe([one.image.astype(bool) for one in masks], [names[one.label] for one in masks]) == expect(
            written
        )
        if format_ == "datumaro":
            assert [one.attributes.get("score") for one in masks] == [0.5, 0.6, None, 0.8]
    assert not by_stem


def test_write_dataset__datumaro_alone_reads_semantic_masks(images, tmp_path):
    from datumaro.components.dataset import Dataset

    write_dataset(tmp_path / "out", "common_semantic_segmentation", cut(images), CATEGORIES)

    dataset = Dataset.import_from(str(tmp_path / "out"), "common_semantic_segmentation_with_subset_dirs")

    labels = dataset.categories()[next(iter(dataset.categories()))]
    assert [label.name for label in labels] == ["background", *CATEGORIES]
    assert sorted(item.subset for item in dataset) == ["test", "train", "train", "train", "val"]
    item = next(item for item in dataset if item.id == "photo.2")
    written = next(image for image in cut(images) if image.name == "photo.2.png")
    grapes = [decode_rle(one.mask) for one in written.objects if one.label == CATEGORIES[0]]
    (theirs,) = [one.image for one in item.annotations if labels[one.label].name == CATEGORIES[0]]
    np.testing.assert_array_equal(theirs.astype(bool), np.any(grapes, 0))


def test_write_dataset__voc_keeps_scores_in_its_xml(images, tmp_path):
    write_dataset(tmp_path / "out", "voc", cut(images), CATEGORIES)
    text = (tmp_path / "out/Annotations/photo.0.xml").read_text()
    assert text.count("<object>") == 4
    assert text.count("<name>score</name>") == 3


def test_write_dataset__links_instead_of_copies(images, tmp_path):
    write_dataset(tmp_path / "out", "coco", images, CATEGORIES, placing="symlink")
    link = tmp_path / "out/images/val/photo.2.png"
    assert link.is_symlink()
    assert link.resolve() == images[2].path.resolve()


@pytest.mark.parametrize("format_", WRITERS)
def test_write_dataset__nothing_is_left_of_one_that_fails(images, tmp_path, format_):
    images = cut(images)
    images[3].path.unlink()
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory"):
        write_dataset(tmp_path / "out" / "deep", format_, images, CATEGORIES)
    assert list((tmp_path / "out").iterdir()) == []


def test_write_dataset__more_objects_than_a_palette_has(images, tmp_path):
    dot = np.zeros((HEIGHT, WIDTH), bool)
    dot[0, 0] = True
    many = tuple(LabelledObject(encode_mask(dot), "leaf", 0.5) for _ in range(255))
    crowded = LabelledImage("a.png", images[0].path, HEIGHT, WIDTH, "train", many)
    with pytest.raises(DataError, match=r"photo\.0\.png: 255 do not fit into masks of 8 bits, which hold 254"):
        write_dataset(tmp_path / "out", "voc", [crowded], CATEGORIES)


def test_check_target__refuses_what_would_be_lost(tmp_path):
    (tmp_path / "empty").mkdir()
    check_target(tmp_path / "empty", "coco", CATEGORIES)
    check_target(tmp_path / "new", "voc", CATEGORIES)
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path, tmp_path / "file"):
        with pytest.raises(ConfigError, match="is not empty: name a new folder"):
            check_target(place, "coco", CATEGORIES)
    with pytest.raises(DataError, match="label 'Background' means no object in format voc"):
        check_target(tmp_path / "new", "voc", ("leaf", "Background"))
    check_target(tmp_path / "new", "coco", ("leaf", "Background"))


def test_names__are_unique_by_their_stem():
    names = NameGiver()
    given = [names.choose(name) for name in ("a/b.jpg", "a_b.png", "A_B.png", "c.d.jpg", "a_b_2.jpg")]
    assert given == ["a_b.jpg", "a_b_2.png", "A_B_3.png", "c.d.jpg", "a_b_2_2.jpg"]


def test_write_dataset__json_has_one_object_a_line(images, tmp_path):
    write_dataset(tmp_path / "out", "coco", images, CATEGORIES)
    lines = (tmp_path / "out/annotations/instances_val.json").read_text().splitlines()
    assert json.loads(lines[1].rstrip(","))["file_name"] == "photo.2.png"
