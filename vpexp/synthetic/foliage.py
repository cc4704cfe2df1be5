"""Vine leaves: five lobes, toothed rims, veins; each drawn once and painted many times.

Shapes: P points of an outline, h w size of a leaf's patch.
"""

import math

import numpy as np
from PIL import Image as PilImage
from PIL import ImageDraw

from vpexp.synthetic.canvas import NO_OBJECT, Canvas
from vpexp.synthetic.outlines import rotation
from vpexp.synthetic.scene import Field, Light, Points, Sprite
from vpexp.synthetic.textures import blur_field, draw_log_uniform, draw_octaves

# directions of the lobes' tips and of the bays between them, from the tip of the leaf, in degrees; and their radii
_LOBE_DEGREES = np.array([0, 27, 55, 84, 112, 150, 178])
_LOBE_RADII = np.array([1.0, 0.66, 0.93, 0.62, 0.78, 0.62, 0.16])
_VEIN_DEGREES = (0, 55, -55, 112, -112)
_SUPERSAMPLING = 2


def draw_leaves(rng: np.random.Generator, size: float, light: Light, count: int) -> list[Sprite]:
    """Draw a stock of leaves around one size, in pixels: greens, a few yellow or pale ones seen from below."""
    return [_draw_leaf(rng, size * draw_log_uniform(rng, 0.55, 1.6), light) for _ in range(count)]


