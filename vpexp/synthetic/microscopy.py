"""Scenes as a microscope shows them: glowing cells on black, grey cells, stained tissue on white.

Shapes: H W size of the image, h w size of a cell's patch.
"""

import math
from dataclasses import dataclass

import numpy as np

from vpexp.synthetic.canvas import Canvas, Field, Scene
from vpexp.synthetic.outlines import Outline, build_contour, rasterize_outline, rotation, transform_outline
from vpexp.synthetic.textures import (
    add_noise,
    blur_color,
    blur_field,
    change_light,
    compress,
    draw_log_uniform,
    draw_noise,
    draw_octaves,
)


@dataclass(frozen=True, slots=True)
class _Slide:
    """What the cells of one image share.

    Attributes:
        color: mean colour of a cell.
        spread: how much cells differ from one another in brightness.
        texture: strength of the grain inside a cell.
        texture_scale: width of that grain, in pixels.
        softness: radius of the blur of a cell's rim, as a share of its size.
        glow: how much brighter (or, below zero, darker) the middle is than the rim.
        elongation: the longest a cell may be, in widths.
        roughness: how far a cell is from an ellipse.
        opacity: opacity of a cell's body.
    """

    color: Field
    spread: float
    texture: float
    texture_scale: float
    softness: float
    glow: float
    elongation: float
    roughness: float
    opacity: float


def draw_microscopy(rng: np.random.Generator, height: int, width: int, *, label: int) -> Scene:
    """Draw 4 to 40 cells of about one size, scattered or in clumps, all of category ``label``."""
    ground, slide = _draw_stained(rng, height, width) if rng.random() < 0.4 else _draw_dark(rng, height, width)
    canvas = Canvas(ground)
    short = min(height, width)
    size = draw_log_uniform(rng, max(10.0, short / 26), max(12.0, short / 3.2))
    count = int(np.clip(rng.uniform(0.15, 0.7) * height * width / size**2, 4, 40))
    centers = _draw_centers(rng, height, width, count, size)
    heading = rng.uniform(0, 2 * np.pi) if rng.random() < 0.3 else None
    for y, x in centers:
        cell_size = size * math.exp(rng.normal(0, 0.2))
        margin = 2 + int(2 * slide.softness * cell_size)
        cover = rasterize_outline(_draw_cell_outline(rng, slide, heading), cell_size, 2, margin)
        owner = canvas.begin_object(label)
        _paint_cell(rng, canvas, slide, cover, size=cell_size, center=(float(y), float(x)), owner=owner)
    color = change_light(rng, canvas.color_HW3, rng.uniform(0, 0.3))
    if rng.random() < 0.4:
        color = blur_color(color, rng.uniform(0.4, 1.2))
    color = add_noise(rng, color, draw_log_uniform(rng, 0.002, 0.04))
    if rng.random() < 0.2:
        color = compress(color, int(rng.integers(40, 90)))
    return canvas.finish(color)


def _draw_dark(rng: np.random.Generator, height: int, width: int) -> tuple[Field, _Slide]:
    """Glowing cells on a dark ground, sometimes dark cells on a grey one, sometimes in false colours."""
    floor = rng.uniform(0.0, 0.12)
    level = draw_log_uniform(rng, 0.12, 0.9)
    tint = np.ones(3, np.float32)
    if rng.random() < 0.3:
        tint = rng.dirichlet([0.6, 0.6, 0.6]).astype(np.float32)
        tint /= tint.max()
    if rng.random() < 0.2:
        floor, level = rng.uniform(0.35, 0.6), -rng.uniform(0.1, 0.3)
    haze = draw_octaves(rng, height, width, max(height, width) / 3) * (rng.uniform(0, 0.3) * abs(level))
    ground = (floor + haze)[..., None] * tint
    slide = _Slide(
        color=np.clip(floor + level, 0, 1) * tint,
        spread=rng.uniform(0.05, 0.4),
        texture=rng.uniform(0.0, 0.5),
        texture_scale=rng.uniform(2, 6),
        softness=rng.uniform(0.01, 0.08),
        glow=rng.uniform(-0.1, 0.6),
        elongation=rng.uniform(1.2, 2.4),
        roughness=rng.uniform(0.01, 0.08),
        opacity=1.0,
    )
    return ground, slide


