"""Pictures for people: ground truth beside prediction.

Legend: N objects of one image, H W size of the picture, h w of the part of it where a mask lies.
"""

import colorsys
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from vpexp.data.annotations import Region, Rle
from vpexp.data.masks import compute_box, decode_rle, move_mask
from vpexp.files import replacing

MAX_SIDE = 960
MIN_SIDE = 512
THINNED_SIDE = 4096
"""Images of twice as many pixels a side are drawn from every second row and column."""
GAP = 12
NAME_LENGTH = 200  # bytes of a picture's name, which file systems limit to 255
CAPTION_HEIGHT = 28
CAPTIONS = ("left caption", "right caption")  # names of the texts in the file
OPACITY = 0.42
BACKGROUND = (24, 24, 27)
TEXT_COLOR = (235, 235, 235)
FONT_SIZE = 15
PROMPT_COLOR = (255, 255, 255)
POINT_COLORS = ((255, 60, 60), (60, 220, 90))  # out, in
TOP_LEFT, BOTTOM_RIGHT = 2, 3  # point labels of box corners


Mask = NDArray[np.bool_] | Rle
"""A mask of the image's size: bool, or compressed, of which the part that has pixels alone is expanded."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One of several pictures of the same image.

    Attributes:
        masks: taken one by one; a later one is painted over an earlier one.
        colors: the colour of each, as ``color_of`` counts them; None: each has its own.
        caption: what stands above.
    """

    masks: Iterable[Mask]
    colors: Sequence[int] | None
    caption: str


def color_of(index: int) -> tuple[int, int, int]:
    """Choose the colour of an object: golden-angle steps around the hue circle, so that neighbours differ."""
    hue = (index * 0.61803398875 + 0.08) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 1.0)
    return int(red * 255), int(green * 255), int(blue * 255)


def choose_colors(labels_N: NDArray[np.int64], classes: int) -> list[int] | None:
    """Choose the colours of an image's objects: those of their classes; None, each its own, where there is one class."""
    return [int(label) for label in labels_N] if classes > 1 else None


def build_legend(categories: Sequence[str]) -> list[tuple[str, str]]:
    """List the classes and their colours, ``#rrggbb``; none where there is one class, see ``choose_colors``."""
    shown = categories if len(categories) > 1 else ()
    return [(name, "#{:02x}{:02x}{:02x}".format(*color_of(label))) for label, name in enumerate(shown)]


def draw_comparison(
    image_HW3: NDArray[np.uint8],
    annotated: Sequence[NDArray[np.bool_]],
    predicted: Sequence[NDArray[np.bool_]],
    prompts: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]],
    captions: tuple[str, str],
    *,
    colors: Sequence[int] | None = None,
) -> Image.Image:
    """Draw ground truth on the left, prediction and prompts on the right.

    Args:
        image_HW3: RGB uint8.
        annotated: bool masks of the image's size.
        predicted: the same, in the same order: an object has one colour on both sides.
        prompts: for each object its points [P, 2] (pixels of the image) and labels [P].
        captions: what stands above the two sides.
        colors: the colour of each object, as ``color_of`` counts them; None: each has its own.
    """
    scale = _choose_scale(image_HW3.shape[0], image_HW3.shape[1])
    sides = [_paint(image_HW3, masks, scale, colors) for masks in (annotated, predicted)]
    pen = ImageDraw.Draw(sides[1])
    for coords_P2, labels_P in prompts:
        _draw_prompt(pen, coords_P2, labels_P, scale)
    sheet = _put_side_by_side(sides, captions)
    sheet.info |= dict(zip(CAPTIONS, captions, strict=True))
    return sheet