def paint_leaf(
    rng: np.random.Generator,
    canvas: Canvas,
    leaf: Sprite,
    center: tuple[float, float],
    *,
    brightness: float,
    shadow: float = 0.0,
) -> None:
    """Paint a leaf around a centre (y, x); what it hides is no longer seen.

    Args:
        rng: says whether the leaf is mirrored.
        canvas: where to.
        leaf: one of ``draw_leaves``.
        center: pixels of the canvas.
        brightness: factor on the leaf's colours.
        shadow: opacity of the shadow that it throws on what is behind.
    """
    if rng.random() < 0.5:
        leaf = leaf.mirrored()
    height, width = leaf.size
    top, left = round(center[0] - height / 2), round(center[1] - width / 2)
    if shadow:
        drop = max(1, height // 14)
        canvas.darken(leaf.alpha_hw * shadow, top + 2 * drop, left + drop)
    canvas.paint(leaf.alpha_hw, leaf.color_hw3 * brightness, top, left, owner=NO_OBJECT)


def _build_leaf_outline(rng: np.random.Generator) -> Points:
    """Build the rim of a leaf whose stalk ends at the origin and whose tip points down (+y)."""
    angles = np.linspace(-178, 178, 120)
    radii = _LOBE_RADII * np.exp(rng.normal(0, 0.07, len(_LOBE_RADII)))
    # bays of different depth: some leaves are nearly round, some deeply cut
    radii[[1, 3]] += rng.uniform(-0.12, 0.16)
    radius = np.interp(np.abs(angles), _LOBE_DEGREES, radii)
    radius *= 1 + 0.07 * (((angles / 9) % 1) - 0.5) + rng.normal(0, 0.015, len(angles))
    direction = np.deg2rad(angles)
    rim: Points = np.stack([np.sin(direction), np.cos(direction)], axis=1) * radius[:, None]
    return rim


def _draw_leaf(rng: np.random.Generator, size: float, light: Light) -> Sprite:
    """Draw one leaf, ``size`` pixels wide before it is tilted."""
    # most hang with the tip down, turned away from the viewer by some angle
    tilt = np.diag([rng.uniform(0.55, 1.0), rng.uniform(0.6, 1.0)])
    matrix = tilt @ rotation(float(rng.normal(0, 0.7)))
    rim = _build_leaf_outline(rng) @ matrix * (size / 2)
    low, high = rim.min(axis=0) - 2, rim.max(axis=0) + 2
    width, height = (int(side) + 1 for side in high - low)
    pixels = ((rim - low) * _SUPERSAMPLING).ravel().tolist()
    image = PilImage.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    ImageDraw.Draw(image).polygon(pixels, fill=255)
    alpha = np.asarray(image.reduce(_SUPERSAMPLING), np.float32) / 255
    veins = _draw_veins(matrix * (size / 2), low, (width, height), size)
    color = _color_leaf(rng, alpha, veins, matrix=matrix, stalk=(-low[1], -low[0]), light=light)
    return Sprite(alpha, color)


def _draw_veins(matrix: Points, low: Points, size: tuple[int, int], leaf_size: float) -> Field:
    """Draw the main veins and their branches: strength in 0..1."""
    image = PilImage.new("L", (size[0] * _SUPERSAMPLING, size[1] * _SUPERSAMPLING))
    draw = ImageDraw.Draw(image)
    line_width = max(1, round(leaf_size / 45))
    for degrees in _VEIN_DEGREES:
        angle = math.radians(degrees)
        axis = np.array([math.sin(angle), math.cos(angle)])
        length = float(np.interp(abs(degrees), _LOBE_DEGREES, _LOBE_RADII))
        lines = [(np.zeros(2), axis * length * 0.92, 255)]
        if leaf_size > 24:
            for share in (0.35, 0.6):
                for side in (-1, 1):
                    branch = np.array([math.sin(angle + side * 0.8), math.cos(angle + side * 0.8)])
                    lines.append((axis * length * share, axis * length * share + branch * 0.28 * length, 120))
        for start, end, fill in lines:
            ends = ((np.stack([start, end]) @ matrix) - low) * _SUPERSAMPLING
            draw.line(ends.ravel().tolist(), fill=fill, width=line_width if fill == 255 else max(1, line_width // 2))
    return np.asarray(image.reduce(_SUPERSAMPLING), np.float32) / 255


def _draw_leaf_color(rng: np.random.Generator) -> Field:
    kind = rng.random()
    if kind < 0.06:  # turning yellow or brown
        color = np.array([0.62, 0.52, 0.16])
    elif kind < 0.22:  # the pale side
        color = np.array([0.44, 0.58, 0.32])
    elif kind < 0.45:  # young
        color = np.array([0.42, 0.58, 0.16])
    else:
        color = np.array([0.22, 0.42, 0.12])
    hue = np.exp(rng.normal(0, 0.05, 3))
    return np.asarray(color * hue * math.exp(rng.normal(0, 0.12)), np.float32)


def _color_leaf(
    rng: np.random.Generator,
    alpha_hw: Field,
    veins_hw: Field,
    *,
    matrix: Points,
    stalk: tuple[float, float],
    light: Light,
) -> Field:
    """Colour a leaf: two halves folded along the middle vein, waves between the veins, a sheen, a lighter rim."""
    height, width = alpha_hw.shape
    y = (np.arange(height, dtype=np.float32) - float(stalk[0]))[:, None]
    x = (np.arange(width, dtype=np.float32) - float(stalk[1]))[None, :]
    axis = matrix[1] / max(float(np.linalg.norm(matrix[1])), 1e-6)
    side = (x * float(axis[1]) - y * float(axis[0])) / (0.25 * max(height, width))
    fold = rng.uniform(-0.25, 0.25) * np.clip(side * 3, -1, 1) - 0.12 * np.clip(np.abs(side) - 0.6, 0, 1)
    waves = draw_octaves(rng, height, width, max(2.5, max(height, width) / 4), 2) - 0.5
    body = blur_field(alpha_hw, max(1.0, 0.05 * max(height, width)))
    shade = 1 + fold + 0.45 * waves + 0.25 * (1 - body)
    shade = shade * (light.ambient + (1 - light.ambient) * rng.uniform(0.5, 1.35))
    color = _draw_leaf_color(rng) * shade[..., None]
    sheen = np.clip(waves * 2 + rng.uniform(-0.9, 0.1), 0, 1) * rng.uniform(0.0, 0.5)
    color += sheen[..., None] * (np.array([0.75, 0.82, 0.75], np.float32) - color)
    color += (0.42 * veins_hw)[..., None] * (np.array([0.62, 0.68, 0.36], np.float32) * shade[..., None] - color)
    return np.asarray(color * light.color, np.float32)
