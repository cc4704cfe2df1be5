"""Outlines: shapes as polygons in a unit frame, and how they become coverage.

An outline is a list of layers drawn one over the other: a polygon that fills, or one that cuts a hole. Coordinates
are (x, y) in no particular unit; ``rasterize_outline`` scales them.

Shapes: P points of a polygon, h w size of the raster.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image as PilImage
from PIL import ImageDraw

from vpexp.synthetic.canvas import Field, Points

Layer = tuple[Points, bool]
Outline = list[Layer]
OutlineDrawer = Callable[[np.random.Generator], Outline]


def build_ellipse(center: tuple[float, float], radius_x: float, radius_y: float, points: int = 40) -> Points:
    """Build an ellipse with axes along x and y."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([center[0] + radius_x * np.cos(angles), center[1] + radius_y * np.sin(angles)], axis=1)


def build_band(centerline_P2: Points, widths_P: Points | float) -> Points:
    """Build the polygon of a line with a width: its left side forth and its right side back."""
    tangent = np.gradient(centerline_P2, axis=0)
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1) * np.reshape(np.asarray(widths_P, float) / 2, (-1, 1))
    return np.concatenate([centerline_P2 + normal, (centerline_P2 - normal)[::-1]])


def build_contour(rng: np.random.Generator, roughness: float, points: int = 64, waves: int = 6) -> Points:
    """Build a closed curve around the origin whose radius is a random Fourier series."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    order = np.arange(1, waves + 1)
    amplitude = roughness * rng.normal(size=waves) / order**0.8
    radius = 1 + (amplitude * np.cos(np.outer(angles, order) + rng.uniform(0, 2 * np.pi, waves))).sum(axis=1)
    contour: Points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.maximum(radius, 0.15)[:, None]
    return contour


def draw_star(rng: np.random.Generator) -> Outline:
    """Draw a star of 3 to 9 points, sharp or round."""
    tips = int(rng.integers(3, 10))
    inner = rng.uniform(0.25, 0.65)
    if rng.random() < 0.35:
        angles = np.linspace(0, 2 * np.pi, 12 * tips, endpoint=False)
        radius = (1 + inner) / 2 + (1 - inner) / 2 * np.cos(angles * tips)
    else:
        angles = np.linspace(0, 2 * np.pi, 2 * tips, endpoint=False)
        radius = np.where(np.arange(2 * tips) % 2 == 0, 1.0, inner) * rng.uniform(0.85, 1.15, 2 * tips)
    return [(np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius[:, None], True)]


def draw_ring(rng: np.random.Generator) -> Outline:
    """Draw a ring, round or angular, its hole not always in the middle."""
    inner = rng.uniform(0.4, 0.8)
    shift = rng.uniform(-0.5, 0.5, 2) * (1 - inner)
    corners = int(rng.choice([40, 40, 3, 4, 6]))
    outer = build_ellipse((0, 0), 1, 1, corners)
    hole = build_ellipse((0, 0), inner, inner, corners if rng.random() < 0.7 else 40)
    if corners == 3:  # the inner circle of a triangle has half of its radius
        hole = hole * 0.6
        shift = shift * 0.3
    return [(outer, True), (hole + shift, False)]


def draw_crescent(rng: np.random.Generator) -> Outline:
    """Draw a disc with a disc bitten out."""
    radius = rng.uniform(0.6, 1.0)
    shift = rng.uniform(max(0.3, 1.15 - radius), 0.9)
    return [(build_ellipse((0, 0), 1, 1, 60), True), (build_ellipse((shift, 0), radius, radius, 60), False)]


def draw_blob(rng: np.random.Generator) -> Outline:
    """Draw a smooth random contour, sometimes with a hole."""
    contour = build_contour(rng, rng.uniform(0.08, 0.32), waves=int(rng.integers(3, 9)))
    if rng.random() < 0.15:
        hole = build_contour(rng, 0.1) * rng.uniform(0.15, 0.35)
        return [(contour, True), (hole, False)]
    return [(contour, True)]


def draw_bar(rng: np.random.Generator) -> Outline:
    """Draw a long bar, tapered or with round ends."""
    thickness = rng.uniform(0.08, 0.35)
    taper = rng.uniform(0.3, 1)
    bar = np.array([[-1, -thickness], [1, -thickness * taper], [1, thickness * taper], [-1, thickness]])
    if rng.random() < 0.4:
        ends = [(build_ellipse((-1, 0), thickness, thickness, 24), True)]
        ends.append((build_ellipse((1, 0), thickness * taper, thickness * taper, 24), True))
        return [(bar, True), *ends]
    return [(bar, True)]


def draw_polygon(rng: np.random.Generator) -> Outline:
    """Draw a random polygon of 3 to 8 corners, not always convex."""
    corners = int(rng.integers(3, 9))
    angles = np.sort((np.arange(corners) + rng.uniform(-0.4, 0.4, corners)) * 2 * np.pi / corners)
    radius = rng.uniform(0.45, 1.0, corners)
    return [(np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius[:, None], True)]


def draw_ellipse(rng: np.random.Generator) -> Outline:
    """Draw an ellipse."""
    return [(build_ellipse((0, 0), 1, rng.uniform(0.3, 1)), True)]


def draw_sector(rng: np.random.Generator) -> Outline:
    """Draw a sector of a disc or of a ring: pies, arcs, open rings."""
    span = rng.uniform(0.3, 1.8) * np.pi
    angles = np.linspace(0, span, 48)
    outer = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    inner = outer[::-1] * rng.uniform(0.35, 0.8) if rng.random() < 0.6 else np.zeros((1, 2))
    return [(np.concatenate([outer, inner]), True)]


_STROKES: tuple[tuple[tuple[float, float, float, float], ...], ...] = (
    ((-1, -1, -1, 1), (-1, 1, 0.6, 1)),  # L
    ((-1, -1, 1, -1), (0, -1, 0, 1)),  # T
    ((-0.8, -1, -0.8, 1), (-0.8, 1, 0.8, 1), (0.8, 1, 0.8, -1)),  # U
    ((-0.8, -1, -0.8, 1), (0.8, -1, 0.8, 1), (-0.8, 0, 0.8, 0)),  # H
    ((-0.8, -1, -0.8, 1), (-0.8, -1, 0.7, -1), (-0.8, 0, 0.5, 0), (-0.8, 1, 0.7, 1)),  # E
    ((-1, 0, 1, 0), (0, -1, 0, 1)),  # plus
    ((-0.9, -1, 0.9, 1), (-0.9, 1, 0.9, -1)),  # X
    ((-0.9, -1, 0, 1), (0, 1, 0.9, -1)),  # V
    ((-0.9, -1, 0.9, -1), (0.9, -1, -0.9, 1), (-0.9, 1, 0.9, 1)),  # Z
    ((-0.8, 1, -0.8, -1), (-0.8, -1, 0.8, 1), (0.8, 1, 0.8, -1)),  # N
    ((-0.8, 1, 0, -1), (0, -1, 0.8, 1), (-0.4, 0.2, 0.4, 0.2)),  # A
    ((-1, 1, -1, -1), (-1, -1, 0.8, -1), (-1, 0, 0.4, 0)),  # F
    ((-1, -1, 1, -1), (1, -1, 1, 1), (1, 1, -1, 1), (-1, 1, -1, -1)),  # frame
    ((-1, -1, 0, 0), (1, -1, 0, 0), (0, 0, 0, 1)),  # Y
)


def draw_letter(rng: np.random.Generator) -> Outline:
    """Draw a compound of straight strokes, like a letter."""
    strokes = _STROKES[int(rng.integers(len(_STROKES)))]
    half = rng.uniform(0.1, 0.28)
    layers: Outline = []
    for x0, y0, x1, y1 in strokes:
        start, end = np.array([x0, y0]), np.array([x1, y1])
        along = (end - start) / max(float(np.hypot(*(end - start))), 1e-9)
        start, end = start - along * half, end + along * half
        across = np.array([-along[1], along[0]]) * half
        layers.append((np.stack([start + across, end + across, end - across, start - across]), True))
    return layers


def draw_cluster(rng: np.random.Generator) -> Outline:
    """Draw touching discs as one object, each put at a random side of an earlier one."""
    count = int(rng.integers(3, 16))
    radii = rng.uniform(0.6, 1.2, count)
    centers = [np.zeros(2)]
    for index in range(1, count):
        # the last discs are preferred: the cluster grows arms instead of a round heap
        parent = int(rng.integers(max(0, index - int(rng.integers(1, 6))), index))
        angle = rng.uniform(0, 2 * np.pi)
        step = 0.9 * (radii[parent] + radii[index])
        centers.append(centers[parent] + step * np.array([np.cos(angle), np.sin(angle)]))
    return [(build_ellipse((x, y), r, r, 24), True) for (x, y), r in zip(centers, radii, strict=True)]


def draw_curve(rng: np.random.Generator) -> Outline:
    """Draw a spiral, a wave or a wandering band."""
    kind = rng.random()
    if kind < 0.3:
        angles = np.linspace(0.5 * np.pi, rng.uniform(2.2, 5) * np.pi, 120)
        line = np.stack([np.cos(angles), np.sin(angles)], axis=1) * (angles / angles[-1])[:, None]
        return [(build_band(line, np.linspace(0.5, 1, 120) * rng.uniform(0.14, 0.24)), True)]
    along = np.linspace(-1, 1, 80)
    if kind < 0.65:
        line = np.stack([along, rng.uniform(0.15, 0.5) * np.sin(along * rng.uniform(3, 9))], axis=1)
    else:
        heading = np.cumsum(np.cumsum(rng.normal(size=80))) * 0.025 + rng.uniform(0, 2 * np.pi)
        line = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0) / 40
    widths = rng.uniform(0.1, 0.32) * (1 + 0.4 * np.sin(along * rng.uniform(2, 8) + rng.uniform(0, 6)))
    return [(build_band(line, widths), True)]


def draw_parts(rng: np.random.Generator) -> Outline:
    """Draw an object of two to four separate parts of one kind."""
    draw = (draw_blob, draw_ellipse, draw_polygon, draw_bar, draw_star)[int(rng.integers(5))]
    count = int(rng.integers(2, 5))
    angles = rng.uniform(0, 2 * np.pi) + np.arange(count) * 2 * np.pi / count
    layers: Outline = []
    for angle in angles:
        shift = np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(1.1, 1.6)
        turn = rotation(rng.uniform(0, 2 * np.pi))
        layers += [(points @ turn * rng.uniform(0.5, 0.9) + shift, fills) for points, fills in draw(rng)]
    return layers


OUTLINES: dict[str, OutlineDrawer] = {
    "star": draw_star,
    "ring": draw_ring,
    "crescent": draw_crescent,
    "blob": draw_blob,
    "bar": draw_bar,
    "polygon": draw_polygon,
    "ellipse": draw_ellipse,
    "sector": draw_sector,
    "letter": draw_letter,
    "cluster": draw_cluster,
    "curve": draw_curve,
    "parts": draw_parts,
}


def rotation(angle: float) -> Points:
    """Build the matrix that turns row vectors by an angle."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, sin], [-sin, cos]])


def transform_outline(outline: Outline, matrix_22: Points) -> Outline:
    """Multiply all points by a matrix."""
    return [(points @ matrix_22, fills) for points, fills in outline]


def rasterize_outline(outline: Outline, size: float, supersampling: int = 4, margin: int = 2) -> Field:
    """Draw an outline so that its longer side is ``size`` pixels.

    Args:
        outline: the layers, in any unit.
        size: the longer side of its bounds, in pixels.
        supersampling: pixels drawn for one pixel of the result along each axis.
        margin: empty pixels around it.

    Returns:
        Coverage in 0..1, float32 [h, w].
    """
    bounds = np.concatenate([points for points, fills in outline if fills])
    low, high = bounds.min(axis=0), bounds.max(axis=0)
    scale = size / max(float((high - low).max()), 1e-9)
    width, height = (int(np.ceil(side)) + 2 * margin for side in (high - low) * scale)
    image = PilImage.new("L", (width * supersampling, height * supersampling))
    draw = ImageDraw.Draw(image)
    for points, fills in outline:
        pixels = ((points - low) * scale + margin) * supersampling
        draw.polygon(pixels.ravel().tolist(), fill=255 if fills else 0)
    return np.asarray(image.reduce(supersampling), np.float32) / 255
