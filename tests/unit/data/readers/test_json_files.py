import json
import os

import pytest

from vpexp.data.folder import Folder
from vpexp.data.readers.json_files import (
    classify_json,
    find_json_files,
    find_unreadable,
    holds_objects,
    load_json,
    name_subset,
    name_subsets,
)
from vpexp.errors import DataError


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"images": [], "annotations": [], "categories": []}, "coco"),
        ({"annotations": [], "images": []}, "coco"),
        ({"categories": {}, "items": []}, "datumaro"),
        ({"dm_format_version": "1.0", "categories": {}, "items": [{"annotations": [], "images": []}]}, "datumaro"),
        ({"label_map": {"0": "a"}}, None),
        ({"image": {}, "annotations": [{"bbox": []}]}, None),
        ({"info": {"items": 3}, "images": [], "annotations": []}, "coco"),
        ({"shapes": [], "imagePath": "a.jpg"}, None),
        ([{"image_id": 1, "images": []}], None),
        ("text", None),
        ({"info": "x" * 70000, "images": [], "annotations": []}, "coco"),
        ({"infos": "x" * 70000, "categories": {}, "items": []}, "datumaro"),
        ({"infos": "x" * 70000}, None),
    ],
)
def test_classify_json__by_its_keys(tmp_path, content, expected):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    assert classify_json(path) == expected
    path.write_text("\ufeff  " + json.dumps(content, indent=2))
    assert classify_json(path) == expected


def test_classify_json__an_attribute_called_items(tmp_path):
    annotations = [{"id": number, "attributes": {"items": 3}} for number in range(3000)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"annotations": annotations, "images": []}))
    assert classify_json(path) == "coco"
    path.write_text(json.dumps({"categories": {}, "items": [{"id": str(number)} for number in range(9000)]}))
    assert classify_json(path) == "datumaro"


def test_classify_json__link_that_leads_nowhere(tmp_path):
    (tmp_path / "a.json").symlink_to(tmp_path / "gone.json")
    assert classify_json(tmp_path / "a.json") is None


def test_classify_json__damaged(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"{" + b"\xff" * 70000)
    assert classify_json(path) is None


@pytest.mark.parametrize("content", ["", "{", "\x00", "[" * 100000])
def test_load_json__damaged(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"a\.json: no readable JSON"):
        load_json(path)


def test_load_json__no_object(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[]")
    with pytest.raises(DataError, match=r"a\.json: expected a JSON object, found a list"):
        load_json(path)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("annotations/instances_train.json", "train"),
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/person_keypoints_val.json", "val"),
        ("train/_annotations.coco.json", "train"),
        ("annotations/train/annotations.json", "train"),
        ("coco_annotations/test_bbox_instances.json", "test_bbox"),
        ("instances_train_trashcan.json", "train_trashcan"),
        ("instances_default.json", "default"),
        ("annotations.json", "default"),
        ("result.json", "result"),
    ],
)
def test_name_subset__in_the_wild(file, name):
    assert name_subset(file) == name


def test_name_subsets__same_names_are_told_apart():
    files = ["a/instances_train.json", "b/instances_train.json", "b/instances_val.json"]
    assert name_subsets(files) == {
        "a/instances_train": files[0],
        "b/instances_train": files[1],
        "val": files[2],
    }


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
def test_load_json__other_encodings(tmp_path, encoding):
    path = tmp_path / "a.json"
    path.write_text('{"images": [], "name": "Ä"}', encoding=encoding)
    assert load_json(path) == {"images": [], "name": "Ä"}
    assert classify_json(path) == "coco"


def test_load_json__number_of_too_many_digits(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"id": %s}' % ("9" * 5000))
    with pytest.raises(DataError, match=r"a\.json: no readable JSON"):
        load_json(path)


def test_find_unreadable__by_name_or_place(tmp_path):
    files = {
        "annotations/instances_val.json": "",
        "annotations/list.json": "[1]",
        "annotations/meta.json": '{"label_map": {}}',
        "annotations/none.json": '{"images": null, "annotations": []}',
        "annotations/instances_train.json": '{"images": []}',
        "train/_annotations.coco.json": "{",
        "other/notes.json": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    unreadable = find_unreadable(Folder(tmp_path))
    assert unreadable == {
        "annotations/instances_val.json": "the file is empty",
        "annotations/list.json": "expected a JSON object, found a list",
        "annotations/none.json": "its 'images' is no list",
        "annotations/meta.json": "it holds neither 'images' nor 'items', but label_map",
        "train/_annotations.coco.json": unreadable["train/_annotations.coco.json"],
    }
    assert "no readable JSON" in unreadable["train/_annotations.coco.json"]


def test_find_unreadable__hidden_files_and_what_is_not_to_be_opened(tmp_path):
    for name in (".annotations.coco.json", "._annotations.coco.json", ".settings.json", ".vscode/x.json", "plain.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"a": 1}' if "sett" in name or "plain" in name else '{"images": []}')
    os.mkfifo(tmp_path / "train.json")
    os.mkfifo(tmp_path / ".pipe.json")
    (tmp_path / "val.json").symlink_to("/proc/self/environ")
    expected = {
        ".annotations.coco.json": "it is hidden: rename it to annotations.coco.json",
        "train.json": "no regular file, so it is not opened",
        "val.json": "file outside the given folder (data.allow_outside=true uses it)",
    }
    assert find_unreadable(Folder(tmp_path)) == expected
    others = {"plain.json": "it holds neither 'images' nor 'items', but a"}
    assert find_unreadable(Folder(tmp_path), every=True) == expected | others
    assert find_json_files(Folder(tmp_path), "coco") == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"annotations": [{"segmentation": []}]}, True),
        ({"annotations": [{"bbox": [1, 2, 3, 4]}]}, True),
        ({"images": ["x" * 2**20], "annotations": [{"bbox": 1}]}, True),
        ({"annotations": [{"segments_info": [{"bbox": 1}]}]}, False),
        ({"annotations": [{"caption": "a segmentation of a bbox"}]}, False),
        ({"images": []}, False),
    ],
)
def test_holds_objects__by_content(tmp_path, content, expected, encoding):
    (tmp_path / "a.json").write_text(json.dumps(content), encoding=encoding)
    assert holds_objects(tmp_path / "a.json") is expected
