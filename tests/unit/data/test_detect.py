import json

import pytest

from vpexp.data.detect import detect_format
from vpexp.data.folder import Folder
from vpexp.errors import DataError

COCO = json.dumps({"images": [], "annotations": [], "categories": []})
DATUMARO = json.dumps({"categories": {}, "items": []})


def detect(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return detect_format(Folder(root))


@pytest.mark.parametrize(
    ("files", "expected", "note"),
    [
        ({"annotations/instances_train.json": COCO}, "coco", "format: COCO (found annotations/instances_train.json)"),
        ({"train/_annotations.coco.json": COCO}, "coco", "format: COCO (found train/_annotations.coco.json)"),
        ({"annotations/train.json": DATUMARO}, "datumaro", "format: Datumaro (found annotations/train.json)"),
        (
            {"JPEGImages/a.jpg": "", "SegmentationObject/a.png": "", "Annotations/a.xml": ""},
            "voc",
            "format: Pascal VOC (found Annotations, JPEGImages, SegmentationObject)",
        ),
        (
            {"ImageSets/Main/train.txt": "a", "Annotations/a.xml": ""},
            "voc",
            "format: Pascal VOC (found Annotations, ImageSets)",
        ),
        (
            {"train/images/a.png": "", "train/masks/a.png": "", "train/dataset_meta.json": "{}"},
            "common_semantic_segmentation",
            "format: common semantic segmentation (found train/images, train/masks)",
        ),
        (
            {f"{part}/images/a.png": "" for part in "abc"} | {f"{part}/masks/a.png": "" for part in "abc"},
            "common_semantic_segmentation",
            "format: common semantic segmentation (found a/images, a/masks, b/images, b/masks and 2 more)",
        ),
    ],
)
def test_detect_format__by_looking(tmp_path, files, expected, note):
    detection = detect(tmp_path, files)
    assert (detection.format, detection.note) == (expected, note)


def test_detect_format__files_of_objects_win_ties(tmp_path):
    files = {"a.json": COCO, "b.json": DATUMARO, "JPEGImages/a.jpg": "", "images/a.png": "", "masks/a.png": ""}
    detection = detect(tmp_path, files)
    assert detection.format == "coco"
    assert detection.note.endswith(
        "it could also be Datumaro or Pascal VOC or common semantic segmentation: data.format=datumaro reads it so"
    )


def test_detect_format__unknown(tmp_path):
    with pytest.raises(DataError, match=r"no known format; looked for COCO .*, Datumaro .*, Pascal VOC .* and common"):
        detect(tmp_path, {"labels/a.txt": "0 0.5 0.5 1 1", "images/a.jpg": ""})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            ".annotations.coco.json",
            COCO,
            r"\.annotations\.coco\.json \(it is hidden: rename it to annotations\.coco\.json",
        ),
        ("train/.annotations.coco.json", COCO, r"train/\.annotations\.coco\.json \(it is hidden"),
        (".result.json", DATUMARO, r"\.result\.json \(it is hidden"),
        ("export.json", '{"annotations": [], "categories": []}xx', r"export\.json \(no readable JSON \(Extra data"),
        ("export.json", '{"a": 1}\0\0', r"export\.json \(no readable JSON"),
        ("_annotations.coco.json", '{"a": 1}{', r"_annotations\.coco\.json \(no readable JSON"),
        ("labelme.json", '{"shapes": []}', r"labelme\.json \(it holds neither 'images' nor 'items', but shapes"),
    ],
)
def test_detect_format__names_files_that_cannot_be_used(tmp_path, name, text, message):
    with pytest.raises(DataError, match=rf"no known format.*not read as annotations: {message}"):
        detect(tmp_path, {"a.txt": "", name: text})
