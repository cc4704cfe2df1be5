from io import StringIO
from pathlib import Path

from rich.console import Console

from tests.references.surveys import build_image, build_split, build_survey
from vpexp.data.skipped import BOX_ONLY
from vpexp.survey.tables import build_skipped, build_tables, format_share, render

BOX = ((10, 10, 20, 20), 0)


def build_pets():
    train = build_split("train", [build_image(Path("a.png"), [BOX, BOX]), build_image(Path("b.png"), [BOX])])
    return build_survey(train, build_split("val", [], {BOX_ONLY: 4}, source="valid"))


def test_build_tables__numbers_of_each_split():
    tables = {table.title.partition(" (")[0]: table for table in build_tables(build_pets(), most_classes=2)}

    assert tables["Images and objects"].rows == (
        ("train", "2", "3", "1.5", "2", "0"),
        ("val (valid)", "0", "0", "-", "-", "0"),
    )
    assert tables["Classes"].rows == (("cat", "3 in 2", "0", "100 %"), ("dog", "0", "0", "0 %"))
    assert tables["Classes"].note == "and 1 more classes, all in data.json"
    assert tables["Sizes of images"].rows == (("train", "200x100", "200x100", "200x100", "200x100 (100 %)", "1"),)
    assert tables["Sizes of objects"].rows == (("train", "100 px", "0.5 %", "100 %", "0 %", "0 %", "0 %", "0 %"),)
    assert tables["Sizes of objects as sam_small sees them"].rows == (("train", "5.0 px", "5.0 px", "100 %"),)


def test_build_tables__none_where_there_is_no_object():
    assert build_tables(build_survey(build_split("train", [], {BOX_ONLY: 4})), 10) == []


def test_build_skipped__by_reason_with_what_to_do():
    table = build_skipped(build_pets())

    assert table is not None
    ((split, reason, count, first, advice),) = table.rows
    assert (split, reason, count, first) == ("val (valid)", BOX_ONLY, "4", f"example of {BOX_ONLY}")
    assert "polygons" in advice
    assert build_skipped(build_survey(build_split("train", [build_image(Path("a.png"), [BOX])]))) is None


def test_render__odd_names_are_shown_as_they_are():
    split = build_split("train", [build_image(Path("a.png"), [BOX])])
    console = Console(width=120, file=StringIO())

    for table in build_tables(build_survey(split, categories=("[red]cat[/red]", "\udcff")), 10):
        console.print(render(table))

    text = console.file.getvalue()
    assert "[red]cat[/red]" in text
    assert "\\udcff" in text


def test_format_share__little_is_not_nothing():
    assert [format_share(share) for share in (0, 0.0001, 0.0123, 0.5, 1)] == [
        "0 %",
        "< 0.1 %",
        "1.2 %",
        "50 %",
        "100 %",
    ]