def draw_panels(
    image_HW3: NDArray[np.uint8], panels: Sequence[Panel], legend: Sequence[tuple[str, str]] = ()
) -> Image.Image:
    """Draw several sets of masks over the same image, side by side, and what the colours mean below.

    Args:
        image_HW3: RGB uint8.
        panels: from left to right.
        legend: from ``build_legend``.
    """
    scale = _choose_scale(image_HW3.shape[0], image_HW3.shape[1])
    sides = [_paint(image_HW3, panel.masks, scale, panel.colors) for panel in panels]
    sheet = _put_side_by_side(sides, [panel.caption for panel in panels])
    if not legend:
        return sheet
    font = ImageFont.load_default(FONT_SIZE)
    places, x, y = [], 6, sheet.height
    for name, _ in legend:
        width = round(font.getlength(name)) + 2 * CAPTION_HEIGHT
        if x > 6 and x + width > sheet.width:
            x, y = 6, y + CAPTION_HEIGHT
        places.append((x, y))
        x += width
    explained = Image.new("RGB", (sheet.width, y + CAPTION_HEIGHT), BACKGROUND)
    explained.paste(sheet)
    pen = ImageDraw.Draw(explained)
    for (x, y), (name, color) in zip(places, legend, strict=True):
        pen.rectangle([x, y + 8, x + 12, y + 20], fill=color)
        pen.text((x + 18, y + 5), name, fill=TEXT_COLOR, font=font)
    return explained


