"""What is measured beside the trained prompts, and when it is called a loss."""

import numpy as np
import pytest

from tests.unit.evaluation.test_background import build_image, draw_box
from vpexp.config.schema import PromptConfig
from vpexp.console import console
from vpexp.data.annotations import Region
from vpexp.data.masks import decode_rle
from vpexp.stages.shared.other_prompts import (
    MOST_OBJECTS,
    PromptControls,
    compare_measures,
    compute_f1,
    list_losses,
    list_other_recipes,
    report_controls,
    see_window,
    to_metrics,
)


@pytest.mark.parametrize(
    ("recipe", "others"),
    [
        ({}, ["point", "clicks"]),
        ({"jitter": 0.4, "test_jitter": 0.4}, ["box", "point", "clicks"]),
        ({"type": "point"}, ["box", "clicks"]),
        ({"type": "both"}, ["clicks"]),
        ({"type": "clicks", "jitter": 0.2}, ["box"]),
    ],
)
def test_list_other_recipes__leaves_out_what_is_learnt(recipe, others):
    assert list(list_other_recipes(PromptConfig(**recipe))) == others


def test_list_other_recipes__boxes_are_exact():
    found = list_other_recipes(PromptConfig(jitter=0.4, test_jitter=0.4))
    assert (found["box"].type, found["box"].test_jitter) == ("box", 0.0)


def build_measures(overlap, *, name="point"):
    return {name: {f"{place}": (part, 100, 100) for place, part in enumerate(overlap)}}


def test_compare_measures__f1_over_all_images():
    gain = compare_measures(build_measures([50, 60]), build_measures([70, 80]))["point"]
    assert (gain.before, gain.after, gain.images) == (0.55, 0.75, 2)
    assert compute_f1({"a": (30, 40, 80)}) == 0.5


@pytest.mark.parametrize(
    ("name", "before", "after", "is_loss"),
    [
        ("point", [80, 80, 80], [60, 61, 59], True),
        ("point", [60, 60, 60], [80, 81, 79], False),
        ("point", [80, 80, 80], [60, 99, 70], False),  # noise
        ("box_hits", [10, 10, 10], [30, 31, 29], True),
        ("box_hits", [30, 30, 30], [10, 11, 9], False),
        ("box_iou", [80, 80, 80], [60, 61, 59], False),
    ],
)
def test_list_losses__beyond_noise(name, before, after, is_loss):
    gains = compare_measures(build_measures(before, name=name), build_measures(after, name=name))
    assert bool(list_losses(gains)) == is_loss


def test_report_controls__fits_a_terminal_and_warns(capsys, monkeypatch):
    monkeypatch.setattr(console, "width", 80, raising=False)
    names = ("trained", "box", "point", "clicks", "keep", "box_hits", "point_hits", "box_iou")
    before, after = (
        {k: v for name in names for k, v in build_measures(x, name=name).items()} for x in ([80] * 3, [60, 61, 59])
    )
    findings = report_controls(compare_measures(before, after))
    text = capsys.readouterr().out
    table = [line for line in text.splitlines() if line.startswith(("┏", "┃", "│", "└"))]
    assert len(table) >= 10
    assert max(map(len, table)) <= 80
    assert "one point 0.8000 -> 0.6000 (-0.2000 ± " in findings[0]
    assert "background" not in findings[0]
    assert "trainer.blend" not in text  # what was trained on is measured where it was asked for


def test_to_metrics__names():
    numbers = to_metrics(compare_measures({}, build_measures([50])))
    assert numbers == {"val/prompts/point": 0.5}, "what was not measured before has no number"


def test_prompt_controls__asks_for_some_objects_of_some_images():
    masks = [draw_box(4 * place, 0, 4 * place + 3, 5) for place in range(20)]
    images = [build_image(masks, f"{number}.png") for number in range(60)]
    (sample,) = PromptControls(PromptConfig(), images).samples
    assert len(sample.images) == 50
    assert (sample.images[0].image_id, sample.images[-1].image_id) == ("0.png", "59.png")
    assert {len(image) for image in sample.images} == {MOST_OBJECTS}


def test_see_window__has_every_object_that_reaches_into_it():
    image = build_image([draw_box(0, 0, 30, 10), draw_box(40, 20, 60, 40), draw_box(80, 50, 85, 55)])
    seen = see_window(image, Region(5, 20, 25, 50))
    assert len(seen) == 2
    np.testing.assert_array_equal(decode_rle(seen.masks[1]), draw_box(40, 20, 60, 40)[5:25, 20:50])
