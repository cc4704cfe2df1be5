"""What a mask's class is read from: the image around it, cut out at one size with the mask as a fourth channel.

Legend: K masks, P side of a crop, H W size of the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vpexp.data.annotations import Rle
from vpexp.data.masks import compute_area, compute_box, decode_rle, move_mask

SIDE = 64
CONTEXT = 1.25
"""Side of what is cut out, in lengths of the mask's longer side."""
SMALLEST = 4.0
"""Pixels of that side, at least."""


@dataclass(frozen=True, slots=True)
class MaskCrops:
    """K masks as a classifier takes them.

    Attributes:
        crops_K4PP: uint8: red, green, blue, and how much of each pixel the mask covers, 0 to 255; zeros outside of the image.
        extents_K2: float32: logarithms of the mask's share of the image and of its box's width over its height.
    """

    crops_K4PP: NDArray[np.uint8]
    extents_K2: NDArray[np.float32]


def crop_masks(image_HW3: NDArray[np.uint8], masks: Sequence[Rle]) -> MaskCrops:
    """Cut masks, each with at least one pixel, and what surrounds them out of an image."""
    height, width = image_HW3.shape[:2]
    crops_K4PP = np.zeros((len(masks), 4, SIDE, SIDE), np.uint8)
    extents_K2 = np.zeros((len(masks), 2), np.float32)
    for place, rle in enumerate(masks):
        left, top, right, bottom = compute_box(rle).tolist()
        side = int(np.ceil(max(right - left, bottom - top, SMALLEST) * CONTEXT))
        x, y = round((left + right - side) / 2), round((top + bottom - side) / 2)
        inner = (slice(max(0, y), min(height, y + side)), slice(max(0, x), min(width, x + side)))
        own = (slice(inner[0].start - y, inner[0].stop - y), slice(inner[1].start - x, inner[1].stop - x))
        layers_hw4 = np.zeros((side, side, 4), np.uint8)
        layers_hw4[(*own, slice(3))] = image_HW3[inner]
        layers_hw4[..., 3] = 255 * decode_rle(move_mask(rle, y, x, side, side))
        colors = Image.fromarray(layers_hw4[..., :3]).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        cover = Image.fromarray(layers_hw4[..., 3]).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        crops_K4PP[place, :3] = np.asarray(colors).transpose(2, 0, 1)
        crops_K4PP[place, 3] = np.asarray(cover)
        extents_K2[place] = np.log([compute_area(rle) / (height * width), (right - left) / (bottom - top)])
    return MaskCrops(crops_K4PP, extents_K2)
