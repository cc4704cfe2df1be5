"""Tables of metrics."""

import io
import math

from rich.console import Console

from vpexp.stages.shared.evaluate import build_class_table, build_metrics_table, format_metric


def show(table):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table)
    return [line.split() for line in console.export_text().splitlines()]


def get_row(lines, name):
    (row,) = [[word for word in line if word != "│"] for line in lines if name in line]
    return row


def test_metrics_table__one_column_each_and_no_row_without_a_number():
    before = {"f1-score": 0.51234, "map_large": math.nan, "iter_time": 0.1234}
    after = {"f1-score": 0.9, "mean_iou": 0.75, "map_large": math.nan}
    lines = show(build_metrics_table("a title", {"before": before, "after": after}))
    assert get_row(lines, "f1-score")[-2:] == ["0.5123", "0.9000"]
    assert get_row(lines, "mean_iou")[-2:] == ["-", "0.7500"]
    assert get_row(lines, "iter_time")[-3:] == ["0.123", "s", "-"]
    assert not any("map_large" in line for line in lines)
    assert lines[0] == ["a", "title"]


def test_class_table__a_row_each_class():
    per_class = {"map_per_class": {"berry": 0.5, "leaf": math.nan}, "mar_100_per_class": {"berry": 0.6, "leaf": 0.1}}
    lines = show(build_class_table(per_class, "by class"))
    assert get_row(lines, "berry")[-2:] == ["0.5000", "0.6000"]
    assert get_row(lines, "leaf")[-2:] == ["-", "0.1000"]


def test_format_metric():
    assert format_metric("iou", 0.123456) == "0.1235"
    assert format_metric("data_time", 1.0) == "1.000 s"
    assert format_metric("map", math.inf) == "-"
