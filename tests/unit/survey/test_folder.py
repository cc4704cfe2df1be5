import json
from pathlib import Path

import pytest

from vpexp.survey.tables import build_folder_table


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A folder with an annotation file and some others."""
    folder = tmp_path / "export" / "annotations"
    folder.mkdir(parents=True)
    (folder / "instances_train.json").write_text(json.dumps({"images": [], "annotations": []}))
    (tmp_path / "notes").mkdir()
    for name in ("a.txt", "b.txt", "c.md", "LICENSE"):
        (tmp_path / "notes" / name).write_text("-")
    return tmp_path


def test_build_folder_table__counts_kinds_of_files_by_folder(coco):
    table = build_folder_table(coco)

    assert table is not None
    assert table.rows == (
        ("export/annotations", "1 .json"),
        ("notes", "2 .txt, 1 without an ending, 1 .md"),
    )


def test_build_folder_table__none_where_there_is_nothing(tmp_path):
    assert build_folder_table(tmp_path / "nope") is None
    assert build_folder_table(tmp_path) is None
