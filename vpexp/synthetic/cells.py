"""Scenes of cells with a bright nucleus in a body that is hardly brighter than the ground; the object is the whole cell.

What catches the eye is not the object, so that a model has to learn where it ends. ``sam_micro`` has never seen these.

Shapes: H W size of the image, h w size of a cell's patch.
"""

import math

import numpy as np

from vpexp.synthetic.canvas import Canvas, Field, Scene, SceneDrawer, draw_enough
from vpexp.synthetic.outlines import build_contour, build_ellipse, rasterize_outline, rotation, transform_outline
from vpexp.synthetic.textures import add_noise, blur_color, blur_field, change_light, draw_noise, draw_octaves

MIN_OBJECTS = 3
BODY, NUCLEUS = np.array([0.16, 0.42, 0.20], np.float32), np.array([0.30, 0.45, 0.95], np.float32)


def draw_cells(rng: np.random.Generator, height: int, width: int) -> Scene:
    """Draw 3 to 14 cells, some of which touch or hide others in part.

    Returns:
        The image and the visible part of each cell, its nucleus included; labels index ``CELLS.categories``.
    """
    return draw_enough(_draw_any, rng, height, width, least=MIN_OBJECTS)


CELLS = SceneDrawer(("cell",), draw_cells)


def _draw_any(rng: np.random.Generator, height: int, width: int) -> Scene:
    ground = draw_octaves(rng, height, width, 0.4 * max(height, width), 4)
    color = np.array([0.05, 0.10, 0.09], np.float32)
    canvas = Canvas((0.7 + 0.6 * ground)[..., None] * color * rng.uniform(0.7, 1.3))
    unit = math.sqrt(height * width)
    dimness = rng.uniform(0.5, 0.9)
    for _ in range(int(rng.integers(6, 15))):
        _paint_cell(rng, canvas, unit * rng.uniform(0.14, 0.3), dimness)
    developed = change_light(rng, canvas.color_HW3, rng.uniform(0.1, 0.4))
    developed = blur_color(developed, rng.uniform(0.3, 0.8))
    return canvas.finish(add_noise(rng, developed, rng.uniform(0.008, 0.025)))


def _paint_cell(rng: np.random.Generator, canvas: Canvas, size: float, dimness: float) -> None:
    """Paint a body with short arms, lighter towards the nucleus, and the nucleus anywhere inside."""
    stretch = np.diag([1.0, rng.uniform(0.5, 1.0)]) @ rotation(rng.uniform(0, 2 * math.pi))
    contour = build_contour(rng, rng.uniform(0.2, 0.36), waves=int(rng.integers(3, 7)))
    alpha_hw = rasterize_outline(transform_outline([(contour, True)], stretch), size)
    rows, columns = alpha_hw.shape
    top = int(rng.integers(-rows // 5, max(1, canvas.size[0] - 4 * rows // 5)))
    left = int(rng.integers(-columns // 5, max(1, canvas.size[1] - 4 * columns // 5)))
    depth_hw = blur_field(alpha_hw, max(1.0, 0.12 * size))
    grain_hw = draw_noise(rng, rows, columns, max(1.5, 0.06 * size))
    light_hw: Field = dimness * (0.55 + 0.45 * depth_hw) * (0.75 + 0.5 * grain_hw)
    owner = canvas.begin_object(0)
    canvas.paint(alpha_hw, light_hw[..., None] * BODY, top, left, owner=owner)
    nucleus_hw = _draw_nucleus(rng, alpha_hw, size)
    glow = NUCLEUS * rng.uniform(0.7, 1.0)
    canvas.paint(nucleus_hw, glow, top, left)


def _draw_nucleus(rng: np.random.Generator, alpha_hw: Field, size: float) -> Field:
    """Draw the opacity of a nucleus within a body of that opacity."""
    outline = [(build_ellipse((0, 0), 1, rng.uniform(0.6, 1)), True)]
    spot_hw = rasterize_outline(
        transform_outline(outline, rotation(rng.uniform(0, 2 * math.pi))), 0.32 * size, margin=0
    )
    inside_hw = blur_field(alpha_hw, 0.1 * size) > 0.85
    places = np.argwhere(inside_hw if inside_hw.any() else alpha_hw > 0)
    row, column = places[int(rng.integers(len(places)))] - np.array(spot_hw.shape) // 2
    nucleus_hw = np.zeros_like(alpha_hw)
    top, left = max(0, row), max(0, column)
    bottom, right = min(len(alpha_hw), row + spot_hw.shape[0]), min(alpha_hw.shape[1], column + spot_hw.shape[1])
    nucleus_hw[top:bottom, left:right] = spot_hw[top - row : bottom - row, left - column : right - column]
    visible_hw: Field = 0.9 * nucleus_hw * alpha_hw
    return visible_hw
