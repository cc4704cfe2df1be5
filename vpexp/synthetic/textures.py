"""Patterns that mix two colours into a texture, and photometric changes of a whole image: light, contrast, blur, noise.

Shapes: h w size of the patch, a field is float32 [h, w] in 0..1; H W size of the image, colours are float32 in 0..1.
"""

import io
import math
from collections.abc import Callable

import numpy as np
from PIL import Image as PilImage
from PIL import ImageFilter

from vpexp.synthetic.canvas import Field

FieldDrawer = Callable[[np.random.Generator, int, int], Field]
_RESAMPLING = PilImage.Resampling


def draw_log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number between two positive ones, each doubling as likely as the next."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def resize_field(field_hw: Field, height: int, width: int, resampling: int = _RESAMPLING.BICUBIC) -> Field:
    """Resize a scalar field, smoothly by default."""
    image = PilImage.fromarray(np.ascontiguousarray(field_hw, np.float32))
    return np.asarray(image.resize((width, height), _RESAMPLING(resampling)), np.float32)


def draw_noise(rng: np.random.Generator, height: int, width: int, scale: float) -> Field:
    """Draw smooth noise whose grains are about ``scale`` pixels wide, in 0..1."""
    rows, columns = max(2, round(height / scale) + 1), max(2, round(width / scale) + 1)
    if rows >= height and columns >= width:
        return rng.random((height, width), np.float32)
    return resize_field(rng.random((rows, columns), np.float32), height, width).clip(0, 1)


def draw_octaves(rng: np.random.Generator, height: int, width: int, scale: float, octaves: int = 3) -> Field:
    """Add up noise of several scales, each half as wide and half as strong as the one before, in 0..1."""
    field = np.zeros((height, width), np.float32)
    total = 0.0
    for octave in range(octaves):
        weight = 0.5**octave
        field += weight * draw_noise(rng, height, width, max(1.0, scale / 2**octave))
        total += weight
    return _stretch(field / total)


def draw_grid(rng: np.random.Generator, height: int, width: int) -> tuple[Field, Field]:
    """Draw coordinates of the pixels, turned by a random angle around a random origin: two fields in pixels."""
    angle = rng.uniform(0, 2 * math.pi)
    y = (np.arange(height, dtype=np.float32) - rng.uniform(0, height))[:, None]
    x = (np.arange(width, dtype=np.float32) - rng.uniform(0, width))[None, :]
    cos, sin = math.cos(angle), math.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def draw_flat(rng: np.random.Generator, height: int, width: int) -> Field:
    """Draw one value everywhere."""
    return np.full((height, width), rng.random(), np.float32)


def draw_gradient(rng: np.random.Generator, height: int, width: int) -> Field:
    """Draw a linear or a radial gradient over the whole range."""
    u, v = draw_grid(rng, height, width)
    field = u if rng.random() < 0.6 else np.hypot(u, v)
    low, high = float(field.min()), float(field.max())
    return (field - low) / max(high - low, 1e-6)


def draw_grain(rng: np.random.Generator, height: int, width: int) -> Field:
    """Draw noise of one fine scale."""
    return _stretch(draw_noise(rng, height, width, draw_log_uniform(rng, 1, 6)))


def draw_clouds(rng: np.random.Generator, height: int, width: int) -> Field:
    """Draw noise of several scales."""
    scale = draw_log_uniform(rng, 4, max(8.0, 0.6 * max(height, width)))
    return draw_octaves(rng, height, width, scale, int(rng.integers(2, 5)))


def draw_stripes(rng: np.random.Generator, height: int, width: int) -> Field:
    """Draw stripes: smooth or hard, straight or wavy."""
    u, v = draw_grid(rng, height, width)
    period = _draw_period(rng, height, width)
    phase = u * (2 * math.pi / period)
    if rng.random() < 0.4:
        phase = phase + rng.uniform(0.5, 2.5) * np.sin(v * (2 * math.pi / (period * rng.uniform(2, 6))))
    wave: Field = np.sin(phase)
    return 0.5 + 0.5 * (wave if rng.random() < 0.5 else np.clip(wave * 4, -1, 1))


def draw_checker(rng: np.random.Generator, height: int, width: int) -> Field:
    """Draw a checkerboard of random angle."""
    u, v = draw_grid(rng, height, width)
    period = _draw_period(rng, height, width)
    wave: Field = np.sin(u * (2 * math.pi / period)) * np.sin(v * (2 * math.pi / (period * rng.uniform(0.7, 1.5))))
    return (0.5 + 2.5 * wave).clip(0, 1)


def draw_dots(rng: np.random.Generator, height: int, width: int) -> Field:
    """Draw a regular lattice of dots, light on dark or dark on light."""
    u, v = draw_grid(rng, height, width)
    frequency = 2 * math.pi / _draw_period(rng, height, width)
    wave: Field = np.cos(u * frequency) + np.cos(v * frequency) - rng.uniform(0.4, 1.2)
    field: Field = np.clip(0.5 + 2 * wave, 0, 1)
    return field if rng.random() < 0.5 else 1 - field


def draw_rings(rng: np.random.Generator, height: int, width: int) -> Field:
    """Draw concentric rings around a random origin, disturbed a little: wood, ripples."""
    u, v = draw_grid(rng, height, width)
    radius: Field = np.hypot(u, v * rng.uniform(0.4, 1.0))
    period = _draw_period(rng, height, width)
    radius = radius + period * rng.uniform(0, 1) * draw_noise(rng, height, width, 24)
    wave: Field = np.sin(radius * (2 * math.pi / period))
    return 0.5 + 0.5 * wave


