"""Points and boxes as the page sends them."""

import numpy as np
import pytest

from vpexp.demo.steps import (
    MOST_STEPS,
    Box,
    Found,
    Point,
    StepError,
    build_arguments,
    describe_steps,
    parse_steps,
)


def test_parse__points_name_pixels_and_boxes_are_put_in_order_inside_the_image():
    steps = parse_steps([{"point": [3.7, 4]}, {"point": [0, 9], "inside": False}, {"box": [30, 5, -2, 1]}], 10, 20)

    assert steps == (Point(3, 4, True), Point(0, 9, False), Box(0, 1, 20, 5))
    assert parse_steps([{"point": [3, 4], "mask": 2}], 10, 20) == (Point(3, 4, True, mask=2),)
    found = {"found": {"box": [3.5, 1, 9, 8.25], "point": [6.25, 4.5]}}
    assert parse_steps([found, {"point": [3, 4]}], 10, 20) == (
        Found(Box(3.5, 1, 9, 8.25), 6.25, 4.5),
        Point(3, 4, True),
    )


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "list of points"),
        ([], "list of points"),
        ([{"point": [20, 3]}], "outside of the image of 20 x 10 pixels"),
        ([{"point": [-0.5, 3]}], "outside"),
        ([{"point": [1, 2, 3]}], "expected 2 numbers"),
        ([{"point": ["1", 2]}], "expected 2 numbers"),
        ([{"point": [float("nan"), 2]}], "expected 2 numbers"),
        ([{"point": [True, 2]}], "expected 2 numbers"),
        ([{"box": [1, 2, 3]}], "expected 4 numbers"),
        ([{"box": [25, 0, 40, 8]}], "at least one pixel"),
        ([{"box": [0, 0, 5, 5]}, {"box": [0, 0, 6, 6]}], "one box at most"),
        ([{"found": {"box": [0, 0, 5, 5], "point": [6, 3]}}], "lies in its box"),
        ([{"found": {"box": [30, 30, 35, 35], "point": [32, 32]}}], "lies in its box"),
        ([{"found": {"box": [0, 0, 5, 5]}}], "expected 2 numbers"),
        ([{"found": [0, 0, 5, 5]}], "a point or a box"),
        ([{"point": [1, 2]}, {"found": {"box": [0, 0, 5, 5], "point": [3, 3]}}], "a proposal is the first step"),
        ([{"found": {"box": [0, 0, 5, 5], "point": [3, 3]}}, {"box": [0, 0, 5, 5]}], "one box at most"),
        ([{"circle": [1, 2]}], "a point or a box"),
        (["point"], "a point or a box"),
        ([{"point": [1, 2], "mask": 0}], "mask must be one of 1, 2, 3"),
        ([{"point": [1, 2], "mask": 4}], "mask must be"),
        ([{"point": [1, 2], "mask": True}], "mask must be"),
        ([{"point": [1, 2], "mask": [1]}], "mask must be"),
        ([{"point": [1, 1]}] * (MOST_STEPS + 1), f"more than {MOST_STEPS}"),
    ],
)
def test_parse__says_what_makes_no_sense(content, complaint):
    with pytest.raises(StepError, match=complaint):
        parse_steps(content, 10, 20)


def test_arguments__are_one_prompt_of_points_and_box():
    arguments = build_arguments((Point(3, 4, True), Box(0, 1, 20, 5), Point(0, 9, False)))

    np.testing.assert_array_equal(arguments["points"], [[[3, 4], [0, 9]]])
    np.testing.assert_array_equal(arguments["point_labels"], [[1, 0]])
    np.testing.assert_array_equal(arguments["boxes"], [[0, 1, 20, 5]])
    assert set(build_arguments((Box(0, 1, 20, 5),))) == {"boxes"}


def test_description__is_that_of_predictions():
    described = describe_steps((Point(3, 4, True), Box(0, 1, 20, 5), Point(0, 9, False)))

    assert described == {"box": [0, 1, 20, 5], "points": [[3, 4], [0, 9]], "point_labels": [1, 0]}
    assert describe_steps((Point(3, 4, True, mask=2),)) == {"points": [[3, 4]], "point_labels": [1], "mask": 2}
