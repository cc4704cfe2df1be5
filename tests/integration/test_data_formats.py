"""The readers on real data: the same images in four formats, and odd samples of each. Skipped where the data is absent."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from scipy import ndimage

from vpexp.config.schema import DataConfig
from vpexp.data.dataset import load_dataset
from vpexp.data.images import read_image
from vpexp.data.masks import compute_area, decode_rle
from vpexp.errors import DataError

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
NUCLEI = DATA / "nuclei"
SAMPLES = DATA / "format_samples"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no test data in {DATA}")

FORMATS = ("coco", "voc", "datumaro", "common_semantic_segmentation")


@pytest.fixture(scope="module")
def nuclei():
    return {name: load_dataset(DataConfig(format=name, root=NUCLEI / name)) for name in FORMATS}


@pytest.fixture(scope="module")
def reference():
    """Split -> image stem -> masks, by pycocotools alone."""
    splits = {}
    for split in ("train", "val"):
        coco = COCO(NUCLEI / f"coco/annotations/instances_{split}.json")
        stems = {image["id"]: Path(image["file_name"]).stem for image in coco.dataset["images"]}
        masks = {stem: [] for stem in stems.values()}
        for annotation in coco.dataset["annotations"]:
            masks[stems[annotation["image_id"]]].append(coco.annToMask(annotation).astype(bool))
        splits[split] = masks
    return splits


def group_by_stem(dataset, split):
    return {Path(image.image_id).stem: image for image in dataset.splits[split].images}


@pytest.mark.parametrize("name", ["coco", "datumaro"])
def test_nuclei__every_mask_equals_pycocotools(nuclei, reference, name):
    count = 0
    for split, expected in reference.items():
        images = group_by_stem(nuclei[name], split)
        assert images.keys() == expected.keys()
        for stem, masks in expected.items():
            ours = Counter(mask["counts"] for mask in images[stem].masks)
            theirs = Counter(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"] for mask in masks)
            assert ours == theirs, f"{split} {stem}"
            count += len(masks)
    assert count == 1554


def test_nuclei__voc_equals_pycocotools_but_for_two_pixels_of_overlap(nuclei, reference):
    count = lost = 0
    for split, expected in reference.items():
        images = group_by_stem(nuclei["voc"], split)
        assert images.keys() == expected.keys()
        for stem, masks in expected.items():
            remaining = [decode_rle(mask) for mask in images[stem].masks]
            for mask_HW in masks:
                overlaps = [np.count_nonzero(mask_HW & other) for other in remaining]
                best = remaining.pop(int(np.argmax(overlaps)))
                lost += np.count_nonzero(mask_HW != best)
                count += 1
            assert not remaining
    assert (count, lost) == (1554, 2)


def test_nuclei__semantic_objects_are_the_connected_parts_of_the_union(nuclei, reference):
    for split, expected in reference.items():
        images = group_by_stem(nuclei["common_semantic_segmentation"], split)
        for stem, masks in expected.items():
            parts_HW, count = ndimage.label(np.any(masks, axis=0), structure=np.ones((3, 3)))
            ours = [decode_rle(mask) for mask in images[stem].masks]
            assert len(ours) == count, f"{split} {stem}"
            for part_HW in ours:
                (number,) = np.unique(parts_HW[part_HW])
                assert np.count_nonzero(part_HW) == np.count_nonzero(parts_HW == number)


def test_nuclei__semantic_whole_classes(reference):
    dataset = load_dataset(
        DataConfig(format="common_semantic_segmentation", root=NUCLEI / FORMATS[3], instances="classes")
    )
    for split, expected in reference.items():
        for stem, image in group_by_stem(dataset, split).items():
            (mask,) = image.masks
            np.testing.assert_array_equal(decode_rle(mask), np.any(expected[stem], axis=0))


@pytest.mark.parametrize("name", FORMATS)
def test_nuclei__splits_categories_boxes_and_pixels(nuclei, name):
    dataset = nuclei[name]
    assert dataset.categories == ("nucleus",)
    assert {split: len(part.images) for split, part in dataset.splits.items()} == {"train": 38, "val": 17, "test": 17}
    assert all(part.skipped == {} for part in dataset.splits.values())
    assert dataset.notes == ("no test split: testing on val",)
    for image in dataset.splits["val"].images[:5]:
        assert read_image(image.path, image.exif_transpose).shape == (image.height, image.width, 3)
        for mask, box in zip(image.masks, image.boxes_N4, strict=True):
            rows, columns = np.nonzero(decode_rle(mask))
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert compute_area(mask) == rows.size


@pytest.mark.parametrize("name", FORMATS)
def test_nuclei__auto_finds_the_format(name):
    dataset = load_dataset(DataConfig(format="auto", root=NUCLEI / name), splits=("val",))
    assert dataset.format == name
    assert dataset.notes[0].startswith("format: ")


def test_nuclei__as_datumaro_itself_reads_it(nuclei):
    """Datumaro's own COCO import gives the same objects, once its float32 points are rounded back."""
    import datumaro

    from vpexp.data.masks import polygons_to_rle

    dataset = datumaro.Dataset.import_from(str(NUCLEI / "coco"), "coco_instances")
    for item in dataset.get_subset("train"):
        image = group_by_stem(nuclei["coco"], "train")[item.id]
        parts = {}
        for annotation in item.annotations:
            if annotation.type.name == "polygon":
                parts.setdefault(annotation.group, []).append(annotation.points)
        theirs = Counter(polygons_to_rle(p, image.height, image.width)["counts"] for p in parts.values())
        assert theirs == Counter(mask["counts"] for mask in image.masks)


