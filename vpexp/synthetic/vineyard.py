"""Scenes of a vineyard as one walks along a row: foliage, wires, trunks, soil, and clusters half behind leaves.

One image shows one variety, as in the Embrapa WGISD data set. All sizes follow the image, so that 256 x 256 and
2048 x 1365 show the same kind of scene.

Shapes: H W size of the image.
"""

import math
from dataclasses import dataclass

import numpy as np

from vpexp.synthetic.canvas import NO_OBJECT, Canvas, Field, Light, Points, Scene, SceneDrawer, Sprite, draw_enough
from vpexp.synthetic.outlines import build_band, rasterize_outline
from vpexp.synthetic.plants import VARIETIES, draw_cluster, draw_leaves, draw_single_berry, paint_leaf, paint_stalk
from vpexp.synthetic.textures import (
    add_noise,
    blur_color,
    blur_field,
    change_colors,
    change_gamma,
    draw_noise,
    draw_octaves,
    mix_colors,
    resize_field,
)

MIN_OBJECTS = 3


@dataclass(frozen=True, slots=True)
class _View:
    """Where things are in one image.

    Attributes:
        unit: the length that sizes are shares of, in pixels: a cluster is about a fifth of it.
        fruit_top: row where the zone of the clusters begins.
        fruit_bottom: row where it ends.
        foliage_bottom: row where the leaves end.
    """

    unit: float
    fruit_top: float
    fruit_bottom: float
    foliage_bottom: float


def draw_vineyard(rng: np.random.Generator, height: int, width: int) -> Scene:
    """Draw 3 to 16 clusters of one variety in a row of vines.

    Returns:
        The image and the visible part of each cluster; labels index ``VINEYARD.categories``.
    """
    return draw_enough(_draw_any, rng, height, width, least=MIN_OBJECTS)


VINEYARD = SceneDrawer(tuple(variety.name for variety in VARIETIES), draw_vineyard)


def _draw_any(rng: np.random.Generator, height: int, width: int) -> Scene:
    light = _draw_light(rng)
    view = _draw_view(rng, height, width)
    label = int(rng.integers(len(VARIETIES)))
    canvas = Canvas(_draw_ground(rng, height, width, view))
    leaves = draw_leaves(rng, 0.15 * view.unit, light, 14)
    _paint_wood(rng, canvas, view)
    _paint_leaves(rng, canvas, leaves, view, density=1.8, brightness=(0.22, 0.5), fruit_share=0.9, shadow=0)
    _paint_leaves(rng, canvas, leaves, view, density=1.6, brightness=(0.45, 0.85), fruit_share=0.45, shadow=0.3)
    _paint_clusters(rng, canvas, leaves, view, label=label, light=light)
    _paint_leaves(rng, canvas, leaves, view, density=0.9, brightness=(0.8, 1.25), fruit_share=0.12, shadow=0.35)
    return canvas.finish(_expose(rng, canvas.color_HW3))


def _draw_light(rng: np.random.Generator) -> Light:
    azimuth, elevation = rng.uniform(-2.6, -0.5), rng.uniform(0.5, 1.1)
    direction = (
        math.cos(elevation) * math.cos(azimuth),
        math.cos(elevation) * math.sin(azimuth),
        math.sin(elevation),
    )
    warm = rng.uniform(0, 1)
    color = np.array([1.0 + 0.12 * warm, 1.0 + 0.04 * warm, 1.0 - 0.12 * warm], np.float32)
    return Light(direction, color, rng.uniform(0.3, 0.6))


def _draw_view(rng: np.random.Generator, height: int, width: int) -> _View:
    zoom = math.exp(rng.uniform(math.log(0.8), math.log(1.45)))
    fruit_top = rng.uniform(0.12, 0.35) * height
    fruit_bottom = fruit_top + rng.uniform(0.4, 0.55) * height
    return _View(
        unit=zoom * math.sqrt(height * width),
        fruit_top=fruit_top,
        fruit_bottom=fruit_bottom,
        foliage_bottom=fruit_bottom + rng.uniform(-0.05, 0.25) * height,
    )


