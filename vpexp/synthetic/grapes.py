"""Grape clusters: berries as lit spheres, packed into cones, cylinders and wings.

Shapes: K berries of a cluster, h w size of a patch.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image as PilImage
from PIL import ImageDraw, ImageFilter

from vpexp.synthetic.canvas import NO_OBJECT, Canvas
from vpexp.synthetic.outlines import build_band, rasterize_outline, rotation
from vpexp.synthetic.scene import Field, Light, Points, Sprite


@dataclass(frozen=True, slots=True)
class Variety:
    """What clusters of one variety look like.

    Attributes:
        name: as in the Embrapa WGISD data set.
        color: RGB of a ripe berry in full light.
        bloom: strength of the pale wax on dark berries.
        berry: diameter of a berry, as a share of the cluster's length.
        oblong: height of a berry in widths.
        width: width of the cluster in lengths.
        taper: 0 for a cylinder, 1 for a cone.
        wing: chance of a wing at a shoulder.
        looseness: distance of berries, in diameters.
    """

    name: str
    color: tuple[float, float, float]
    bloom: float
    berry: float
    oblong: float
    width: float
    taper: float
    wing: float
    looseness: float


VARIETIES = (
    Variety("Chardonnay", (0.68, 0.74, 0.34), 0.05, 0.100, 1.0, 0.58, 0.55, 0.5, 0.74),
    Variety("Cabernet Franc", (0.20, 0.17, 0.34), 0.55, 0.095, 1.0, 0.60, 0.85, 0.5, 0.80),
    Variety("Cabernet Sauvignon", (0.15, 0.15, 0.30), 0.45, 0.085, 1.0, 0.58, 1.00, 0.7, 0.84),
    Variety("Sauvignon Blanc", (0.55, 0.70, 0.30), 0.08, 0.110, 1.12, 0.52, 0.45, 0.25, 0.72),
    Variety("Syrah", (0.22, 0.11, 0.22), 0.35, 0.100, 1.18, 0.48, 0.35, 0.6, 0.78),
)


@dataclass(frozen=True, slots=True)
class _Berry:
    """A sphere to be coloured: opacity, light on its skin, and its highlight."""

    alpha_hw: Field
    shade_hw: Field
    shine_hw: Field


def draw_cluster(
    rng: np.random.Generator, variety: Variety, light: Light, *, length: float, diameter: float
) -> tuple[Sprite, tuple[int, int]]:
    """Draw a cluster with its stalk.

    Args:
        rng: shape, berries and colours.
        variety: what it looks like.
        light: the sun.
        length: from the first to the last berry, in pixels.
        diameter: of a berry, in pixels.

    Returns:
        The cluster, and the place (y, x) in its patch from which it hangs.
    """
    centers_K2 = _pack_berries(rng, variety, length, diameter) @ rotation(float(rng.normal(0, 0.13)))
    margin = 1.5 * diameter * variety.oblong + 2
    low = np.floor(centers_K2.min(axis=0) - margin)
    width, height = (int(side) for side in np.ceil(centers_K2.max(axis=0) + margin - low))
    alpha = _draw_core(centers_K2 - low, 0.46 * diameter, variety.oblong, (height, width))
    # the dark inside: nothing shines through between the berries
    color = np.empty((height, width, 3), np.float32)
    color[:] = np.array(variety.color, np.float32) * 0.28
    berries = [_draw_berry(diameter / 2 * scale, variety, light) for scale in (0.86, 0.95, 1.04, 1.12)]
    skins_K3, depth_K = _color_berries(rng, variety, centers_K2, light)
    for index in np.argsort(depth_K):  # the nearest last
        berry = berries[int(rng.integers(len(berries)))]
        _blend_berry(alpha, color, berry, center=centers_K2[index] - low, skin=skins_K3[index], light=light)
    return Sprite(alpha, color), (round(-low[1]), round(-low[0]))


def draw_single_berry(rng: np.random.Generator, variety: Variety, light: Light, diameter: float) -> Sprite:
    """Draw one leaf-green berry, as hang about where no cluster is."""
    berry = _draw_berry(diameter / 2, variety, light)
    alpha, color = np.zeros_like(berry.alpha_hw), np.zeros((*berry.alpha_hw.shape, 3), np.float32)
    center = np.array(alpha.shape[::-1]) / 2
    skin = np.array([0.35, 0.52, 0.18], np.float32) * math.exp(rng.normal(0, 0.2))
    _blend_berry(alpha, color, berry, center=center, skin=skin, light=light)
    return Sprite(berry.alpha_hw, color)


def paint_stalk(
    rng: np.random.Generator, canvas: Canvas, top: tuple[float, float], length: float, brightness: float
) -> None:
    """Paint the stem, ``length`` pixels long, from which a cluster hangs at ``top`` (y, x); no part of the object."""
    steps = np.linspace(0, 1, 8)
    line = np.stack([steps**2 * rng.normal(0, 0.4), -steps], axis=1) * length
    band = build_band(line, max(1.2, 0.12 * length))
    low, high = band.min(axis=0), band.max(axis=0)
    cover = rasterize_outline([(band, True)], float((high - low).max()), 2, 1)
    color = np.array([0.42, 0.45, 0.2], np.float32) * brightness
    canvas.paint(cover, color, round(top[0] + low[1] - 1), round(top[1] + low[0] - 1), owner=NO_OBJECT)


def _draw_berry(radius: float, variety: Variety, light: Light) -> _Berry:
    """Draw a berry of a radius in pixels; wax makes its highlight broad and weak, thin skin lets light through."""
    waxy = variety.bloom > 0.3
    half_y, half_x = math.ceil(radius * variety.oblong) + 1, math.ceil(radius) + 1
    y = (np.arange(-half_y, half_y + 1, dtype=np.float32) / (radius * variety.oblong))[:, None]
    x = (np.arange(-half_x, half_x + 1, dtype=np.float32) / radius)[None, :]
    square = x * x + y * y
    z = np.sqrt(np.clip(1 - square, 0, 1))
    alpha = np.clip((1 - np.sqrt(square)) * radius + 0.5, 0, 1)
    light_x, light_y, light_z = light.direction
    facing = x * light_x + y * light_y + z * light_z
    ambient = light.ambient if waxy else 0.5 + 0.5 * light.ambient
    shade = ambient + (1 - ambient) * np.clip(facing, 0, 1) + (0.1 if waxy else 0.3) * np.clip(-facing, 0, 1)
    shade = shade * ((0.5 + 0.5 * z) if waxy else (0.62 + 0.38 * z))
    # reflected towards the viewer: the half vector between the sun and (0, 0, 1)
    half_length = math.sqrt(light_x**2 + light_y**2 + (light_z + 1) ** 2)
    gleam = np.clip((x * light_x + y * light_y + z * (light_z + 1)) / half_length, 0, 1)
    shine = 0.35 * gleam**12 if waxy else 0.55 * gleam**36 + 0.10 * gleam**6
    return _Berry(alpha, shade, shine)


def _blend_berry(
    alpha_hw: Field, color_hw3: Field, berry: _Berry, *, center: Points, skin: Field, light: Light
) -> None:
    """Blend a berry into a patch that it lies wholly in, around a centre (x, y)."""
    height, width = berry.alpha_hw.shape
    top, left = round(center[1] - height / 2), round(center[0] - width / 2)
    window = np.s_[top : top + height, left : left + width]
    shaded = berry.shade_hw[..., None] * (skin * light.color)
    # a berry in the shade mirrors no sun
    shaded += berry.shine_hw[..., None] * (light.color * (0.3 + 0.7 * min(1.0, 2 * float(skin[1]))))
    below = color_hw3[window]
    below += berry.alpha_hw[..., None] * (shaded - below)
    np.maximum(alpha_hw[window], berry.alpha_hw, out=alpha_hw[window])


def _draw_core(centers_K2: Points, radius: float, oblong: float, size: tuple[int, int]) -> Field:
    """Draw the union of all berries with the gaps between them closed: opacity [h, w]."""
    height, width = size
    image = PilImage.new("L", (width, height))
    draw = ImageDraw.Draw(image)
    for x, y in centers_K2.tolist():
        draw.ellipse((x - radius, y - radius * oblong, x + radius, y + radius * oblong), fill=255)
    filled = np.asarray(image.filter(ImageFilter.GaussianBlur(0.8 * radius)), np.float32) / 255
    core: Field = np.clip((filled - 0.5) * 6, 0, 1)
    return core


def _pack_berries(rng: np.random.Generator, variety: Variety, length: float, diameter: float) -> Points:
    """Put berries on a disturbed hexagonal grid inside the cluster's outline, top at the origin: centres (x, y)."""
    half_width = 0.5 * variety.width * length * math.exp(rng.normal(0, 0.15))
    parts = [(np.zeros(2), length, half_width)]
    if rng.random() < variety.wing:
        side = 1 if rng.random() < 0.5 else -1
        reach = half_width * rng.uniform(0.75, 1.25)
        parts.append(
            (np.array([side * reach, length * rng.uniform(0.0, 0.1)]), length * rng.uniform(0.3, 0.5), half_width * 0.6)
        )
    bend = rng.normal(0, 0.12) * length
    step = diameter * variety.looseness
    rows, columns = int(length / (0.86 * step)) + 2, int(4.5 * half_width / step) + 2
    grid_y, grid_x = np.mgrid[0:rows, 0:columns].astype(float)
    x = (grid_x - columns / 2 + 0.5 * (grid_y % 2)) * step
    y = grid_y * 0.86 * step
    points = np.stack([x.ravel(), y.ravel()], axis=1) + rng.normal(0, 0.16 * diameter, (rows * columns, 2))
    inside = np.zeros(len(points), bool)
    for shift, part_length, part_half in parts:
        along = (points[:, 1] - shift[1]) / part_length
        middle = shift[0] + bend * along**2
        # round shoulders, then a cone or a cylinder with a round end
        profile = np.sqrt(np.clip((along + 0.04) / 0.3, 0, 1)) * (1 - variety.taper * 0.8 * np.clip(along - 0.1, 0, 1))
        profile *= np.sqrt(np.clip((1.04 - along) / 0.2, 0, 1))
        ragged = 1 + 0.25 * np.sin(
            along * rng.uniform(6, 14) + rng.uniform(0, 6, 2)[(points[:, 0] > middle).astype(int)]
        )
        ragged += rng.normal(0, 0.13, len(points))
        inside |= (np.abs(points[:, 0] - middle) < part_half * profile * ragged) & (along > -0.03) & (along < 1.04)
    inside &= rng.random(len(points)) > 0.04
    if np.count_nonzero(inside) < 6:
        inside[np.argsort(np.abs(points[:, 0]) + points[:, 1])[:6]] = True
    chosen: Points = points[inside]
    return chosen


