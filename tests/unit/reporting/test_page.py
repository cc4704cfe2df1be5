import base64
import math
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from vpexp.reporting.comparison import ROWS, Comparison, Section
from vpexp.reporting.page import LONGEST_SIDE, build_page, read_pictures
from vpexp.visuals import build_legend, draw_comparison, save_picture


class Reader(HTMLParser):
    """Collects tags and text, and notices what is never closed."""

    VOID = ("meta", "img", "!doctype")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open:
            self.texts.setdefault(self.open[-1], []).append(data.strip())


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


@pytest.fixture
def overlays(tmp_path: Path) -> dict[str, Path]:
    """Two tests of the same two images; in the second one, the first image is missing."""
    folders = {"before": tmp_path / "before", "torch": tmp_path / "torch", "ir": tmp_path / "none"}
    image_HW3 = np.full((600, 900, 3), 90, np.uint8)
    mask_HW = np.zeros((600, 900), dtype=bool)
    mask_HW[100:300, 200:500] = True
    for column, names in (("before", ("a", "b<i>")), ("torch", ("b<i>",))):
        for name in names:
            captions = ("annotated: 1 objects", f"predicted from the prompts: F1 0.5 {column}")
            sheet = draw_comparison(image_HW3, [mask_HW], [~mask_HW], [], captions)
            save_picture(sheet, folders[column] / f"test_{name}.png")
    return folders


def make_comparison() -> Comparison:
    columns = {name: {row.name: 0.5 for row in ROWS} | {"map": math.nan} for name in ("before", "torch")}
    sections = (Section("Steps <1>", ("a & b",)), Section("Found", ("it is good",), finding=True))
    return Comparison("data <set>", columns, sections)


def test_read_pictures__match_by_name(overlays):
    rows = read_pictures(overlays, "test_")

    assert [(row.name, list(row.pictures)) for row in rows] == [
        ("a", ["annotated", "before"]),
        ("b<i>", ["annotated", "before", "torch"]),
    ]
    picture = rows[1].pictures["torch"]
    assert picture.caption == "predicted from the prompts: F1 0.5 torch"
    assert rows[1].pictures["annotated"].caption == "annotated: 1 objects"
    assert picture.size == (LONGEST_SIDE, round(LONGEST_SIDE * 2 / 3))


def test_read_pictures__sides_are_not_mixed_up(overlays):
    pictures = read_pictures(overlays)[0].pictures

    def is_tinted(column: str) -> bool:
        pixels = np.asarray(Image.open(BytesIO(pictures[column].jpeg)), dtype=int)
        return bool(np.ptp(pixels[90, 150]) > 20)  # inside the annotated mask, which the prediction leaves out

    assert is_tinted("annotated")
    assert not is_tinted("before")


def test_build_page__needs_nothing_but_itself(overlays):
    page = build_page(make_comparison(), read_pictures(overlays, "test_"))
    reader = read(page)

    sources = [attrs["src"] for tag, attrs in reader.tags if tag == "img"]
    assert len(sources) == 5
    for source in sources:
        head, _, data = str(source).partition(",")
        assert head == "data:image/jpeg;base64"
        assert Image.open(BytesIO(base64.b64decode(data))).format == "JPEG"
    assert not [tag for tag, _ in reader.tags if tag in ("script", "link", "iframe")]
    assert not re.search(r"https?://|url\(|@import", page)
    assert "prefers-color-scheme: dark" in page


def test_build_page__table_and_text_are_escaped(overlays):
    reader = read(build_page(make_comparison(), read_pictures(overlays, "test_")))

    assert reader.texts["h1"] == ["data <set>"]
    assert reader.texts["li"] == ["it is good", "a & b"], "what was found stands above the pictures"
    assert reader.texts["h3"] == ["a", "b<i>"]
    assert len(reader.texts["td"]) == 2 * len(ROWS)
    assert reader.texts["td"].count("-") == 2
    assert reader.texts["b"] == ["annotated", "before", "annotated", "before", "torch"]
    assert reader.texts["figcaption"][:2] == ["1 objects", "F1 0.5 before"]


def test_build_page__pictures_open_in_full_size_and_classes_have_their_colours(overlays, tmp_path):
    rows = read_pictures(overlays, "test_", tmp_path)
    reader = read(build_page(make_comparison(), rows, build_legend(["cat", "<dog>"])))

    links = [unquote(str(attrs["href"])) for tag, attrs in reader.tags if tag == "a"]
    assert len(links) == 5
    assert all((tmp_path / link).is_file() for link in links)
    assert len([tag for tag, _ in reader.tags if tag == "i"]) == 2


def test_build_page__without_pictures():
    reader = read(build_page(make_comparison()))

    assert "The same images" not in reader.texts["h2"]
