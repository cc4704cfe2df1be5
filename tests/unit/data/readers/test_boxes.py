import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpexp.data.readers.base import compute_box_area, compute_box_iou, compute_intersection

BOXES = st.tuples(*[st.integers(-10, 10)] * 4)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0, 0, 4, 4), (0, 0, 4, 4), 1.0),
        ((0, 0, 4, 4), (2, 0, 6, 4), 8 / 24),
        ((0, 0, 4, 4), (4, 0, 6, 4), 0.0),
        ((1, 1, 1, 1), (1, 1, 1, 1), 0.0),
    ],
)
def test_compute_box_iou__by_hand(first, second, expected):
    assert compute_box_iou(first, second) == pytest.approx(expected)


@given(BOXES, BOXES)
def test_compute_box_iou__symmetric_and_bounded(first, second):
    assert compute_box_iou(first, second) == compute_box_iou(second, first)
    assert 0 <= compute_box_iou(first, second) <= 1 or compute_box_area(first) * compute_box_area(second) == 0
    assert compute_intersection(first, second) >= 0
