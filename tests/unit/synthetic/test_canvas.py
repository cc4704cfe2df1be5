import numpy as np

from vpexp.synthetic.canvas import NO_OBJECT, Canvas


def _paint_square(canvas, owner, top, left, *, side=10):
    canvas.paint(np.ones((side, side), np.float32), np.ones(3, np.float32), top, left, owner=owner)


def _build_canvas():
    return Canvas(np.zeros((40, 40, 3), np.float32))


def test_paint__blends_by_opacity():
    canvas = _build_canvas()
    canvas.paint(np.full((2, 2), 0.25, np.float32), np.ones(3, np.float32), 0, 0)
    np.testing.assert_allclose(canvas.color_HW3[:2, :2], 0.25)
    assert not canvas.finish().masks


def test_paint__cuts_what_stands_out():
    canvas = _build_canvas()
    _paint_square(canvas, canvas.begin_object(3), -4, 35)
    scene = canvas.finish()
    assert scene.labels == [3]
    assert scene.masks[0][:6, 35:].all()
    assert scene.masks[0].sum() == 30


def test_paint__outside_changes_nothing():
    canvas = _build_canvas()
    _paint_square(canvas, canvas.begin_object(0), 60, -20)
    assert not canvas.color_HW3.any()
    assert not canvas.finish().masks


def test_finish__removes_what_is_hidden():
    canvas = _build_canvas()
    _paint_square(canvas, canvas.begin_object(0), 0, 0)
    _paint_square(canvas, canvas.begin_object(1), 0, 5)
    scene = canvas.finish()
    assert [int(mask.sum()) for mask in scene.masks] == [50, 100]
    assert not (scene.masks[0] & scene.masks[1]).any()


def test_finish__drops_objects_of_which_little_is_left():
    canvas = _build_canvas()
    _paint_square(canvas, canvas.begin_object(0), 0, 0, side=12)
    _paint_square(canvas, NO_OBJECT, 0, 0, side=11)
    _paint_square(canvas, canvas.begin_object(1), 20, 20, side=4)
    assert not canvas.finish().masks


def test_finish__one_object_of_two_parts_stays_one():
    canvas = _build_canvas()
    owner = canvas.begin_object(2)
    _paint_square(canvas, owner, 0, 0)
    _paint_square(canvas, owner, 20, 20)
    scene = canvas.finish()
    assert len(scene.masks) == 1
    assert scene.masks[0].sum() == 200


def test_darken__multiplies_colours_and_leaves_objects():
    canvas = _build_canvas()
    _paint_square(canvas, canvas.begin_object(0), 0, 0)
    canvas.darken(np.full((5, 5), 0.5, np.float32), 0, 0)
    np.testing.assert_allclose(canvas.color_HW3[:5, :5], 0.5)
    assert canvas.finish().masks[0].sum() == 100
