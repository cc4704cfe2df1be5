"""The file of prompts: what it may say, and the one line that says what is wrong with it."""

import json
import os

import numpy as np
import pytest

from vpexp.errors import ConfigError, DataError
from vpexp.inference.prompt_file import fit_prompts, read_prompt_file


@pytest.fixture
def write(tmp_path):
    """Write a file of prompts, as JSON or as it is."""

    def write_file(content):
        path = tmp_path / "prompts.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write_file


@pytest.fixture
def read_one(write):
    """Read the prompts of one image."""
    return lambda entry: read_prompt_file(write({"a.jpg": entry}))["a.jpg"]


def test_read_prompt_file__boxes(read_one):
    read = read_one({"boxes": [[1, 2, 3.5, 4], [0, 0, 10, 20]]})
    assert read.prompts.coords_NP2.tolist() == [[[1, 2], [3.5, 4]], [[0, 0], [10, 20]]]
    assert read.prompts.labels_NP.tolist() == [[2, 3], [2, 3]]
    assert (len(read), read.boxes, read.labels) == (2, 2, ("object", "object"))


def test_read_prompt_file__points_are_inside_where_nothing_is_said(read_one):
    read = read_one({"points": [[[1, 2]], [[3, 4], [5, 6], [7, 8]]]})
    assert read.prompts.labels_NP.tolist() == [[1, -1, -1], [1, 1, 1]]
    assert read.prompts.coords_NP2[1].tolist() == [[3, 4], [5, 6], [7, 8]]
    assert read.boxes == 0


def test_read_prompt_file__boxes_come_before_points(read_one):
    read = read_one(
        {
            "labels": ["leaf", "berry"],
            "points": [[[5, 6], [1, 1], [2, 2]]],
            "point_labels": [[1, 0, 1]],
            "boxes": [[1, 2, 3, 4]],
        }
    )
    assert read.prompts.labels_NP.tolist() == [[2, 3, -1], [1, 0, 1]]
    assert read.prompts.coords_NP2.dtype == read.prompts.labels_NP.dtype == np.float32
    assert read.labels == ("leaf", "berry")
    assert [read.name_entry(i) for i in range(2)] == ["boxes[0]", "points[0]"]


def test_read_prompt_file__objects_hold_a_box_and_points_together(read_one):
    read = read_one(
        {
            "objects": [
                {"box": [1, 2, 3, 4], "points": [[2, 3], [1, 2]], "point_labels": [1, 0], "label": "grape"},
                {"points": [[5, 6], [7, 8]]},
                {"box": [1, 1, 2, 2]},
            ],
            "boxes": [[0, 0, 9, 9]],
            "points": [[[5, 5]]],
            "labels": ["leaf", "berry"],
        }
    )
    assert read.prompts.labels_NP.tolist() == [
        *([2, 3, -1, -1], [1, -1, -1, -1], [2, 3, 1, 0], [1, 1, -1, -1], [2, 3, -1, -1]),
    ]
    assert read.prompts.coords_NP2[2].tolist() == [[1, 2], [3, 4], [2, 3], [1, 2]]
    assert read.labels == ("leaf", "berry", "grape", "object", "object")
    names = [read.name_entry(index) for index in range(len(read))]
    assert names == ["boxes[0]", "points[0]", "objects[0]", "objects[1]", "objects[2]"]


@pytest.mark.parametrize(
    "entry", [{}, {"objects": []}, {"boxes": []}, {"boxes": None, "points": [], "point_labels": []}]
)
def test_read_prompt_file__no_prompts(read_one, entry):
    assert len(read_one(entry)) == 0