def _color_berries(
    rng: np.random.Generator, variety: Variety, centers_K2: Points, light: Light
) -> tuple[Field, Points]:
    """Draw a colour for each berry and its depth: the middle bulges to the viewer, rims and the far side are dark."""
    count = len(centers_K2)
    middle, spread = centers_K2.mean(axis=0), centers_K2.std(axis=0) + 1e-6
    offset = (centers_K2 - middle) / (2.1 * spread)
    depth = np.sqrt(np.clip(1 - np.square(offset[:, 0]), 0.0, 1)) + rng.normal(0, 0.28, count)
    facing = 0.5 + 0.5 * (offset @ np.array(light.direction[:2]))
    shade = (0.55 + 0.25 * np.clip(depth, 0, 1.2) + 0.35 * np.clip(facing, 0, 1)) * np.exp(rng.normal(0, 0.10, count))
    base = np.array(variety.color) * np.exp(rng.normal(0, 0.05, (count, 3)))
    if variety.bloom > 0.3:
        wax = variety.bloom * rng.uniform(0.1, 1.0, (count, 1))
        base = base + wax * (np.array([0.42, 0.45, 0.60]) - base)
        unripe = rng.random(count) < 0.03
        base[unripe] = np.array([0.38, 0.24, 0.26])
    else:
        golden = rng.uniform(0, 0.6, (count, 1)) * rng.random() ** 2
        base = base + golden * (np.array([0.80, 0.68, 0.30]) - base)
    return np.asarray(base * shade[:, None], np.float32), depth
