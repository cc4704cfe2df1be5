"""Vine leaves, with five lobes, toothed rims and veins, and grape clusters, of berries as lit spheres.

Each leaf is drawn once and painted many times; berries are packed into cones, cylinders and wings.

Shapes: P points of an outline, K berries of a cluster, h w size of a patch.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image as PilImage
from PIL import ImageDraw, ImageFilter

from vpexp.synthetic.canvas import NO_OBJECT, Canvas, Field, Light, Points, Sprite
from vpexp.synthetic.outlines import build_band, rasterize_outline, rotation
from vpexp.synthetic.textures import blur_field, draw_log_uniform, draw_octaves

# directions of the lobes' tips and of the bays between them, from the tip of the leaf, in degrees; and their radii
_LOBE_DEGREES = np.array([0, 27, 55, 84, 112, 150, 178])
_LOBE_RADII = np.array([1.0, 0.66, 0.93, 0.62, 0.78, 0.62, 0.16])
_VEIN_DEGREES = (0, 55, -55, 112, -112)
_SUPERSAMPLING = 2


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