def _put_side_by_side(sides: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Put pictures of one size next to each other, each below its caption."""
    width, height = sides[0].size
    sheet = Image.new("RGB", (len(sides) * (width + GAP) - GAP, height + CAPTION_HEIGHT), BACKGROUND)
    writer = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_SIZE)
    for place, (side, caption) in enumerate(zip(sides, captions, strict=True)):
        left = place * (width + GAP)
        sheet.paste(side, (left, CAPTION_HEIGHT))
        writer.text((left + 6, 5), caption, fill=TEXT_COLOR, font=font)
    return sheet


def draw_prediction(
    image_HW3: NDArray[np.uint8],
    predicted: Iterable[Mask],
    prompts: Iterable[tuple[NDArray[np.float32], NDArray[np.float32]]],
    caption: str,
    *,
    colors: Sequence[int] | None = None,
) -> Image.Image:
    """Draw what was predicted for an image without annotation, and the prompts.

    Args:
        image_HW3: RGB uint8.
        predicted: taken one by one; a later one is painted over an earlier one.
        prompts: for each prompt its points [P, 2] (pixels of the image) and labels [P].
        caption: what stands above.
        colors: the colour of each mask, as ``color_of`` counts them; None: each has its own.
    """
    scale = _choose_scale(image_HW3.shape[0], image_HW3.shape[1])
    picture = _paint(image_HW3, predicted, scale, colors)
    pen = ImageDraw.Draw(picture)
    for coords_P2, labels_P in prompts:
        _draw_prompt(pen, coords_P2, labels_P, scale)
    font = ImageFont.load_default(FONT_SIZE)
    width = max(picture.width, 12 + round(font.getlength(caption)))  # a narrow image would cut the caption off
    sheet = Image.new("RGB", (width, picture.height + CAPTION_HEIGHT), BACKGROUND)
    sheet.paste(picture, (0, CAPTION_HEIGHT))
    ImageDraw.Draw(sheet).text((6, 5), caption, fill=TEXT_COLOR, font=font)
    return sheet


def name_picture(name: str, taken: set[str]) -> str:
    """Name the picture of an image: letters, digits, dots and dashes only, unique, and short enough for a file.

    Args:
        name: the image's name without its suffix; folders (``left/a``) become a part of it.
        taken: the names given so far; the new one is added.

    Returns:
        ``left_a``, or with a number where that is taken.
    """
    name = re.sub(r"[^\w.-]", "_", name).encode()[:NAME_LENGTH].decode(errors="ignore")
    candidates = (name if number == 1 else f"{name}_{number}" for number in itertools.count(1))
    chosen = next(candidate for candidate in candidates if candidate not in taken)
    taken.add(chosen)
    return chosen


def split_comparison(path: Path) -> list[tuple[Image.Image, str]]:
    """Take a saved comparison apart: its two sides, as RGB, without the captions drawn above, and what these say."""
    with Image.open(path, formats=("PNG",)) as sheet:
        width = (sheet.width - GAP) // 2
        lefts = (0, width + GAP)
        sides = [sheet.crop((left, CAPTION_HEIGHT, left + width, sheet.height)).convert("RGB") for left in lefts]
        return [(side, str(sheet.info.get(key, ""))) for side, key in zip(sides, CAPTIONS, strict=True)]


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG, its folder included, never by half; the captions of a comparison go into it as text too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = PngImagePlugin.PngInfo()
    for key in CAPTIONS:
        if key in picture.info:
            texts.add_itxt(key, picture.info[key])
    with replacing(path) as draft:
        picture.save(draft, format="png", pnginfo=texts)  # optimize takes seven times as long for 2 % less


def _choose_scale(height: int, width: int) -> float:
    longest = max(height, width)
    if longest > MAX_SIDE:
        return MAX_SIDE / longest
    return float(max(1, round(MIN_SIDE / longest)))


def _paint(
    image_HW3: NDArray[np.uint8], masks: Iterable[Mask], scale: float, colors: Sequence[int] | None
) -> Image.Image:
    height, width = image_HW3.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
    step = max(1, max(height, width) // THINNED_SIDE)
    picture = Image.fromarray(image_HW3[::step, ::step]).resize(size, how)
    shown_x, shown_y = (_choose_pixels(length, count) for length, count in zip((width, height), size, strict=True))
    for index, mask in enumerate(masks):
        part_hw, region = _cut_out(mask)
        left, right = np.searchsorted(shown_x, [region.left, region.right]).tolist()
        top, bottom = np.searchsorted(shown_y, [region.top, region.bottom]).tolist()
        small_hw = part_hw[np.ix_(shown_y[top:bottom] - region.top, shown_x[left:right] - region.left)]
        rows, columns = (np.flatnonzero(small_hw.any(axis)) for axis in (1, 0))
        if not len(rows):
            continue
        inside = small_hw[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        around = np.pad(inside, 1)
        edge = inside & ~(around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:])
        color = color_of(index if colors is None else colors[index])
        opacity_hw = np.where(edge, 255, round(255 * OPACITY) * inside).astype(np.uint8)
        picture.paste(color, (left + int(columns[0]), top + int(rows[0])), Image.fromarray(opacity_hw))
    return picture


def _choose_pixels(length: int, count: int) -> NDArray[np.int64]:
    """Choose the pixels of a side that are shown, each the nearest to the middle of one of the picture's."""
    return ((2 * np.arange(count) + 1) * length) // (2 * count)


def _cut_out(mask: Mask) -> tuple[NDArray[np.bool_], Region]:
    """Cut out the part of a mask that has pixels; of one that is not compressed all of it."""
    if isinstance(mask, np.ndarray):
        return mask, Region(0, 0, mask.shape[0], mask.shape[1])
    left, top, right, bottom = compute_box(mask).astype(int).tolist()
    return decode_rle(move_mask(mask, top, left, bottom - top, right - left)), Region(top, left, bottom, right)


def _draw_prompt(
    pen: ImageDraw.ImageDraw, coords_P2: NDArray[np.float32], labels_P: NDArray[np.float32], scale: float
) -> None:
    places = {int(label): place for place, label in zip(coords_P2, labels_P, strict=True)}
    if TOP_LEFT in places and BOTTOM_RIGHT in places:
        # A box is the outer edges of its pixels: its last drawn pixel lies before the right and bottom edge.
        left, top = (places[TOP_LEFT] * scale).tolist()
        right, bottom = (places[BOTTOM_RIGHT] * scale - 1).tolist()
        pen.rectangle([left, top, max(left, right), max(top, bottom)], outline=PROMPT_COLOR, width=1)
    for (column, row), label in zip(coords_P2.tolist(), labels_P.tolist(), strict=True):
        if label in (0, 1):
            x, y = (column + 0.5) * scale, (row + 0.5) * scale  # a point names a pixel: its centre
            pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=POINT_COLORS[int(label)], outline=PROMPT_COLOR)
