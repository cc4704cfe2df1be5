"""Photometric changes of a whole image: light, contrast, blur, noise, compression.

Shapes: H W size of the image; colours are float32 in 0..1.
"""

import io

import numpy as np
from PIL import Image as PilImage
from PIL import ImageFilter

from vpexp.data.scenes.textures import draw_log_uniform, draw_noise
from vpexp.data.scenes.types import Field


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
