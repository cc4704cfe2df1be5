import io
from pathlib import Path

import pytest
from rich.console import Console

from vpexp.data.annotations import AnnotatedDataset, Split
from vpexp.stages.shared import dataset
from vpexp.stages.shared.dataset import report_dataset


@pytest.fixture
def output(monkeypatch):
    console = Console(file=io.StringIO(), width=120)
    monkeypatch.setattr(dataset, "console", console)
    monkeypatch.setattr("vpexp.console.console", console)
    return console.file


def test_report_dataset__counts_reasons_and_notes(output):
    skipped = {"crowd region": 2, "box only, no mask": 850}
    examples = {"crowd region": "a[1].jpg", "box only, no mask": "CDY_2015.jpg, annotation 7"}
    splits = {
        "train": Split("train", "train2017", (), skipped, examples),
        "val": Split("val", "val", (), {}, {}),
    }
    report_dataset(AnnotatedDataset("coco", Path("my/[data]"), ("a", "b"), splits, ("no test split: testing on val",)))
    text = output.getvalue()
    assert "my/[data] (coco, 2 categories)" in text
    assert "train (train2017)" in text
    assert "852" in text
    assert text.index("box only, no mask: CDY_2015.jpg, annotation 7") < text.index("crowd region: a[1].jpg")
    assert "no test split: testing on val" in text


def test_report_dataset__names_that_are_not_utf_8(output):
    splits = {"train": Split("train", "tr\udcff", (), {"crowd region": 1}, {"crowd region": "\ud800.png"})}
    report_dataset(AnnotatedDataset("coco", Path("my\udcff"), ("a",), splits, ("such as \udcff.png",)))
    text = output.getvalue()
    assert text.encode("utf-8")
    assert text.count("\\udcff") == 3
