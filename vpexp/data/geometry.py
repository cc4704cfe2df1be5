"""From the original image to the model's input, as the official code does it.

SAM keeps an image's proportions and pads it (``fit``), SAM 2 stretches it to the square (``stretch``).

Shapes: H W original size, h w resized size (longest side S, or both), S model input size, N boxes.
Reference: ``ResizeLongestSide`` and ``Sam.preprocess`` of Segment Anything (Kirillov et al., 2023); ``SAM2Transforms`` of SAM 2
(Ravi et al., 2024).
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vpexp.data.interface import FIT, STRETCH

PREPROCESSING_VERSION = 2
"""Raised with every change of what images become here or in ``images.py``: embeddings made before are not used then."""
MEAN = (123.675, 116.28, 103.53)
"""Mean of ImageNet's pixels, RGB, 0..255."""
STD = (58.395, 57.12, 57.375)
"""Standard deviation of ImageNet's pixels, RGB, 0..255."""


def compute_resized_size(height: int, width: int, image_size: int, resize: str = FIT) -> tuple[int, int]:
    """Compute the size of an image inside the model's square: its longest side, or both sides, become ``image_size``.

    Returns:
        (h, w) in pixels, each rounded half up as the official code does, at least 1. In whole numbers, as exported
        graphs compute it.
    """
    if resize == STRETCH:
        return image_size, image_size
    longest = max(height, width)
    resized_h, resized_w = ((2 * image_size * side + longest) // (2 * longest) for side in (height, width))
    return max(resized_h, 1), max(resized_w, 1)


def resize_image(image_HW3: NDArray[np.uint8], image_size: int, resize: str = FIT) -> NDArray[np.uint8]:
    """Resize an image so that its longest side, or both, are ``image_size``: the one resize of vpexp.

    PIL's bilinear filter, which is antialiased when it shrinks.

    Returns:
        uint8 [h, w, 3], RGB, 0..255.
    """
    height, width = image_HW3.shape[:2]
    resized_h, resized_w = compute_resized_size(height, width, image_size, resize)
    if (resized_h, resized_w) == (height, width):
        return image_HW3.copy()
    resized = Image.fromarray(image_HW3).resize((resized_w, resized_h), Image.Resampling.BILINEAR)
    return np.array(resized, dtype=np.uint8)


def normalize_and_pad(image_hw3: NDArray[np.uint8], image_size: int) -> NDArray[np.float32]:
    """Normalise a resized image, then pad it with zeros on the right and at the bottom.

    Padding comes last, so that the padded pixels are exactly zero, as the official models saw them.

    Returns:
        float32 [3, S, S].
    """
    height, width = image_hw3.shape[:2]
    padded = np.zeros((3, image_size, image_size), dtype=np.float32)
    for channel in range(3):
        plane = image_hw3[:, :, channel].astype(np.float32)
        padded[channel, :height, :width] = (plane - np.float32(MEAN[channel])) / np.float32(STD[channel])
    return padded


def scale_points(
    points_2: NDArray[np.floating], original_hw: tuple[int, int], resized_hw: tuple[int, int]
) -> NDArray[np.float32]:
    """Move points from the original image to the resized image, each axis by its own factor.

    Args:
        points_2: [..., 2] as (x, y), pixels of the original image.
        original_hw: (H, W) of the original image.
        resized_hw: (h, w) of the resized image, from `compute_resized_size`.

    Returns:
        float32 [..., 2] as (x, y), pixels of the resized image.
    """
    factors = np.array([resized_hw[1] / original_hw[1], resized_hw[0] / original_hw[0]], dtype=np.float64)
    return (np.asarray(points_2, dtype=np.float64) * factors).astype(np.float32)


def scale_boxes(
    boxes_N4: NDArray[np.floating], original_hw: tuple[int, int], resized_hw: tuple[int, int]
) -> NDArray[np.float32]:
    """Move boxes from the original image to the resized image.

    Args:
        boxes_N4: [..., 4] xyxy, pixels of the original image.
        original_hw: (H, W) of the original image.
        resized_hw: (h, w) of the resized image.

    Returns:
        float32 [..., 4] xyxy, pixels of the resized image.
    """
    boxes = np.asarray(boxes_N4)
    corners = boxes.reshape(*boxes.shape[:-1], 2, 2)
    return scale_points(corners, original_hw, resized_hw).reshape(boxes.shape)
