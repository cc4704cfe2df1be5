import math
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from vpexp.files import write_text
from vpexp.reporting.comparison import (
    ROWS,
    Comparison,
    Section,
    TextTable,
    build_table,
    compute_changes,
    describe_changes,
    describe_columns,
    format_markdown,
    read_column,
)
from vpexp.reporting.page import build_page


def make_column(f1: float, **others: float) -> dict[str, float]:
    return {row.name: math.nan for row in ROWS} | {"f1-score": f1, "dice": f1, "map": f1 / 2} | others


@pytest.fixture
def comparison() -> Comparison:
    return Comparison(
        "sam_micro on nuclei/test: 17 images, 444 objects",
        {
            "before": make_column(0.8),
            "torch": make_column(0.9, size_mb=25.7),
            "ir": make_column(0.8999, size_mb=25.9, load_time=0.5, encoder_time=0.0421, decoder_time=0.01),
            "int8": make_column(0.89, size_mb=7.77, load_time=0.25, encoder_time=0.02105, decoder_time=0.005),
        },
        (Section("Steps", ("train: finished, 4.0 s",)),),
    )


def render(comparison: Comparison) -> str:
    console = Console(width=100, record=True, file=StringIO())
    console.print(build_table(comparison))
    return console.export_text()


def test_read_column__takes_the_rows_of_the_split():
    metrics = {"val/f1-score": 0.5, "val/map": None, "test/f1-score": 0.9, "val/size_mb": 25, "val/data_time": 1.0}

    column = read_column(metrics, "val")

    assert list(column) == [row.name for row in ROWS]
    assert (column["f1-score"], column["size_mb"]) == (0.5, 25.0)
    assert math.isnan(column["map"])
    assert math.isnan(column["load_time"])


def test_build_table__numbers_are_in_the_units_of_their_rows(comparison):
    lines = [[cell.strip() for cell in line.split("│")] for line in render(comparison).splitlines() if "│" in line]
    rows = {line[1]: line[2:-1] for line in lines}

    assert rows["f1-score"] == ["0.8000", "0.9000", "0.8999", "0.8900"]
    assert rows["size (MB)"] == ["-", "25.7", "25.9", "7.8"]
    assert rows["load time (s)"] == ["-", "-", "0.50", "0.25"]
    assert rows["encoder time (ms)"] == ["-", "-", "42.1", "21.1"]
    assert rows["map_75"] == ["-"] * 4
    assert list(rows) == [row.title for row in ROWS]


def test_build_table__title_with_brackets_is_not_markup():
    assert "[test]" in render(Comparison("data [test]", {"before": make_column(0.5)}))


def test_compute_changes__each_column_against_the_one_it_comes_from(comparison):
    changes = compute_changes(comparison.columns)

    assert list(changes) == ["torch - before", "ir - torch", "int8 - ir"]
    assert changes["torch - before"]["f1-score"] == pytest.approx(0.1)
    assert changes["ir - torch"]["f1-score"] == pytest.approx(-0.0001)
    assert changes["int8 - ir"]["map"] == pytest.approx(-0.00495)


def test_compute_changes__onnx_is_set_against_torch():
    columns = {name: make_column(0.5) for name in ("torch", "ir", "onnx")}

    assert list(compute_changes(columns)) == ["ir - torch", "onnx - torch"]


def test_describe_changes__a_line_for_each_step(comparison):
    assert describe_changes(comparison.columns) == [
        "torch - before: f1-score +0.1000, map +0.0500",
        "ir - torch: f1-score -0.0001, map +0.0000",
        "int8 - ir: f1-score -0.0099, map -0.0050",
    ]


def test_describe_changes__without_numbers_has_dashes():
    columns = {"ir": {"f1-score": math.nan}, "int8": {"f1-score": 0.5}}

    assert describe_changes(columns) == ["int8 - ir: f1-score -, map -"]


def test_describe_columns__only_those_there_are(comparison):
    line = describe_columns(comparison)

    assert "int8: the IR, quantized" in line
    assert "onnx" not in line


def test_format_markdown__is_an_aligned_table_and_sections(comparison):
    lines = format_markdown(comparison).splitlines()

    assert lines[0] == "# sam_micro on nuclei/test: 17 images, 444 objects"
    assert lines[2].split() == ["|", "|", "before", "|", "torch", "|", "ir", "|", "int8", "|"]
    table = lines[2 : 4 + len(ROWS)]
    assert len({len(line) for line in table}) == 1
    assert all(line.count("|") == 6 for line in table)
    assert table[1].count(":|") == 4
    assert "## Steps" in lines
    assert lines[-1] == "- train: finished, 4.0 s"


def test_write_text__replaces_the_file_and_leaves_nothing_beside_it(tmp_path):
    write_text(tmp_path / "a.md", "one\n")
    write_text(tmp_path / "a.md", "zwei: ä\n")

    assert [path.name for path in tmp_path.iterdir()] == ["a.md"]
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == "zwei: ä\n"


def test_tables__stand_below_that_of_the_columns(comparison):
    table = TextTable("Objects <found>", ["before", "torch"], [("map", ["-", "0.2500"])], "A note.")
    both = replace(comparison, tables=(table,))

    text = format_markdown(both)
    assert text.index("size (MB)") < text.index("## Objects <found>") < text.index("| map |      - | 0.2500 |")
    assert text.index("A note.") < text.index("## Steps")
    page = build_page(both)
    assert (
        page.index("size (MB)")
        < page.index("Objects &lt;found&gt;")
        < page.index("0.2500</td>")
        < page.index("A note.")
    )
    assert "0.2500" not in render(comparison)
