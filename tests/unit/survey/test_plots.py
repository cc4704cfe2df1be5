from dataclasses import replace
from pathlib import Path

from PIL import Image

from tests.references.surveys import build_image, build_split, build_survey
from vpexp.survey.plots import draw_plots


def test_draw_plots__class_names_that_no_font_or_formula_has(tmp_path):
    names = ("\ud800", "$\\frac{a", f"{'$' * 40}", "\x1b[31mred\nline", "\u65e5\u672c")
    objects = [((10, 10, 20, 20), label) for label in range(len(names))]
    survey = build_survey(build_split("train", [build_image(Path("a.png"), objects)]))
    paths = draw_plots(replace(survey, categories=names), tmp_path)
    assert [Image.open(path).format for path in paths] == ["PNG"] * 5
