"""Tables and pictures of what was found without prompts."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vpexp.evaluation.instances import InstanceResult
from vpexp.reporting.instances import COMPARED, ROWS, list_cells, plot_confusion, plot_precision, save_plot
from vpexp.reporting.report import build_found_table, read_found


def test_list_cells__rows_without_a_number_and_those_of_classes_are_left_out():
    columns = {
        "auto": {"map": 0.25, "map_any_class": 0.5, "f1": 0.625},
        "grid": {"map_any_class": math.nan, "f1": 0.125},
    }
    names = [row.name for row in ROWS]

    assert list_cells(columns, names, 5) == [
        ("map", ["0.2500", "-"]),
        ("map_any_class", ["0.5000", "-"]),
        ("f1", ["0.6250", "0.1250"]),
    ]
    assert [row for row, _ in list_cells(columns, names, 1)] == ["map", "f1"]


def test_found_table__before_is_the_grid_and_has_no_classes():
    metrics = {
        "test/auto/map": 0.25,
        "test/grid/msa": 0.0,
        "test/auto/msa": 0.5,
        "test/auto/f1": None,
        "test/boxes/f1": 1,
    }
    found = {column: read_found(metrics, "test", column) for column in ("before", "torch")}

    table = build_found_table(found, classes=3)

    assert list(found["torch"]) == list(COMPARED)
    assert (table.columns, table.rows) == (
        ["before", "torch"],
        [("map", ["-", "0.2500"]), ("msa", ["0.0000", "0.5000"])],
    )
    assert "before: by a grid of points" in table.note


@pytest.mark.parametrize("count", [1, 5, 88])
def test_plot_confusion__is_readable_with_few_and_many_classes(count, tmp_path: Path):
    confusion = np.diag(np.arange(count + 1))[:, ::1]
    save_plot(
        plot_confusion(confusion, [f"a class with a rather long name {place}" for place in range(count)]),
        tmp_path / "a.png",
    )

    with Image.open(tmp_path / "a.png") as picture:
        assert 300 < picture.width < 2600
        assert 0.7 < picture.width / picture.height < 1.7
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_plot_precision__marks_the_threshold():
    curve_M3 = np.array([[0.9, 1.0, 0.25], [0.5, 1.0, 0.5], [0.1, 0.5, 0.5]])
    metrics = {"precision": 1.0, "recall": 0.5, "f1": 2 / 3}
    result = InstanceResult(metrics, {}, 0.5, curve_M3, np.zeros((2, 2), np.int64), 1, 4)

    axes = plot_precision({"auto": result, "grid": result}, "auto").axes[0]

    assert [line.get_label() for line in axes.lines] == ["auto", "grid", "auto, score of at least 0.50: F1 0.667"]
    assert axes.lines[0].get_xydata().tolist() == [[0.25, 1.0], [0.5, 1.0], [0.5, 0.5]]
    assert axes.lines[2].get_xydata().tolist() == [[0.5, 1.0]]
