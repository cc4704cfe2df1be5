from datumaro import Bbox, Points, Polygon

from vpexp.data.readers.datumaro import group_annotations

LEFT, RIGHT = [0, 0, 4, 0, 4, 4, 0, 4], [10, 0, 14, 0, 14, 4, 10, 4]


def describe(groups):
    return [(len(group.parts), len(group.boxes), len(group.others)) for group in groups]


def test_group_annotations__by_group_number():
    left, right = Polygon(LEFT, group=3, label=0), Polygon(RIGHT, group=3, label=0)
    assert describe(group_annotations([left, Bbox(0, 0, 14, 4, group=3, label=0), right])) == [(2, 1, 0)]


def test_group_annotations__zero_is_no_group():
    assert describe(group_annotations([Polygon(LEFT, label=0), Polygon(RIGHT, label=0)])) == [(1, 0, 0), (1, 0, 0)]


def test_group_annotations__labels_tell_objects_apart():
    assert describe(group_annotations([Polygon(LEFT, group=1, label=0), Polygon(RIGHT, group=1, label=1)])) == [
        (1, 0, 0),
        (1, 0, 0),
    ]


def test_group_annotations__boxes_tell_objects_apart():
    annotations = [
        Polygon(RIGHT, group=1),
        Polygon(LEFT, group=1),
        Bbox(0, 0, 4, 4, group=1),
        Bbox(10, 0, 4, 4, group=1),
    ]
    groups = group_annotations(annotations)
    assert [group.parts[0].points[0] for group in groups] == [0, 10]


def test_group_annotations__smaller_box_wins_where_both_hold_a_part():
    annotations = [Polygon(LEFT, group=1), Bbox(0, 0, 14, 4, group=1), Bbox(0, 0, 4, 4, group=1)]
    assert describe(group_annotations(annotations)) == [(0, 1, 0), (1, 1, 0)]


def test_group_annotations__other_types():
    assert describe(group_annotations([Points([1, 1], group=1), Bbox(0, 0, 1, 1, group=1)])) == [(0, 1, 1)]
    assert group_annotations([]) == []
