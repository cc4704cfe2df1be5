"""Data sets that are written are read back with the same masks: by vpexp, and by pycocotools and Datumaro alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from vpexp.config.schema import DataConfig, OutputConfig
from vpexp.data.annotations import AnnotatedImage
from vpexp.data.dataset import load_dataset
from vpexp.data.images import read_image
from vpexp.data.masks import decode_rle, encode_mask
from vpexp.data.writers.base import LabelledImage, LabelledObject, NameGiver, check_target, name_file, write_dataset
from vpexp.errors import ConfigError, DataError
from vpexp.registry import FORMATS
from vpexp.stages.shared.predicted_dataset import cut_overlaps

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
    images = cut(images) if format_ in ("voc", "common_semantic_segmentation") else images
    write_dataset(tmp_path / "out", OutputConfig(format=format_), images, CATEGORIES)

    dataset = load_dataset(DataConfig(format="auto", root=tmp_path / "out", strict=True))

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
    notes = write_dataset(tmp_path / "out", OutputConfig(format="common_semantic_segmentation"), images, CATEGORIES)
    assert any(note.endswith("objects have several parts: class masks make one object of each") for note in notes)

    dataset = load_dataset(DataConfig(format="auto", root=tmp_path / "out", instances=instances))

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
    write_dataset(tmp_path / "out", OutputConfig(format="coco", masks=shape), images, CATEGORIES)

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

    images = cut(images) if format_ in ("voc", "common_semantic_segmentation") else images
    write_dataset(tmp_path / "out", OutputConfig(format=format_), images, CATEGORIES)

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

    write_dataset(tmp_path / "out", OutputConfig(format="common_semantic_segmentation"), cut(images), CATEGORIES)

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
    write_dataset(tmp_path / "out", OutputConfig(format="voc"), cut(images), CATEGORIES)
    text = (tmp_path / "out/Annotations/photo.0.xml").read_text()
    assert text.count("<object>") == 4
    assert text.count("<name>score</name>") == 3


def test_write_dataset__links_instead_of_copies(images, tmp_path):
    write_dataset(tmp_path / "out", OutputConfig(format="coco", images="symlink"), images, CATEGORIES)
    link = tmp_path / "out/images/val/photo.2.png"
    assert link.is_symlink()
    assert link.resolve() == images[2].path.resolve()
    dataset = load_dataset(DataConfig(format="auto", root=tmp_path / "out", allow_outside=True, strict=True))
    assert {name: len(split.images) for name, split in dataset.splits.items()} == {"train": 3, "val": 1, "test": 1}


@pytest.mark.parametrize("format_", FORMATS)
def test_write_dataset__nothing_is_left_of_one_that_fails(images, tmp_path, format_):
    images = cut(images)
    images[3].path.unlink()
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory"):
        write_dataset(tmp_path / "out" / "deep", OutputConfig(format=format_), images, CATEGORIES)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("format_", FORMATS)
def test_write_dataset__more_objects_and_classes_than_a_palette_has(images, tmp_path, format_):
    """Numbers above 255 make masks of 16 bits, and 255 stays void: with exactly 255 objects too."""
    classes = [f"class {number}" for number in range(300)]
    crowds = []
    for place, count in enumerate((300, 255, 254, 3)):
        masks = np.zeros((count, HEIGHT, WIDTH), bool)
        masks[range(count), 2 * (np.arange(count) // 40), 2 * (np.arange(count) % 40)] = True
        objects = tuple(LabelledObject(encode_mask(mask), classes[n - 3]) for n, mask in enumerate(masks))
        path = images[place].path
        crowds.append(LabelledImage(path.name, path, HEIGHT, WIDTH, "train", objects))

    write_dataset(tmp_path / "out", OutputConfig(format=format_), crowds, classes)

    dataset = load_dataset(DataConfig(format="auto", root=tmp_path / "out", strict=True), splits=("train",))
    assert dataset.categories == tuple(classes)
    for read, written in zip(dataset.splits["train"].images, crowds, strict=True):
        labels = [dataset.categories[label] for label in read.labels_N]
        assert describe([decode_rle(mask) for mask in read.masks], labels) == expect(written)


@pytest.mark.parametrize("format_", FORMATS)
def test_write_dataset__classes_of_any_name(images, tmp_path, format_):
    """Unused names that mean no object are left out, except by COCO, whose names are free."""
    names = (
        *("0", "1", "a:b", " lead", "#hash", "a,b", "x/y", "q\"'", "\u00fc\u2028", "\t", "", "<&>", "[/x]", "\ud800"),
        *("\x01", "two words", "\u0663"),
    )
    refused = [name for name in names if format_ == "datumaro" and name in {"", "\ud800"}]
    odd = [name for name in names if name not in refused]
    masks = np.zeros((len(odd), HEIGHT, WIDTH), bool)
    masks[range(len(odd)), 4, 2 * np.arange(len(odd))] = True
    objects = tuple(LabelledObject(encode_mask(mask), name) for mask, name in zip(masks, odd, strict=True))
    image = LabelledImage("a.png", images[0].path, HEIGHT, WIDTH, "train", objects)

    for name in refused:
        with pytest.raises(DataError, match="cannot be written in format datumaro: call it otherwise, or use coco"):
            check_target(tmp_path / "out", format_, [name])
    write_dataset(tmp_path / "out", OutputConfig(format=format_), [image], ("background", *names, "unused"))

    dataset = load_dataset(DataConfig(format="auto", root=tmp_path / "out"), splits=("train",))
    assert dataset.categories == (*(["background"] if format_ == "coco" else []), *odd, "unused")
    (read,) = dataset.splits["train"].images
    assert [dataset.categories[label] for label in read.labels_N] == list(odd)
    assert describe([decode_rle(mask) for mask in read.masks], odd) == expect(image)


ODD_NAMES = (
    *(
        "a.b.jpg",
        "stem.png",
        "stem.jpg",
        "STEM.bmp",
        "sub/x.png",
        "other/x.png",
        "ünï.png",
        "two words.JPG",
        " lead.png",
    ),
    *("trail .png", "t.tiff", "#hash.png", f"{'x' * 250}.png", "'q\".png", "images/i.png", "masks/m.png", "1 -1.png"),
    *(
        "JPEGImages/j.png",
        "Annotations/k.png",
        "train/t.png",
        "e\u0301.png",
        "c%20d.png",
        "back\\slash.png",
        "c:drive.png",
        "line\nend.png",
    ),
)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("splits", [("train",), ("train", "val")])
def test_write_dataset__images_keep_their_names(tmp_path, format_, splits):
    """Pixels, which no other image has, say which file came back under a name."""
    names, images, colors = NameGiver(format_), [], {}
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = True
    for number, (split, name) in enumerate((split, name) for split in splits for name in ODD_NAMES):
        path = tmp_path / "source" / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 5 * number).save(path, "PNG")
        chosen = names.choose(name, split)
        colors[split, chosen] = 5 * number
        images.append(LabelledImage(chosen, path, 4, 4, split, (LabelledObject(encode_mask(mask), "leaf"),)))

    write_dataset(tmp_path / "out", OutputConfig(format=format_), images, ("leaf",))

    dataset = load_dataset(DataConfig(format="auto", root=tmp_path / "out", strict=True), splits=splits)
    read = {
        (split, name_file(image)): int(read_image(image.path)[0, 0, 0])
        for split in splits
        for image in dataset.splits[split].images
    }
    assert read == colors
    first = {"coco": 2, "datumaro": 5}.get(format_, 7)
    assert len(names.renamed) == first + (len(splits) - 1) * (len(ODD_NAMES) if format_ == "voc" else first)


def test_check_target__refuses_what_would_be_lost(tmp_path):
    (tmp_path / "empty").mkdir()
    check_target(tmp_path / "empty", "coco", CATEGORIES)
    check_target(tmp_path / "new", "voc", CATEGORIES)
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path, tmp_path / "file"):
        with pytest.raises(ConfigError, match="is not empty: name a new folder"):
            check_target(place, "coco", CATEGORIES)
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for place in (tmp_path / "link", Path("/dev/shm")):
        with pytest.raises(ConfigError, match=r"another cannot take this folder's place|is not empty"):
            check_target(place, "coco", CATEGORIES)
    with pytest.raises(DataError, match="label 'Background' means no object in format voc"):
        check_target(tmp_path / "new", "voc", ("leaf", "Background"))
    check_target(tmp_path / "new", "coco", ("leaf", "Background"))


@pytest.mark.parametrize(
    ("format_", "expected"),
    [
        ("coco", ["a/b.jpg", "a/b.png", "a/B_2.png", "a/b.jpg"]),
        ("datumaro", ["a/b.jpg", "a/b_2.png", "a/B_3.png", "a/b.jpg"]),
        ("voc", ["a/b.jpg", "a/b_2.png", "a/B_3.png", "a/b_4.jpg"]),
    ],
)
def test_name_giver__a_name_stays_where_the_format_tells_it_apart(format_, expected):
    names = NameGiver(format_)
    asked = [("a/b.jpg", "train"), ("a/b.png", "train"), ("a/B.png", "train"), ("a/b.jpg", "val")]
    assert [names.choose(*one) for one in asked] == expected
    assert names.renamed == [(one[0], new) for one, new in zip(asked, expected, strict=True) if one[0] != new]


@pytest.mark.parametrize("name", ["../../x.png", "/etc/x.png", ".hidden/x.png", "__MACOSX/x.png", "C:\\..\\x.png"])
def test_name_giver__no_name_leads_out_of_the_folder_or_is_hidden(name):
    parts = NameGiver("coco").choose(name, "train").split("/")
    assert parts[-1] == "x.png"
    assert not any(part.startswith((".", "__MACOSX")) or not part for part in parts)


@pytest.mark.parametrize(
    ("image_id", "path", "expected"),
    [
        ("a.b", "/d/JPEGImages/a.b.jpg", "a.b.jpg"),
        ("left/a", "/d/JPEGImages/left/a.png", "left/a.png"),
        ("a.jpg#2", "/d/images/a.jpg", "a.jpg"),
        ("https://host/up/a%20b.jpg?sig=1", "/d/images/a b.jpg", "a b.jpg"),
        ("/d/images/a.jpg", "/d/images/a.jpg", "a.jpg"),
        ("..\\left\\a.jpg", "/d/images/left/a.jpg", "left/a.jpg"),
        ("Ö/a.png", "/d/images/O\u0308/A.PNG", "O\u0308/A.PNG"),
    ],
)
def test_name_file__as_the_file_is_called_below_the_folders_that_the_data_set_names(image_id, path, expected):
    image = AnnotatedImage(image_id, Path(path), 1, 1, (), np.zeros((0, 4), np.float32), np.zeros(0, np.int64), ())
    assert name_file(image) == expected


def test_write_dataset__json_has_one_object_a_line(images, tmp_path):
    write_dataset(tmp_path / "out", OutputConfig(format="coco"), images, CATEGORIES)
    lines = (tmp_path / "out/annotations/instances_val.json").read_text().splitlines()
    assert json.loads(lines[1].rstrip(","))["file_name"] == "photo.2.png"