def test_nuclei__broken_files_among_them(tmp_path, reference):
    root = tmp_path / "coco"
    shutil.copytree(NUCLEI / "coco", root)
    names = sorted(path.name for path in (root / "images/train").iterdir())
    (root / "images/train" / names[0]).unlink()
    cut = root / "images/train" / names[1]
    cut.write_bytes(cut.read_bytes()[:-1000])
    path = root / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    by_name = {image["file_name"]: image for image in content["images"]}
    by_name[names[2]]["width"] += 1
    lost = {by_name[name]["id"] for name in names[:3]}
    kept = [annotation for annotation in content["annotations"] if annotation["image_id"] not in lost]
    kept[0]["segmentation"] = [[1, 2, 3, 4]]
    kept[1]["category_id"] = 77
    kept[2]["iscrowd"] = 1
    kept[3]["segmentation"] = []
    del kept[4]["iscrowd"], kept[4]["bbox"]
    path.write_text(json.dumps(content))
    train = load_dataset(DataConfig(format="coco", root=root)).splits["train"]
    assert len(train.images) == 35
    assert train.object_count == len(kept) - 4
    assert train.skipped == {
        "image file is missing": 1,
        "image file is truncated or damaged": 1,
        "image size differs from annotation": 1,
        "polygon with fewer than 3 points": 1,
        "undeclared category": 1,
        "crowd region": 1,
        "box only, no mask": 1,
    }


@pytest.mark.parametrize(
    ("folder", "name", "objects"),
    [
        ("coco_car_tree_bug", "coco", {"train": 18, "val": 4, "test": 4}),
        ("css_rectangles", "common_semantic_segmentation", {"train": 3, "val": 5, "test": 5}),
        (
            "datumaro_common_semantic_segmentation_dataset/dataset",
            "common_semantic_segmentation",
            {"train": 2, "val": 3, "test": 3},
        ),
        (
            "datumaro_common_semantic_segmentation_dataset/non_standard_dataset",
            "common_semantic_segmentation",
            {"train": 3, "val": 3, "test": 3},
        ),
        ("datumaro_voc_dataset/voc_dataset1", "voc", {"train": 1, "val": 1, "test": 1}),
    ],
)
def test_samples__read(folder, name, objects):
    dataset = load_dataset(DataConfig(format="auto", root=SAMPLES / folder))
    assert dataset.format == name
    assert {split: part.object_count for split, part in dataset.splits.items()} == objects


def test_samples__label_map_that_counts_from_one():
    dataset = load_dataset(DataConfig(format="auto", root=SAMPLES / "css_rectangles"))
    assert dataset.categories == ("Rectangle",)
    assert all(not image.labels_N.any() for split in dataset.splits.values() for image in split.images)


@pytest.mark.parametrize("folder", ["coco", "coco_instances", "coco_roboflow", "mmdet_coco", "coco_person_keypoints"])
def test_samples__polygon_beside_a_crowd_in_val(folder):
    """The train file of these samples has one object, a box; their val file has a polygon and a crowd."""
    root = SAMPLES / "datumaro_coco_dataset" / folder
    with pytest.raises(DataError, match="the only object is a box without a mask"):
        load_dataset(DataConfig(format="auto", root=root))
    val = load_dataset(DataConfig(format="auto", root=root), splits=("val",)).splits["val"]
    assert val.object_count == 1
    assert val.skipped == {"crowd region": 1}


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("datumaro_coco_dataset/coco_captions", r"without object masks \(captions_train\.json, captions_val\.json\)"),
        ("datumaro_coco_dataset/coco_image_info", "without object masks"),
        ("datumaro_coco_dataset/coco_labels", "without object masks"),
        ("datumaro_coco_dataset/coco_panoptic", "without object masks"),
        ("datumaro_coco_dataset/coco_stuff", "the only object is a crowd region"),
        ("datumaro_datumaro_dataset/legacy", "all 2 images have no annotations"),
        ("datumaro_voc_dataset/voc_dataset2", "4 objects are boxes without masks"),
        ("datumaro_voc_dataset/voc_dataset3", "the only object is a box without a mask"),
    ],
)
def test_samples__nothing_to_learn_from(folder, message):
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(DataConfig(format="auto", root=SAMPLES / folder))
    assert "\n" not in str(caught.value)