def _draw_ground(rng: np.random.Generator, height: int, width: int, view: _View) -> Field:
    """Draw what is far: sky, the next rows, soil and grass; at half of the size, for it is out of focus."""
    half = (max(2, height // 2), max(2, width // 2))
    unit = view.unit / 2
    rows = np.linspace(0, 1, half[0], dtype=np.float32)[:, None]
    sky = np.array([0.74, 0.82, 0.92], np.float32) * rng.uniform(0.85, 1.1)
    hedge_dark, hedge_light = np.array([0.10, 0.15, 0.06], np.float32), np.array([0.34, 0.45, 0.18], np.float32)
    hedge = mix_colors(draw_octaves(rng, *half, 0.08 * unit, 4), hedge_dark, hedge_light)
    soil_color = np.array([0.55, 0.44, 0.33], np.float32) * rng.uniform(0.7, 1.2)
    soil = mix_colors(draw_octaves(rng, *half, 0.03 * unit, 4), soil_color * 0.7, soil_color * 1.2)
    grass = draw_octaves(rng, *half, 0.15 * unit, 4) + 0.5 * draw_noise(rng, *half, 0.008 * unit)
    grass_share = np.clip(2.5 * grass - rng.uniform(1.0, 3.0), 0, 0.9)[..., None]
    soil += grass_share * (np.array([0.38, 0.48, 0.2], np.float32) * rng.uniform(0.8, 1.2) - soil)
    edge = draw_noise(rng, *half, 0.12 * unit) * 0.2
    sky_share = np.clip((rng.uniform(-0.05, 0.25) - rows - edge) * 12, 0, 1)
    soil_share = np.clip((rows + edge - view.foliage_bottom / height - 0.05) * 9, 0, 1)
    ground = hedge + sky_share[..., None] * (sky - hedge)
    ground = blur_color(ground + soil_share[..., None] * (soil - ground), max(0.3, 0.004 * unit))
    return np.stack([resize_field(ground[..., channel], height, width) for channel in range(3)], axis=2)


def _draw_wander(rng: np.random.Generator, points: int, reach: float) -> Points:
    """Draw a smooth deviation from a straight line, ``reach`` pixels to either side."""
    share = np.linspace(0, 1, points)
    waves = [np.sin(share * rng.uniform(2, 12) + rng.uniform(0, 6)) * rng.uniform(0, reach) for _ in range(3)]
    wander: Points = np.sum(waves, axis=0) / 1.5
    return wander


def _paint_band(
    canvas: Canvas, line_P2: Points, line_width: Points | float, color: Field, bark: Field | None = None
) -> None:
    """Paint a line (x, y) of a width: wire, cane, trunk; bark is a field that makes it rough, tiled as needed."""
    band = build_band(line_P2, line_width)
    low, high = band.min(axis=0), band.max(axis=0)
    cover = rasterize_outline([(band, True)], float((high - low).max()), 2, 1)
    patch = color
    if bark is not None:
        height, width = cover.shape
        repeats = (-(-height // bark.shape[0]), -(-width // bark.shape[1]))
        patch = color * (0.4 + 1.2 * np.tile(bark, repeats)[:height, :width, None])
    canvas.paint(cover, patch, round(low[1]) - 1, round(low[0]) - 1, owner=NO_OBJECT)


def _paint_wood(rng: np.random.Generator, canvas: Canvas, view: _View) -> None:
    """Paint trunks, the arm along the wire, canes that rise from it, and the wires."""
    height, width = canvas.size
    unit = view.unit
    bark = draw_octaves(rng, *canvas.size, 0.03 * unit, 4)
    brown = np.array([0.32, 0.25, 0.18], np.float32) * rng.uniform(0.7, 1.3)
    arm_row = view.fruit_bottom - rng.uniform(0.0, 0.1) * height
    down, across = np.linspace(arm_row, 1.05 * height, 48), np.linspace(-0.05, 1.05, 48) * width
    for _ in range(int(rng.integers(1, 3))):
        trunk_x = rng.uniform(0.05, 0.95) * width + _draw_wander(rng, 48, 0.015 * unit)
        line_width = rng.uniform(0.03, 0.055) * unit + _draw_wander(rng, 48, 0.005 * unit)
        _paint_band(canvas, np.stack([trunk_x, down], axis=1), line_width, brown, bark)
    arm_y = arm_row + _draw_wander(rng, 48, 0.012 * unit)
    _paint_band(canvas, np.stack([across, arm_y], axis=1), rng.uniform(0.018, 0.03) * unit, brown, bark)
    rise = np.linspace(arm_row, -0.05 * height, 24)
    for _ in range(int(rng.integers(5, 12))):
        cane_x = rng.uniform(0, width) + _draw_wander(rng, 24, 0.05 * unit)
        color = np.array([0.42, 0.38, 0.18], np.float32) * rng.uniform(0.5, 1.1)
        _paint_band(canvas, np.stack([cane_x, rise], axis=1), rng.uniform(0.007, 0.013) * unit, color)
    for _ in range(int(rng.integers(1, 4))):
        wire_y = rng.uniform(0.05, 0.9) * height + np.linspace(0.0, rng.normal(0, 0.02) * height, 48)
        grey = np.full(3, rng.uniform(0.3, 0.65), np.float32)
        _paint_band(canvas, np.stack([across, wire_y], axis=1), max(1.0, 0.004 * unit), grey)


def _paint_leaves(
    rng: np.random.Generator,
    canvas: Canvas,
    leaves: list[Sprite],
    view: _View,
    *,
    density: float,
    brightness: tuple[float, float],
    fruit_share: float,
    shadow: float,
) -> None:
    """Paint one layer of leaves over the foliage.

    Args:
        rng: places and brightness.
        canvas: where to.
        leaves: the stock.
        view: where the foliage is.
        density: area of all leaves together, in areas of the foliage.
        brightness: range of the factor on the colours.
        fruit_share: share of the leaves that stay in the zone of the clusters, where vintners thin them out.
        shadow: opacity of the shadow of a leaf; the furthest leaves are dark enough without.
    """
    height, width = canvas.size
    mean_area = float(np.mean([leaf.alpha_hw.sum() for leaf in leaves]))
    count = int(density * view.foliage_bottom * width / mean_area)
    y, x = rng.uniform(-0.05 * height, view.foliage_bottom, count), rng.uniform(-0.03, 1.03, count) * width
    stays = (y < view.fruit_top) | (rng.random(count) < fruit_share)
    # bright and dark places in the foliage are wider than a leaf
    glade = draw_noise(rng, 32, 32, 5)
    rows, columns = (y / height * 32).astype(int).clip(0, 31), (x / width * 32).astype(int).clip(0, 31)
    low, high = brightness
    factors = low + (high - low) * (glade[rows, columns] + rng.normal(0, 0.2, count)).clip(0, 1)
    chosen = rng.integers(len(leaves), size=count)
    for index in np.flatnonzero(stays).tolist():
        center = (float(y[index]), float(x[index]))
        paint_leaf(rng, canvas, leaves[chosen[index]], center, brightness=float(factors[index]), shadow=shadow)


def _paint_clusters(
    rng: np.random.Generator, canvas: Canvas, leaves: list[Sprite], view: _View, *, label: int, light: Light
) -> None:
    """Paint the clusters from back to front, each with the leaves that hang over it."""
    width = canvas.size[1]
    variety = VARIETIES[label]
    length = 0.21 * view.unit
    room = width * (view.fruit_bottom - view.fruit_top) / (0.6 * length**2)
    count = int(np.clip(rng.uniform(0.35, 0.8) * room, 4, 16))
    tops = _draw_tops(rng, view, width, count, length)
    for brightness, top in zip(np.sort(rng.uniform(0.55, 1.15, count)), tops, strict=True):
        own_length = length * math.exp(rng.normal(0, 0.2))
        diameter = max(3.0, variety.berry * length * math.exp(rng.normal(0, 0.05)))
        cluster, (anchor_y, anchor_x) = draw_cluster(rng, variety, light, length=own_length, diameter=diameter)
        paint_stalk(rng, canvas, top, own_length * rng.uniform(0.15, 0.35), float(brightness))
        corner = (round(top[0]) - anchor_y, round(top[1]) - anchor_x)
        canvas.darken(blur_field(cluster.alpha_hw, 0.3 * diameter) * 0.4, corner[0] + round(0.4 * diameter), corner[1])
        owner = canvas.begin_object(label)
        canvas.paint(cluster.alpha_hw, cluster.color_hw3 * float(brightness), *corner, owner=owner)
        if rng.random() < 0.65:
            _cover_cluster(rng, canvas, leaves, (*corner, *cluster.size), float(brightness))
    for _ in range(int(rng.integers(0, 8))):
        berry = draw_single_berry(rng, variety, light, variety.berry * length * rng.uniform(0.6, 1.1))
        y, x = rng.uniform(view.fruit_top, view.fruit_bottom), rng.uniform(0, width)
        canvas.paint(berry.alpha_hw, berry.color_hw3, round(y), round(x), owner=NO_OBJECT)


def _draw_tops(
    rng: np.random.Generator, view: _View, width: int, count: int, length: float
) -> list[tuple[float, float]]:
    """Scatter the points (y, x) from which clusters hang: most keep apart, some touch or hide one another."""
    low, high = view.fruit_top, max(view.fruit_top + 1, view.fruit_bottom - 0.8 * length)
    tops = np.empty((0, 2))
    for _ in range(count):
        candidates = np.stack([rng.uniform(low, high, 8), rng.uniform(-0.02, 1.02, 8) * width], axis=1)
        candidates = candidates[: int(rng.choice([1, 8], p=[0.2, 0.8]))]
        # clusters are twice as long as wide
        distance = np.abs(candidates[:, None] - tops[None]) / (length, 0.55 * length)
        best = int(np.argmax(np.hypot(*np.moveaxis(distance, 2, 0)).min(axis=1, initial=np.inf)))
        tops = np.concatenate([tops, candidates[best : best + 1]])
    return [(float(y), float(x)) for y, x in tops]


def _cover_cluster(
    rng: np.random.Generator, canvas: Canvas, leaves: list[Sprite], place: tuple[int, int, int, int], brightness: float
) -> None:
    """Hang leaves over a cluster's patch (top, left, height, width), rather over its sides than over its middle."""
    top, left, height, width = place
    for _ in range(int(rng.integers(1, 4))):
        share_x = rng.choice(
            [rng.uniform(-0.25, 0.25), rng.uniform(0.75, 1.25), rng.uniform(0.2, 0.8)], p=[0.4, 0.4, 0.2]
        )
        share_y = rng.uniform(-0.25, 0.75)
        y, x = top + share_y * height, left + share_x * width
        leaf = leaves[int(rng.integers(len(leaves)))]
        paint_leaf(rng, canvas, leaf, (y, float(x)), brightness=brightness * rng.uniform(0.8, 1.3), shadow=0.45)


def _expose(rng: np.random.Generator, color_HW3: Field) -> Field:
    """Let sun and shade fall through the leaves, and take the photograph."""
    height, width = color_HW3.shape[:2]
    dapple = draw_octaves(rng, height, width, 0.2 * max(height, width), 3)
    strength = rng.uniform(0.1, 0.6)
    color: Field = color_HW3 * (1 + strength * (2 * np.clip(1.6 * dapple - 0.3, 0, 1) - 1))[..., None]
    color = change_colors(rng, color, rng.uniform(0.02, 0.18))
    color = change_gamma(color, rng.uniform(0.7, 1.0))
    if rng.random() < 0.4:
        color = blur_color(color, rng.uniform(0.0003, 0.0012) * max(height, width))
    return add_noise(rng, color, rng.uniform(0.004, 0.02))
