import json

import pytest

from vpexp.data.readers.label_images import is_background_name, read_meta_file, read_voc_label_map
from vpexp.errors import DataError


def write_meta(tmp_path, **content):
    path = tmp_path / "dataset_meta.json"
    path.write_text(json.dumps(content))
    return path


def test_read_meta_file__keys_are_pixel_values(tmp_path):
    label_map = read_meta_file(write_meta(tmp_path, label_map={"1": "Rectangle"}))
    assert label_map.names == {1: "Rectangle"}
    assert label_map.object_values == (1,)
    assert label_map.categories == ("Rectangle",)
    assert label_map.is_background(0)
    assert label_map.is_background(255)
    assert not label_map.is_background(2)
    assert not label_map.is_object(2)


def test_read_meta_file__labels_as_a_list(tmp_path):
    label_map = read_meta_file(write_meta(tmp_path, labels=["background", "cat", "dog"]))
    assert label_map.object_values == (1, 2)


@pytest.mark.parametrize("name", ["background", "Background", "_background_", "Void", "unlabeled", "ignored", "BG"])
def test_read_meta_file__background_by_name(tmp_path, name):
    assert is_background_name(name)
    label_map = read_meta_file(write_meta(tmp_path, label_map={"0": "cat", "3": name}))
    assert label_map.object_values == (0,)
    assert label_map.is_background(3)


@pytest.mark.parametrize("background", ["1", 1, "grass"])
def test_read_meta_file__background_as_declared(tmp_path, background):
    path = write_meta(tmp_path, label_map={"0": "cow", "1": "grass"}, background_label=background)
    assert read_meta_file(path).object_values == (0,)


def test_read_meta_file__void_value_may_be_a_class(tmp_path):
    label_map = read_meta_file(write_meta(tmp_path, label_map={"0": "background", "255": "cell"}))
    assert label_map.object_values == (255,)


def test_read_meta_file__two_values_of_one_name(tmp_path):
    label_map = read_meta_file(write_meta(tmp_path, label_map={"1": "cat", "2": "cat"}))
    assert label_map.categories == ("cat",)


def test_read_meta_file__colours_by_key_or_by_place(tmp_path):
    colors = [[0, 0, 0], [9, 8, 7]]
    by_key = read_meta_file(write_meta(tmp_path, label_map={"0": "background", "1": "a"}, segmentation_colors=colors))
    assert by_key.colors == {(0, 0, 0): 0, (9, 8, 7): 1}
    by_place = read_meta_file(write_meta(tmp_path, label_map={"1": "a", "2": "b"}, segmentation_colors=colors))
    assert by_place.colors == {(0, 0, 0): 1, (9, 8, 7): 2}


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"label_map": {"one": "a"}},
        {"label_map": ["a"]},
        {"labels": 3},
        {"labels": ["a"], "segmentation_colors": ["red"]},
        {"labels": ["a"], "segmentation_colors": [[0, 0, float("inf")]]},
        {"labels": ["a"], "segmentation_colors": True},
    ],
)
def test_read_meta_file__cannot_be_understood(tmp_path, content):
    with pytest.raises(DataError, match=r"dataset_meta\.json"):
        read_meta_file(write_meta(tmp_path, **content))


def test_read_voc_label_map__labelmap_file(tmp_path):
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\n\nnucleus:128,0,0::\ncell\n"
    )
    label_map = read_voc_label_map(tmp_path)
    assert label_map.categories == ("nucleus", "cell")
    assert label_map.colors == {(0, 0, 0): 0, (128, 0, 0): 1, (224, 224, 192): 255}
    assert label_map.is_background(255)
    assert label_map.is_declared


def test_read_voc_label_map__class_names_file(tmp_path):
    (tmp_path / "class_names.txt").write_text("__ignore__\n_background_\ncell\n")
    label_map = read_voc_label_map(tmp_path)
    assert label_map.object_values == (1,)
    assert label_map.colors[128, 0, 0] == 1


def test_read_voc_label_map__pascal_voc(tmp_path):
    label_map = read_voc_label_map(tmp_path)
    assert len(label_map.categories) == 20
    assert label_map.names[15] == "person"
    assert label_map.colors[192, 128, 128] == 15
    assert not label_map.is_declared


@pytest.mark.parametrize("content", ["# nothing\n", "a:red::\n", "a:1,2::\n"])
def test_read_voc_label_map__cannot_be_understood(tmp_path, content):
    (tmp_path / "labelmap.txt").write_text(content)
    with pytest.raises(DataError, match=r"labelmap\.txt"):
        read_voc_label_map(tmp_path)


@pytest.mark.parametrize("background", ["²", "9" * 5000, "none"])
def test_read_meta_file__background_of_odd_digits(tmp_path, background):
    path = tmp_path / "dataset_meta.json"
    path.write_text(json.dumps({"label_map": {"1": "cat"}, "background_label": background}))
    assert read_meta_file(path).background == frozenset()
