import csv
import math
import threading

import pytest

from vpexp.runfolder import append_metrics, read_metrics


def test_append_metrics__adds_rows_in_order(tmp_path):
    path = tmp_path / "metrics.csv"

    append_metrics(path, 0, {"val/f1-score": 0.1})
    append_metrics(path, 1, {"val/f1-score": 0.2})

    assert path.read_text().splitlines() == ["epoch,val/f1-score", "0,0.1", "1,0.2"]
    assert read_metrics(path) == [{"epoch": "0", "val/f1-score": "0.1"}, {"epoch": "1", "val/f1-score": "0.2"}]


def test_append_metrics__numbers_come_back_to_the_bit(tmp_path):
    path = tmp_path / "metrics.csv"

    append_metrics(path, 1, {"a": 1 / 3, "b": 1e-300, "c": 3})

    (row,) = read_metrics(path)
    assert (float(row["a"]), float(row["b"]), row["c"]) == (1 / 3, 1e-300, "3.0")


def test_append_metrics__columns_are_joined_as_they_appear(tmp_path):
    path = tmp_path / "metrics.csv"

    append_metrics(path, 0, {"val/f1-score": 0.1})
    append_metrics(path, 1, {"train/loss": 2.0, "val/f1-score": 0.2})
    append_metrics(path, 2, {"train/loss": 1.0})

    assert path.read_text().splitlines()[0] == "epoch,val/f1-score,train/loss"
    assert [row["train/loss"] for row in read_metrics(path)] == ["", "2.0", "1.0"]
    assert [row["val/f1-score"] for row in read_metrics(path)] == ["0.1", "0.2", ""]


def test_append_metrics__row_of_the_same_or_a_later_epoch_is_replaced(tmp_path):
    path = tmp_path / "metrics.csv"
    for epoch in range(4):
        append_metrics(path, epoch, {"loss": float(epoch)})

    append_metrics(path, 2, {"loss": 20.0})

    assert [(row["epoch"], row["loss"]) for row in read_metrics(path)] == [("0", "0.0"), ("1", "1.0"), ("2", "20.0")]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_append_metrics__number_without_meaning_is_left_empty(tmp_path, value):
    path = tmp_path / "metrics.csv"

    append_metrics(path, 0, {"val/map_large": value, "val/map": 0.5})

    assert read_metrics(path) == [{"epoch": "0", "val/map": "0.5", "val/map_large": ""}]


def test_append_metrics__odd_class_names(tmp_path):
    path = tmp_path / "metrics.csv"
    names = ["val/map_per_class/grape (red), ½", 'val/"quoted"', "val/two\nlines"]

    append_metrics(path, 0, dict.fromkeys(names, 0.5))

    (row,) = read_metrics(path)
    assert all(row[name] == "0.5" for name in names)


def test_append_metrics__a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "metrics.csv"
    append_metrics(path, 0, {f"m{i}": 0.0 for i in range(50)})
    stop, broken = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            with path.open(newline="") as file:
                rows = list(csv.reader(file))
            if not rows or len({len(row) for row in rows}) != 1:
                broken.append(rows)

    reader = threading.Thread(target=read)
    reader.start()
    for epoch in range(1, 60):
        append_metrics(path, epoch, {f"m{i}": float(epoch) for i in range(50)})
    stop.set()
    reader.join()

    assert broken == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.csv"], "no draft is left"


def test_read_metrics__no_file_no_rows(tmp_path):
    assert read_metrics(tmp_path / "metrics.csv") == []
