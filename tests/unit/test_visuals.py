"""Pictures: the right colours in the right places."""

import numpy as np
import pytest
from PIL import Image

from vpexp.data.masks import encode_mask
from vpexp.visuals import (
    BACKGROUND,
    CAPTION_HEIGHT,
    GAP,
    MAX_SIDE,
    MIN_SIDE,
    POINT_COLORS,
    PROMPT_COLOR,
    Panel,
    build_legend,
    choose_colors,
    color_of,
    draw_comparison,
    draw_panels,
    draw_prediction,
    name_picture,
    save_picture,
    split_comparison,
)

BOX_LABELS = np.array([2, 3], np.float32)


def area(shape, top, left, bottom, right):
    mask_HW = np.zeros(shape, dtype=bool)
    mask_HW[top:bottom, left:right] = True
    return mask_HW


def draw(shape=(480, 640), annotated=(), predicted=(), prompts=()):
    """The two sides without their captions."""
    image_HW3 = np.full((*shape, 3), 100, np.uint8)
    sheet = np.asarray(draw_comparison(image_HW3, annotated, predicted, prompts, ("truth", "model")))
    width = (sheet.shape[1] - GAP) // 2
    return sheet[CAPTION_HEIGHT:, :width], sheet[CAPTION_HEIGHT:, width + GAP :]


def test_draw__objects_of_several_classes_have_the_colours_of_the_legend():
    image_HW3, labels_N = np.full((480, 640, 3), 100, np.uint8), np.array([2, 0])
    masks = [area((480, 640), 100, 100, 200, 300), area((480, 640), 300, 50, 350, 150)]
    legend = build_legend(["cat", "dog", "eel"])

    colors = choose_colors(labels_N, 3)
    left = draw_comparison(image_HW3, masks, masks, [], ("", ""), colors=colors)
    alone = draw_prediction(image_HW3, masks, [], "", colors=colors)

    for sheet in (left, alone):
        shown = [sheet.getpixel((int(x), int(y) + CAPTION_HEIGHT)) for y, x in (np.argwhere(mask)[0] for mask in masks)]
        assert ["#{:02x}{:02x}{:02x}".format(*color) for color in shown] == [legend[2][1], legend[0][1]]
    assert choose_colors(labels_N, 1) is None
    assert build_legend(["cat"]) == []


