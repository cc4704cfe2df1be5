"""Where the next click falls, against a plain walk over the pixels."""

import numpy as np
import pytest

from vpexp.data.clicks import Click, draw_next_click, find_deepest_pixel, find_next_click

HEIGHT, WIDTH = 13, 17


def list_components(mask_HW):
    """Flood fill from pixel to pixel: lists of (row, column), in the order of their first pixels."""
    left = {(int(row), int(column)) for row, column in np.argwhere(mask_HW)}
    components = []
    for start in sorted(left):
        if start not in left:
            continue
        left.discard(start)
        found, queue = [start], [start]
        while queue:
            row, column = queue.pop()
            for pixel in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if pixel in left:
                    left.discard(pixel)
                    queue.append(pixel)
                    found.append(pixel)
        components.append(found)
    return components


def measure_depth(pixel, inside):
    """The distance to the nearest pixel outside, those around the image among them."""
    outside = [
        (row, column) for row in range(-1, HEIGHT + 1) for column in range(-1, WIDTH + 1) if (row, column) not in inside
    ]
    return min((pixel[0] - row) ** 2 + (pixel[1] - column) ** 2 for row, column in outside) ** 0.5


def click_slowly(predicted_HW, annotated_HW):
    errors = [(True, c) for c in list_components(annotated_HW & ~predicted_HW)]
    errors += [(False, c) for c in list_components(predicted_HW & ~annotated_HW)]
    if not errors:
        return None
    is_inside, largest = max(errors, key=lambda error: len(error[1]))  # the first of equals
    inside = set(largest)
    row, column = max(sorted(largest), key=lambda pixel: measure_depth(pixel, inside))
    return Click(row, column, is_inside)


@pytest.mark.parametrize("seed", range(12))
def test_find_next_click__equals_a_walk_over_the_pixels(seed):
    rng = np.random.default_rng(seed)
    density = rng.uniform(0.1, 0.9, 2)
    predicted_HW, annotated_HW = (np.kron(rng.random((7, 9)) < share, np.ones((2, 2), bool)) for share in density)
    predicted_HW, annotated_HW = predicted_HW[:HEIGHT, :WIDTH], annotated_HW[:HEIGHT, :WIDTH]
    expected = click_slowly(predicted_HW, annotated_HW)
    found = find_next_click(predicted_HW, annotated_HW)
    assert found == expected
    assert found is not None
    assert annotated_HW[found.row, found.column] == found.is_inside != predicted_HW[found.row, found.column]


def test_find_next_click__ties():
    empty = np.zeros((6, 12), dtype=bool)
    spot = empty.copy()
    spot[1, 1] = spot[1, 9] = spot[4, 4] = True
    assert find_next_click(empty, spot) == Click(1, 1, is_inside=True)  # of equal ones the first in row order
    extra = empty.copy()
    extra[0, 5] = True
    assert find_next_click(extra, spot) == Click(1, 1, is_inside=True)  # a missed one before one too much
    extra[0, 6] = True
    assert find_next_click(extra, spot) == Click(0, 5, is_inside=False)  # and the larger one before both
    touching = empty.copy()
    touching[1, 1] = touching[2, 2] = touching[4, 8] = touching[4, 9] = True  # corners do not connect
    assert find_next_click(empty, touching) == Click(4, 8, is_inside=True)


def test_find_next_click__no_error_no_click():
    mask_HW = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.5
    assert find_next_click(mask_HW, mask_HW) is None
    assert draw_next_click(mask_HW, mask_HW, 0.5) is None
    nothing = np.zeros((0, 0), dtype=bool)
    assert find_next_click(nothing, nothing) is None


def test_find_next_click__border_is_outline():
    everything = np.ones((5, 9), dtype=bool)
    assert find_next_click(~everything, everything) == Click(2, 2, is_inside=True)
    assert find_deepest_pixel(everything) == (2, 2)


@pytest.mark.parametrize("seed", range(4))
def test_draw_next_click__lies_in_the_deep_half_of_the_deeper_error(seed):
    rng = np.random.default_rng(seed)
    predicted_HW, annotated_HW = (np.kron(rng.random((5, 6)) < 0.5, np.ones((3, 3), bool)) for _ in range(2))
    missed, extra = annotated_HW & ~predicted_HW, predicted_HW & ~annotated_HW
    clicks = {draw_next_click(predicted_HW, annotated_HW, draw) for draw in np.linspace(0, 1, 500)}
    (is_inside,) = {click.is_inside for click in clicks}
    error_HW = missed if is_inside else extra
    assert find_deepest_pixel(error_HW) in {(click.row, click.column) for click in clicks}
    assert all(error_HW[click.row, click.column] for click in clicks)
    assert 1 < len(clicks) < error_HW.sum()
