"""Scenes of shapes: the most varied ground we can draw, for a model that has to learn to look.

What tells an object from its ground changes from object to object: colour, light, only its texture, only its outline.
A share of the scenes looks like microscopy (see ``microscopy.py``).

Shapes: H W size of the image, h w size of an object's patch.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image as PilImage
from PIL import ImageDraw, ImageFilter

from vpexp.synthetic.canvas import Canvas, Field, Scene, SceneDrawer, draw_enough
from vpexp.synthetic.microscopy import draw_microscopy
from vpexp.synthetic.outlines import OUTLINES, rasterize_outline, rotation, transform_outline
from vpexp.synthetic.textures import FIELDS, blur_field, develop, draw_noise, mix_colors

MICROSCOPY_SHARE = 0.25
MIN_OBJECTS = 4
_CATEGORIES = (*OUTLINES, "cell")
_OUTLINE_DRAWERS = tuple(OUTLINES.values())
# fields by how often a ground or an object wears them
_GROUND_FIELDS = (
    "flat",
    "gradient",
    "gradient",
    "grain",
    "clouds",
    "clouds",
    "clouds",
    "stripes",
    "checker",
    "dots",
    "rings",
    "patches",
    "patches",
    "speckles",
)
_FILL_FIELDS = (
    "flat",
    "flat",
    "flat",
    "gradient",
    "gradient",
    "grain",
    "clouds",
    "clouds",
    "stripes",
    "checker",
    "dots",
    "rings",
    "patches",
    "speckles",
)
_TEXTURE_FIELDS = ("grain", "clouds", "stripes", "checker", "dots", "rings", "speckles")


@dataclass(frozen=True, slots=True)
class _Style:
    """What the objects of one image share.

    Attributes:
        palette: colours to choose from; None draws a new one for each object.
        outlines: indices into the outlines that occur in this image.
        shadow: opacity of the soft shadow, 0 for none.
        shadow_shift: how far it falls, as a share of the object's size, (y, x).
        contrast: the least distance between the colours of an object and its ground.
    """

    palette: Field | None
    outlines: tuple[int, ...]
    shadow: float
    shadow_shift: tuple[float, float]
    contrast: float


def draw_shapes(rng: np.random.Generator, height: int, width: int) -> Scene:
    """Draw 4 to 20 objects of many shapes and fills over a textured ground, or cells as a microscope shows them.

    Returns:
        The image and the visible part of each object; labels index ``SHAPES.categories``.
    """
    return draw_enough(_draw_any, rng, height, width, least=MIN_OBJECTS)


SHAPES = SceneDrawer(_CATEGORIES, draw_shapes)


def _draw_any(rng: np.random.Generator, height: int, width: int) -> Scene:
    if rng.random() < MICROSCOPY_SHARE:
        return draw_microscopy(rng, height, width, label=len(_CATEGORIES) - 1)
    canvas = Canvas(_draw_ground(rng, height, width))
    style = _draw_style(rng)
    low, high = np.log(max(8.0, min(height, width) / 32)), np.log(0.5 * min(height, width))
    sizes = np.exp(rng.uniform(low, max(low, high), int(rng.integers(6, 22))))
    if rng.random() < 0.7:  # the small ones in front, or most of them would be hidden
        sizes = np.sort(sizes)[::-1]
    for size in sizes:
        _paint_object(rng, canvas, style, float(size))
    return canvas.finish(develop(rng, canvas.color_HW3))


def draw_color(rng: np.random.Generator) -> Field:
    """Draw an RGB colour, now and then nearly grey."""
    color = rng.random(3).astype(np.float32)
    return color.mean() + (color - color.mean()) * rng.uniform(0, 0.4) if rng.random() < 0.25 else color


def _draw_ground(rng: np.random.Generator, height: int, width: int) -> Field:
    color_a, color_b = draw_color(rng), draw_color(rng)
    # a calm ground is as common as a loud one
    color_b = color_a + (color_b - color_a) * rng.uniform(0.1, 1.0)
    field = FIELDS[str(rng.choice(_GROUND_FIELDS))](rng, height, width)
    ground = mix_colors(field, color_a, color_b)
    if rng.random() < 0.4:
        second = FIELDS[str(rng.choice(_GROUND_FIELDS))](rng, height, width)
        ground += (rng.uniform(0.2, 0.6) * second)[..., None] * (draw_color(rng) - ground)
    if rng.random() < 0.35:
        _draw_strokes(rng, ground)
    return ground


def _draw_strokes(rng: np.random.Generator, ground_HW3: Field) -> None:
    """Scratch the ground with lines and arcs that are no objects."""
    height, width = ground_HW3.shape[:2]
    for _ in range(int(rng.integers(1, 3))):
        image = PilImage.new("L", (width, height))
        draw = ImageDraw.Draw(image)
        opacity = int(rng.integers(80, 256))
        for _ in range(int(rng.integers(2, 14))):
            x0, y0, x1, y1 = rng.uniform(-0.1, 1.1, 4) * (width, height, width, height)
            line_width = int(rng.integers(1, max(2, min(height, width) // 64) + 1))
            if rng.random() < 0.6:
                draw.line((x0, y0, x1, y1), fill=opacity, width=line_width)
            else:
                box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
                draw.arc(box, rng.uniform(0, 360), rng.uniform(0, 360), fill=opacity, width=line_width)
        alpha = np.asarray(image, np.float32)[..., None] / 255
        ground_HW3 += alpha * (draw_color(rng) - ground_HW3)


def _draw_style(rng: np.random.Generator) -> _Style:
    palette = None
    if rng.random() < 0.45:
        palette = np.stack([draw_color(rng) for _ in range(int(rng.integers(1, 4)))])
    kinds = tuple(range(len(OUTLINES)))
    if rng.random() < 0.3:  # an image of few kinds, so that neighbours look alike
        kinds = tuple(int(kind) for kind in rng.choice(kinds, int(rng.integers(1, 4)), replace=False))
    shadow = rng.uniform(0.2, 0.6) if rng.random() < 0.3 else 0.0
    shift = rng.uniform(-0.12, 0.12, 2)
    contrast = 0.12 if rng.random() < 0.2 else 0.3
    return _Style(palette, kinds, shadow, (float(shift[0]), float(shift[1])), contrast)


def _paint_object(rng: np.random.Generator, canvas: Canvas, style: _Style, size: float) -> None:
    kind = style.outlines[int(rng.integers(len(style.outlines)))]
    stretch = np.diag([1.0, np.exp(rng.uniform(-0.5, 0.3))])
    matrix = rotation(rng.uniform(0, 2 * math.pi)) @ stretch @ rotation(rng.uniform(0, 2 * math.pi))
    outline = transform_outline(_OUTLINE_DRAWERS[kind](rng), matrix)
    alpha = rasterize_outline(outline, size, supersampling=2 if size > 48 else 4)
    top, left = _place(rng, canvas, *alpha.shape)
    cut = canvas.window(top, left, *alpha.shape)
    if cut is None:
        return
    rows, columns, patch_rows, patch_columns = cut
    below = canvas.color_HW3[rows, columns]
    weight = alpha[patch_rows, patch_columns]
    if not weight.any():
        return
    mean = np.tensordot(weight, below, 2) / weight.sum()
    color = _draw_fill(rng, style, alpha.shape, mean)
    if rng.random() < 0.3:
        color = _shade(rng, color, alpha, size)
    color = _draw_outline(rng, color, alpha, size) if rng.random() < 0.22 else color
    if style.shadow:
        shift_y, shift_x = (round(share * size) for share in style.shadow_shift)
        shadow = np.pad(alpha, 4)
        canvas.darken(blur_field(shadow, min(4, 0.06 * size)) * style.shadow, top - 4 + shift_y, left - 4 + shift_x)
    if size > 24 and rng.random() < 0.2:
        alpha = blur_field(alpha, rng.uniform(0.4, 1.2))
    canvas.paint(alpha, color, top, left, owner=canvas.begin_object(kind))


def _place(rng: np.random.Generator, canvas: Canvas, height: int, width: int) -> tuple[int, int]:
    """Find a place for a patch: of a few random ones, one that hides little; it may stand out of the image."""
    canvas_height, canvas_width = canvas.size
    top = left = 0
    tolerance = rng.uniform(0, 0.5)
    for _ in range(5):
        top = int(rng.integers(-height // 4, max(1, canvas_height - 3 * height // 4)))
        left = int(rng.integers(-width // 4, max(1, canvas_width - 3 * width // 4)))
        owners = canvas.owner_HW[max(0, top) : top + height : 3, max(0, left) : left + width : 3]
        if owners.size and np.count_nonzero(owners >= 0) <= tolerance * owners.size:
            break
    return top, left


def _draw_fill(rng: np.random.Generator, style: _Style, shape: tuple[int, int], mean: Field) -> Field:
    """Draw an object's colours [h, w, 3], given the mean colour of what it hides."""
    kind = rng.random() if max(shape) >= 20 else rng.uniform(0.2, 1)  # texture needs room to show
    if kind < 0.15:  # only the texture differs: both colours lie as far from the ground's mean, on either side
        amplitude = (draw_color(rng) - 0.5) * rng.uniform(0.3, 0.7)
        amplitude += 0.12 * np.sign(amplitude.sum() + 1e-6)
        field = FIELDS[str(rng.choice(_TEXTURE_FIELDS))](rng, *shape)
        return mix_colors(field, mean - amplitude, mean + amplitude)
    if kind < 0.3:  # low contrast
        direction = draw_color(rng) - 0.5
        length = max(float(np.linalg.norm(direction)), 1e-3)
        color = mean + direction * (rng.uniform(0.12, 0.25) / length)
        return mix_colors(FIELDS[str(rng.choice(_FILL_FIELDS))](rng, *shape), color, color * 0.9)
    color_a = _draw_distinct(rng, style, mean)
    if kind < 0.45:
        grain = draw_noise(rng, *shape, rng.uniform(1, 3)) - 0.5
        return color_a + (grain * rng.uniform(0.05, 0.4))[..., None]
    color_b = color_a + (draw_color(rng) - color_a) * rng.uniform(0.1, 1.0)
    return mix_colors(FIELDS[str(rng.choice(_FILL_FIELDS))](rng, *shape), color_a, color_b)