def test_read_prompt_file__byte_order_mark_is_no_harm(tmp_path):
    path = tmp_path / "p.json"
    path.write_text('{"ä.jpg": {"boxes": [[0, 0, 1, 1]]}}', encoding="utf-8-sig")
    assert list(read_prompt_file(path)) == ["ä.jpg"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([[1, 2, 3, 4]], "'a.jpg' must hold lists of boxes or points, not [[1, 2, 3, 4]]"),
        (
            {"box": [[1, 2, 3, 4]]},
            "'a.jpg': unknown key 'box' (there are: boxes, points, point_labels, labels, objects)",
        ),
        ({"boxes": {"x1": 1}}, "'a.jpg': boxes must be a list, not {\"x1\": 1}"),
        ({"boxes": [1, 2, 3, 4]}, "'a.jpg': boxes[0] must be [x1, y1, x2, y2], not 1"),
        ({"boxes": [[0, 0, 1, 1], [1, 2, 3]]}, "'a.jpg': boxes[1] must be [x1, y1, x2, y2], not [1, 2, 3]"),
        ({"boxes": [[0, 0, 1, "2"]]}, "'a.jpg': boxes[0] holds \"2\", which is no number"),
        ({"boxes": [[0, 0, 1, True]]}, "boxes[0] holds true, which is no number"),
        ({"boxes": [[0, 0, 1, None]]}, "boxes[0] holds null, which is no number"),
        ({"boxes": [[0, 0, 1, float("nan")]]}, "boxes[0] holds NaN, which is no place in an image"),
        ({"boxes": [[0, float("-inf"), 1, 2]]}, "boxes[0] holds -Infinity, which is no place in an image"),
        ({"boxes": [[0, 0, 1, 10**400]]}, "0..., which is no place in an image"),
        ({"boxes": [[5, 0, 5, 9]]}, "boxes[0] [5, 0, 5, 9] is empty: x2 must be greater than x1, and y2 than y1"),
        ({"boxes": [[0, 9, 5, 3]]}, "boxes[0] [0, 9, 5, 3] is empty"),
        ({"boxes": [[1e8, 0, 1e8 + 1, 3]]}, "is empty"),  # the same number once it is float32
        ({"points": [[1, 2]]}, "'a.jpg': points[0] must be a list of points [[x, y], ...], not [1, 2]"),
        ({"points": [[]]}, "points[0] must be a list of points [[x, y], ...], not []"),
        ({"points": [3]}, "points[0] must be a list of points [[x, y], ...], not 3"),
        ({"points": [[[1, 2]], [[1, 2], [1, 2, 3]]]}, "points[1][1] must be [x, y], not [1, 2, 3]"),
        ({"points": [[[1, "x"]]]}, 'points[0][0] holds "x", which is no number'),
        ({"points": [[[1, 2]]], "point_labels": []}, "point_labels has 0 lists, and points has 1"),
        ({"boxes": [[0, 0, 1, 1]], "point_labels": [[1]]}, "point_labels has 1 lists, and points has 0"),
        ({"points": [[[1, 2]]], "point_labels": [1]}, "point_labels[0] must be a list of 1, one label a point, not 1"),
        (
            {"points": [[[1, 2]]], "point_labels": [[1, 0]]},
            "point_labels[0] must be a list of 1, one label a point, not [1, 0]",
        ),
        ({"points": [[[1, 2]]], "point_labels": [[2]]}, "point_labels[0] holds 2: must be 1 (inside) or 0 (outside)"),
        ({"points": [[[1, 2]]], "point_labels": [[True]]}, "point_labels[0] holds true"),
        ({"points": [[[1, 2]]], "point_labels": [[[1]]]}, "point_labels[0] holds [1]"),
        ({"boxes": [[0, 0, 1, 1]], "labels": ["a", "b"]}, "labels has 2 names for 1 prompts"),
        ({"boxes": [[0, 0, 1, 1]], "labels": "grape"}, 'labels must be a list, not "grape"'),
        ({"boxes": [[0, 0, 1, 1]], "labels": [" "]}, 'labels[0] must be a name, not " "'),
        ({"boxes": [[0, 0, 1, 1]], "labels": [7]}, "labels[0] must be a name, not 7"),
        ({"boxes": [[0] * 1000]}, "0, 0, 0,..."),
        ({"objects": {"box": [0, 0, 1, 1]}}, "'a.jpg': objects must be a list, not"),
        ({"objects": [[0, 0, 1, 1]]}, "'a.jpg': objects[0] must be an object as {\"box\": [x1, y1, x2, y2]}, not"),
        ({"objects": [{}]}, "objects[0] has neither box nor points"),
        ({"objects": [{"boxes": []}]}, "objects[0]: unknown key 'boxes' (there are: box, points, point_labels, label)"),
        ({"objects": [{"box": [1, 0, 0, 1]}]}, "objects[0].box [1, 0, 0, 1] is empty"),
        ({"objects": [{"points": [1, 2]}]}, "objects[0].points must be a list of points [[x, y], ...], not [1, 2]"),
        ({"objects": [{"points": [[1, 2]], "point_labels": [1, 0]}]}, "objects[0].point_labels must be a list of 1"),
        ({"objects": [{"points": [[1, 2]], "point_labels": [2]}]}, "objects[0].point_labels holds 2: must be 1"),
        ({"objects": [{"box": [0, 0, 1, 1], "point_labels": [1]}]}, "objects[0] has point_labels, and no points"),
        ({"objects": [{"box": [0, 0, 1, 1], "label": 7}]}, "objects[0].label must be a name, not 7"),
    ],
)
def test_read_prompt_file__malformed_entry_is_named(write, entry, message):
    path = write({"fine.jpg": {"boxes": [[0, 0, 1, 1]]}, "a.jpg": entry})
    with pytest.raises(DataError) as caught:
        read_prompt_file(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: 'a.jpg'")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no readable JSON"),
        ("{'a': 1}", "is no readable JSON"),
        ("[" * 100_000, "is no readable JSON"),
        ("[1]", "must hold prompts by image, as"),
        ('"grid"', "must hold prompts by image"),
        ('{"a.jpg": {}, "a.jpg": {}}', "the key 'a.jpg' stands in one object twice"),
        ('{"a.jpg": {"boxes": [], "boxes": []}}', "the key 'boxes' stands in one object twice"),
    ],
)
def test_read_prompt_file__no_file_of_prompts(write, content, message):
    path = write(content)
    with pytest.raises(DataError) as caught:
        read_prompt_file(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_read_prompt_file__not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"prompts=.*/p\.json does not exist: give a JSON file .* or prompts=grid"):
        read_prompt_file(tmp_path / "p.json")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_prompt_file(tmp_path)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ConfigError, match="cannot be read: no regular file, so it is not opened"):
        read_prompt_file(tmp_path / "pipe.json")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(DataError, match="is no readable JSON"):
        read_prompt_file(tmp_path / "image.png")