def draw_patches(rng: np.random.Generator, height: int, width: int) -> Field:
    """Draw Voronoi patches, each of one value."""
    # a third of the size is enough for straight borders and costs a ninth
    rows, columns = max(4, height // 3), max(4, width // 3)
    count = int(rng.integers(6, 28))
    y, x = rng.random(count, np.float32) * rows, rng.random(count, np.float32) * columns
    grid_y, grid_x = np.arange(rows, dtype=np.float32), np.arange(columns, dtype=np.float32)
    distance = (grid_y[:, None] - y)[:, None, :] ** 2 + (grid_x[:, None] - x)[None, :, :] ** 2
    nearest = np.argmin(distance, axis=2)
    return resize_field(rng.random(count, np.float32)[nearest], height, width, _RESAMPLING.BILINEAR)


def draw_speckles(rng: np.random.Generator, height: int, width: int) -> Field:
    """Draw sparse soft specks on an even ground."""
    noise = draw_noise(rng, height, width, draw_log_uniform(rng, 2, 8))
    threshold = rng.uniform(0.6, 0.8)
    specks: Field = np.clip((noise - threshold) * 6, 0, 1)
    return specks


FIELDS: dict[str, FieldDrawer] = {
    "flat": draw_flat,
    "gradient": draw_gradient,
    "grain": draw_grain,
    "clouds": draw_clouds,
    "stripes": draw_stripes,
    "checker": draw_checker,
    "dots": draw_dots,
    "rings": draw_rings,
    "patches": draw_patches,
    "speckles": draw_speckles,
}


def mix_colors(field_hw: Field, color_a: Field, color_b: Field) -> Field:
    """Mix two RGB colours by a field: [h, w, 3]."""
    mixed: Field = color_a + field_hw[..., None] * (color_b - color_a)
    return mixed


def _draw_period(rng: np.random.Generator, height: int, width: int) -> float:
    """Draw the period of a pattern: from 3 pixels to half of the patch, log-uniform."""
    return draw_log_uniform(rng, 3, max(5.0, min(48.0, 0.5 * max(height, width))))


def _stretch(field_hw: Field) -> Field:
    """Pull a field that crowds around its middle apart, so that both colours show."""
    stretched: Field = np.clip((field_hw - 0.5) * 1.8 + 0.5, 0, 1)
    return stretched


def blur_field(field_hw: Field, radius: float) -> Field:
    """Blur a field in 0..1 by a Gaussian; 8 bits are kept."""
    image = PilImage.fromarray(np.clip(field_hw * 255 + 0.5, 0, 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def blur_color(color_HW3: Field, radius: float) -> Field:
    """Blur an image by a Gaussian."""
    return blur_field(color_HW3, radius)


def change_gamma(color_HW3: Field, gamma: float) -> Field:
    """Raise the colours to a power: below 1 is lighter."""
    return np.power(np.clip(color_HW3, 0, 1), gamma)


def change_light(rng: np.random.Generator, color_HW3: Field, strength: float) -> Field:
    """Multiply by a slow field of light around 1."""
    height, width = color_HW3.shape[:2]
    light = draw_noise(rng, height, width, max(height, width) * rng.uniform(0.5, 1.0))
    return color_HW3 * (1 + strength * (2 * light - 1))[..., None]


def change_colors(rng: np.random.Generator, color_HW3: Field, strength: float) -> Field:
    """Change brightness, contrast, saturation and tint by random amounts."""
    saturation = rng.uniform(1 - 2 * strength, 1 + strength)
    grey = color_HW3.mean(axis=2, keepdims=True)
    tint = rng.uniform(1 - strength / 2, 1 + strength / 2, 3).astype(np.float32)
    contrast, shift = rng.uniform(1 - strength, 1 + strength), rng.uniform(-1, 1) * strength / 3
    color: Field = (grey + (color_HW3 - grey) * saturation) * tint
    return (color - 0.5) * contrast + (0.5 + shift)


def add_noise(rng: np.random.Generator, color_HW3: Field, strength: float) -> Field:
    """Add Gaussian noise, grey or coloured."""
    channels = 1 if rng.random() < 0.5 else 3
    noise = rng.standard_normal((*color_HW3.shape[:2], channels), np.float32)
    return color_HW3 + noise * strength


def compress(color_HW3: Field, quality: int) -> Field:
    """Send an image through JPEG, for its blocks and its smeared colours."""
    image = PilImage.fromarray(np.clip(color_HW3 * 255 + 0.5, 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return np.asarray(PilImage.open(buffer), np.float32) / 255


def develop(rng: np.random.Generator, color_HW3: Field) -> Field:
    """Apply a random few of the changes, none of them to a good part of the images."""
    color = color_HW3
    if rng.random() < 0.5:
        color = change_colors(rng, color, rng.uniform(0.05, 0.35))
    if rng.random() < 0.35:
        color = change_light(rng, color, rng.uniform(0.1, 0.4))
    if rng.random() < 0.4:
        color = change_gamma(color, draw_log_uniform(rng, 0.5, 2))
    if rng.random() < 0.25:
        color = blur_color(color, rng.uniform(0.4, 1.3))
    if rng.random() < 0.4:
        color = add_noise(rng, color, rng.uniform(0.005, 0.06))
    if rng.random() < 0.25:
        color = compress(color, int(rng.integers(25, 85)))
    if rng.random() < 0.08:
        color = np.repeat(color.mean(axis=2, keepdims=True), 3, axis=2)
    return color