def _draw_distinct(rng: np.random.Generator, style: _Style, mean: Field) -> Field:
    """Draw a colour that differs from the ground's mean by at least the style's contrast."""
    color = draw_color(rng)
    for _ in range(8):
        if style.palette is not None:
            color = style.palette[int(rng.integers(len(style.palette)))] + rng.normal(0, 0.03, 3).astype(np.float32)
        if float(np.linalg.norm(color - mean)) >= style.contrast:
            return color
        if style.palette is None:
            color = draw_color(rng)
    return np.where(mean > 0.5, mean - 0.3, mean + 0.3).astype(np.float32)


def _shade(rng: np.random.Generator, color_hw3: Field, alpha_hw: Field, size: float) -> Field:
    """Make an object look round: its blurred coverage is a height, lit from one side or dark at the rim."""
    height_field = blur_field(alpha_hw, max(1.0, 0.1 * size))
    strength = rng.uniform(0.3, 0.9)
    light: Field
    if rng.random() < 0.4:
        light = np.clip(1 - 1.6 * strength * (1 - height_field), 0.1, 1)
    else:
        angle = rng.uniform(0, 2 * math.pi)
        slope = math.cos(angle) * np.gradient(height_field, axis=1) + math.sin(angle) * np.gradient(
            height_field, axis=0
        )
        light = np.clip(1 + 0.25 * size * strength * slope, 0.2, 2)
    shaded: Field = color_hw3 * light[..., None]
    return shaded


def _draw_outline(rng: np.random.Generator, color_hw3: Field, alpha_hw: Field, size: float) -> Field:
    """Draw the rim of an object in another colour; the rim belongs to the object."""
    image = PilImage.fromarray((alpha_hw * 255).astype(np.uint8))
    inner = np.asarray(image.filter(ImageFilter.MinFilter(3 if size < 64 else 5)), np.float32) / 255
    rim = (1 - inner)[..., None]
    rimmed: Field = color_hw3 + rim * (draw_color(rng) - color_hw3)
    return rimmed