def _draw_stained(rng: np.random.Generator, height: int, width: int) -> tuple[Field, _Slide]:
    """Purple nuclei in pale tissue."""
    paper = np.array([0.93, 0.9, 0.94], np.float32) * rng.uniform(0.85, 1.05)
    tissue = np.array([0.85, 0.6, 0.8], np.float32) + rng.normal(0, 0.08, 3).astype(np.float32)
    if rng.random() < 0.4:  # one stain all over
        tissue = np.array([0.72, 0.66, 0.93], np.float32) + rng.normal(0, 0.05, 3).astype(np.float32)
        paper = tissue + 0.06
    field = draw_octaves(rng, height, width, max(height, width) / rng.uniform(3, 12), 4)
    ground = paper + (field * rng.uniform(0.2, 1.0))[..., None] * (tissue - paper)
    stain = np.array([0.38, 0.15, 0.58], np.float32) + rng.normal(0, 0.07, 3).astype(np.float32)
    slide = _Slide(
        color=stain,
        spread=rng.uniform(0.1, 0.35),
        texture=rng.uniform(0.1, 0.6),
        texture_scale=rng.uniform(2, 5),
        softness=rng.uniform(0.01, 0.05),
        glow=rng.uniform(-0.4, 0.2),
        elongation=rng.uniform(1.3, 3.5),
        roughness=rng.uniform(0.02, 0.12),
        opacity=rng.uniform(0.65, 1.0),
    )
    return ground.astype(np.float32), slide


def _draw_centers(rng: np.random.Generator, height: int, width: int, count: int, size: float) -> Field:
    """Scatter cells evenly, or around a few middles; most keep a distance to one another."""
    clumps = rng.random() < 0.4
    middles = rng.random((int(rng.integers(1, 5)), 2)) * (height, width)
    distance = size * rng.uniform(0.45, 1.1)
    centers: list[np.ndarray] = []
    for _ in range(count * 3):
        if clumps and rng.random() < 0.8:
            middle = middles[int(rng.integers(len(middles)))]
            center = middle + rng.normal(0, size * np.sqrt(count) * 0.35, 2)
        else:
            center = rng.random(2) * (height, width)
        if all(np.hypot(*(center - other)) >= distance for other in centers):
            centers.append(center)
        if len(centers) == count:
            break
    return np.array(centers, np.float32).reshape(-1, 2)


def _draw_cell_outline(rng: np.random.Generator, slide: _Slide, heading: float | None) -> Outline:
    contour = build_contour(rng, slide.roughness, points=40, waves=5)
    stretch = np.diag([1.0, 1 / rng.uniform(1, slide.elongation)])
    if rng.random() < 0.12:  # a bean: bent along its length
        contour = contour + np.stack([np.zeros(len(contour)), 0.5 * contour[:, 0] ** 2], axis=1)
    angle = rng.uniform(0, 2 * np.pi) if heading is None else heading + rng.normal(0, 0.25)
    return transform_outline([(contour, True)], stretch @ rotation(angle))


def _paint_cell(
    rng: np.random.Generator,
    canvas: Canvas,
    slide: _Slide,
    cover: Field,
    *,
    size: float,
    center: tuple[float, float],
    owner: int,
) -> None:
    height, width = cover.shape
    soft = blur_field(cover, max(0.5, slide.softness * size))
    brightness = math.exp(rng.normal(0, slide.spread))
    body = 1 + slide.texture * (draw_noise(rng, height, width, slide.texture_scale) - 0.5)
    if slide.glow:
        body *= 1 + slide.glow * (blur_field(cover, 0.15 * size) - 0.7)
    color = (slide.color * brightness) * body[..., None]
    for _ in range(int(rng.integers(0, 4)) if slide.texture > 0.3 else 0):  # nucleoli
        _spot(rng, color, size)
    top, left = round(center[0] - height / 2), round(center[1] - width / 2)
    canvas.paint(soft * slide.opacity, color, top, left, owner=owner, cover_hw=cover >= 0.5)


def _spot(rng: np.random.Generator, color_hw3: Field, size: float) -> None:
    """Darken or lighten a small disc inside a cell."""
    height, width = color_hw3.shape[:2]
    y, x = height * rng.uniform(0.3, 0.7), width * rng.uniform(0.3, 0.7)
    rows = np.arange(height, dtype=np.float32)[:, None] - y
    columns = np.arange(width, dtype=np.float32)[None, :] - x
    bump = np.exp(-(rows**2 + columns**2) / (2 * (0.06 * size) ** 2 + 0.5))
    color_hw3 *= (1 + rng.uniform(-0.5, 0.5) * bump)[..., None]