# ---------------------------------------------------------------- against the image


def test_fit_prompts__boxes_are_cut_at_the_edges(read_one):
    read = read_one(
        {"boxes": [[-5, -1, 3, 4], [10, 10, 99, 99], [2, 3, 4, 5]], "points": [[[0, 0], [20, 30], [19, 29]]]}
    )
    together = read_one({"objects": [{"box": [-5, 1, 90, 4], "points": [[2, 2]]}]})
    cut = fit_prompts(together, height=30, width=20, origin="").prompts.coords_NP2
    assert cut.tolist() == [[[0, 1], [20, 4], [2, 2]]]
    fitted = fit_prompts(read, height=30, width=20, origin="p.json: 'a.jpg'")
    assert fitted.prompts.coords_NP2[:3, :2].reshape(3, 4).tolist() == [[0, 0, 3, 4], [10, 10, 20, 30], [2, 3, 4, 5]]
    assert fitted.prompts.coords_NP2[3].tolist() == [[0, 0], [20, 30], [19, 29]]
    assert read.prompts.coords_NP2[0, 0].tolist() == [-5, -1]  # the given ones stay
    assert (fitted.labels, fitted.boxes) == (read.labels, read.boxes)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"boxes": [[0, 0, 5, 5], [20, 0, 25, 5]]},
            "boxes[1] [20.0, 0.0, 25.0, 5.0] lies outside of the image, which is 20 x 30",
        ),
        ({"boxes": [[0, 30, 5, 31]]}, "boxes[0]"),
        ({"boxes": [[-5, 0, 0, 5]]}, "boxes[0]"),
        ({"boxes": [[0, -5, 5, -1]]}, "boxes[0]"),
        (
            {"boxes": [[0, 0, 5, 5]], "points": [[[1, 1]], [[1, 1], [21, 1]]]},
            "points[1] [1.0, 1.0, 21.0, 1.0] has a point outside",
        ),
        ({"points": [[[-0.5, 1]]]}, "points[0]"),
        ({"points": [[[3, 31]]]}, "points[0]"),
        (
            {"points": [[[1, 1]]], "objects": [{"box": [30, 1, 40, 2], "points": [[1, 1]]}]},
            "objects[0] [30.0, 1.0, 40.0, 2.0] lies outside",
        ),
        ({"objects": [{"box": [0, 0, 5, 5], "points": [[1, 40]]}]}, "objects[0] [1.0, 40.0] has a point outside"),
    ],
)
def test_fit_prompts__outside_of_the_image(read_one, entry, message):
    with pytest.raises(DataError) as caught:
        fit_prompts(read_one(entry), height=30, width=20, origin="p.json: 'a.jpg'")
    assert f"p.json: 'a.jpg': {message}" in str(caught.value)