def test_color_of__neighbours_differ():
    colors = np.array([color_of(i) for i in range(12)])
    assert ((colors >= 0) & (colors <= 255)).all()
    assert min(np.abs(a - b).sum() for i, a in enumerate(colors) for b in colors[:i]) > 60


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((480, 640), (480, 640)),
        ((64, 48), (64 * 8, 48 * 8)),
        ((1000, 2000), (MAX_SIDE // 2, MAX_SIDE)),
        ((5000, 10), (MAX_SIDE, 2)),
        ((400, 400), (400, 400)),
    ],
)
def test_draw_comparison__size(shape, size):
    left, right = draw(shape)
    assert left.shape[:2] == right.shape[:2] == size
    assert max(size) <= MAX_SIDE
    assert max(size) >= min(MIN_SIDE // 2, max(shape))


def test_draw_comparison__masks_are_on_their_sides():
    masks = [area((480, 640), 100, 100, 200, 300), area((480, 640), 300, 50, 350, 150)]
    moved = [area((480, 640), 110, 120, 200, 300), np.zeros((480, 640), dtype=bool)]
    left, right = draw(annotated=masks, predicted=moved)
    for index, mask_HW in enumerate(masks):
        assert (left[mask_HW] != 100).any(axis=1).all()
        assert left[mask_HW][0].tolist() == list(color_of(index))  # the outline is full colour
    assert (left[~(masks[0] | masks[1])] == 100).all()
    assert (right[~moved[0]] == 100).all()
    assert (right[moved[0]] != 100).any(axis=1).all()
    tint = 0.58 * 100 + 0.42 * np.array(color_of(0))
    np.testing.assert_allclose(left[150, 200], tint, atol=1)
    np.testing.assert_allclose(right[150, 200], tint, atol=1)  # one colour on both sides


@pytest.mark.parametrize(("shape", "scale"), [((480, 640), 1), ((64, 64), 8)])
def test_draw_comparison__box_is_drawn_on_its_outer_pixels(shape, scale):
    boxes = np.array([[10, 20, 50, 40], [0, 0, shape[1], shape[0]]], np.float32)
    _, right = draw(shape, prompts=[(box.reshape(2, 2), BOX_LABELS) for box in boxes])
    white = (right == PROMPT_COLOR).all(axis=2)
    top, left, bottom, far = 20 * scale, 10 * scale, 40 * scale - 1, 50 * scale - 1
    assert white[top, left : far + 1].all()
    assert white[bottom, left : far + 1].all()
    assert white[top : bottom + 1, left].all()
    assert white[top : bottom + 1, far].all()
    for border in (white[0], white[-1], white[:, 0], white[:, -1]):  # the box of the whole image is seen on all sides
        assert border.all()
    assert not white[(top + bottom) // 2, (left + far) // 2]


def test_draw_comparison__point_marks_the_middle_of_its_pixel():
    points = (np.array([[10, 20], [40, 30], [5, 5]], np.float32), np.array([1, 0, -1], np.float32))
    _, right = draw((64, 64), prompts=[points])
    changed = (right != 100).any(axis=2)
    red_green = [right[30 * 8 + 4, 40 * 8 + 4].tolist(), right[20 * 8 + 4, 10 * 8 + 4].tolist()]
    assert red_green == [list(color) for color in POINT_COLORS]
    assert not changed[5 * 8 : 6 * 8, 5 * 8 : 6 * 8].any()
    rows, columns = np.nonzero(changed[: 28 * 8])
    assert abs(rows.mean() - (20.5 * 8 - 0.5)) <= 1
    assert abs(columns.mean() - (10.5 * 8 - 0.5)) <= 1


def test_draw_comparison__caption_and_gap():
    image_HW3 = np.full((480, 640, 3), 100, np.uint8)
    sheet = np.asarray(draw_comparison(image_HW3, [], [], [], ("truth", "model")))
    assert sheet.shape == (480 + CAPTION_HEIGHT, 2 * 640 + GAP, 3)
    assert (sheet[:, 640 : 640 + GAP] == BACKGROUND).all()
    for start in (0, 640 + GAP):
        assert (sheet[:CAPTION_HEIGHT, start : start + 100] > 200).any()


def test_draw_comparison__masks_of_any_memory_order():
    mask_HW = area((480, 640), 100, 100, 200, 300)
    plain, turned = (draw(annotated=[m])[0] for m in (mask_HW, np.asfortranarray(mask_HW)))
    np.testing.assert_array_equal(plain, turned)


def test_save_picture__makes_its_folder(tmp_path):
    path = tmp_path / "a" / "b" / "c.png"
    save_picture(Image.new("RGB", (4, 3), (1, 2, 3)), path)
    with Image.open(path) as picture:
        assert picture.size == (4, 3)
        assert picture.getpixel((0, 0)) == (1, 2, 3)


def test_split_comparison__gives_both_sides_and_their_captions_back(tmp_path):
    mask_HW = area((480, 640), 100, 100, 200, 300)
    sheet = draw_comparison(np.full((480, 640, 3), 100, np.uint8), [mask_HW], [], [], ("wahr: ä", "F1 0.5"))
    save_picture(sheet, tmp_path / "a.png")

    (left, left_caption), (right, right_caption) = split_comparison(tmp_path / "a.png")

    expected_left, expected_right = draw(annotated=[mask_HW])
    np.testing.assert_array_equal(np.asarray(left), expected_left)
    np.testing.assert_array_equal(np.asarray(right), expected_right)
    assert (left_caption, right_caption) == ("wahr: ä", "F1 0.5")


# ---------------------------------------------------------------- predictions without annotation


def test_draw_prediction__masks_prompts_and_caption():
    image_HW3 = np.full((480, 640, 3), 100, np.uint8)
    masks = [area((480, 640), 100, 100, 300, 300), area((480, 640), 150, 150, 200, 200)]
    box = (np.array([[100, 100], [300, 300]], np.float32), BOX_LABELS)
    sheet = np.asarray(draw_prediction(image_HW3, (mask for mask in masks), iter([box]), "two masks"))
    assert sheet.shape == (480 + CAPTION_HEIGHT, 640, 3)
    picture = sheet[CAPTION_HEIGHT:]
    assert picture[150, 150].tolist() == list(color_of(1))  # the later mask lies above the earlier one
    assert picture[100, 100].tolist() == list(PROMPT_COLOR)
    assert (picture[~masks[0]] == 100).all()
    assert (sheet[:CAPTION_HEIGHT, :100] > 200).any()


@pytest.mark.parametrize("shape", [(480, 640), (90, 50), (2000, 1501)])
def test_draw_prediction__compressed_masks_are_drawn_as_they_are_expanded(shape):
    height, width = shape
    image_HW3 = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:height, :width]
    masks = [
        np.hypot(rows - height / 2, columns - width / 3) < height / 5,
        area(shape, 0, width - 9, 7, width),
        (rows + columns) % 37 == 0,
        area(shape, 5, 5, 6, 6),
        np.zeros(shape, bool),
    ]
    drawn = [draw_prediction(image_HW3, shown, [], "") for shown in (masks, map(encode_mask, masks))]
    np.testing.assert_array_equal(*map(np.asarray, drawn))


def test_draw_prediction__a_small_mask_of_a_large_image_lies_where_it_should():
    image_HW3 = np.zeros((9000, 6000, 3), np.uint8)
    mask_HW = area((9000, 6000), 4500, 1000, 4700, 1300)
    picture = np.asarray(draw_prediction(image_HW3, [encode_mask(mask_HW)], [], ""))[CAPTION_HEIGHT:]
    rows, columns = np.nonzero(picture.any(axis=2))
    scale = MAX_SIDE / 9000
    np.testing.assert_allclose([rows.min(), columns.min()], [4500 * scale, 1000 * scale], atol=1)
    np.testing.assert_allclose([rows.max() + 1, columns.max() + 1], [4700 * scale, 1300 * scale], atol=1)


def test_draw_prediction__nothing_found_is_the_image():
    image_HW3 = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    sheet = np.asarray(draw_prediction(image_HW3, [], [], "0 masks"))
    np.testing.assert_array_equal(sheet[CAPTION_HEIGHT:], image_HW3)


def test_draw_prediction__narrow_image_has_its_whole_caption():
    image_HW3 = np.full((900, 100, 3), 100, np.uint8)
    caption = "23 masks from 23 prompts, mean predicted IoU 0.639"
    narrow, wide = (
        np.asarray(draw_prediction(image, [], [], caption))[:CAPTION_HEIGHT]
        for image in (image_HW3, np.full((900, 900, 3), 100, np.uint8))
    )
    np.testing.assert_array_equal(narrow, wide[:, : narrow.shape[1]])
    assert (wide[:, narrow.shape[1] :] == BACKGROUND).all()


def test_name_picture__unique_and_plain():
    taken = set()
    names = [name_picture(name, taken) for name in ("left/a", "left_a", "left a", "grün.v2", "b")]
    assert names == ["left_a", "left_a_2", "left_a_3", "grün.v2", "b"]
    assert taken == set(names)


def test_name_picture__short_enough_for_a_file(tmp_path):
    name = name_picture("葡萄" * 200, set())
    save_picture(Image.new("RGB", (4, 3)), tmp_path / f"test_{name}_99.png")
    assert set(name) == {"葡", "萄"}


def test_save_picture__is_never_there_by_half(tmp_path, monkeypatch):
    path = tmp_path / "a.png"

    def stop(self, file, **_):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        save_picture(Image.new("RGB", (4, 3)), path)
    assert list(tmp_path.iterdir()) == []


def test_draw_panels__side_by_side_with_a_legend_that_wraps():
    image_HW3 = np.full((480, 640, 3), 100, np.uint8)
    mask_HW = area((480, 640), 100, 100, 200, 300)
    panels = [
        Panel([mask_HW], [3], "annotated: 1 object"),
        Panel([], None, "auto: 0 masks"),
        Panel([mask_HW], None, "grid"),
    ]
    legend = build_legend([f"a class with a long name, number {number}" for number in range(12)])

    plain, explained = (np.asarray(draw_panels(image_HW3, panels, shown)) for shown in ((), legend))

    assert plain.shape == (480 + CAPTION_HEIGHT, 3 * 640 + 2 * GAP, 3)
    assert (explained[: len(plain)] == plain).all()
    lefts = [place * (640 + GAP) for place in range(3)]
    edges = [plain[CAPTION_HEIGHT + 100, left + 100].tolist() for left in lefts]
    assert edges == [list(color_of(3)), [100, 100, 100], list(color_of(0))]
    rows = (len(explained) - len(plain)) // CAPTION_HEIGHT
    assert 1 < rows < 12
    below = explained[len(plain) :].reshape(-1, 3)
    for label in range(12):
        assert (below == color_of(label)).all(axis=1).any()
