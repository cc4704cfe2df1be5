"""Flips and quarter turns of training images, and changes of their colours.

A variant is a number: 0 is the image as it is; ``variant % 4`` counts quarter turns against the clock, and from 4 on the image is
mirrored, left and right exchanged, before it is turned. All eight are the symmetries of the square. An encoder does not give the
turned embedding for a turned image, so each variant is encoded for itself: it is an image of its own, with an entry of its own in the
embedding cache. A window is cut out first and turned then.

Legend: H W size before turning, N objects.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpexp.data.annotations import AnnotatedImage, ImagePlace, Region, Rle
from vpexp.data.masks import compute_box, decode_rle, encode_part, move_mask

FLIP, TURN, PHOTO = "flip", "turn", "photo"
MIRRORED = 4
"""The first of the variants that are mirrored."""
QUARTERS = 4
# Behind seed, epoch and index: draws of their own, so that prompts are drawn as without them.
_VARIANT_DRAW, _PHOTO_DRAW = 1, 2
MOST_CHANGE = 0.25
"""Brightness, contrast and saturation change by up to this share."""
MOST_NOISE = 8.0
"""Standard deviation of the noise of pixels, of 255, at most."""
GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of red, green and blue in a pixel's brightness (ITU-R BT.601)."""


def list_variants(augment: Sequence[str]) -> tuple[int, ...]:
    """List the variants of each training image, 0 first: one, two (flip), four (turn) or eight."""
    turns = range(QUARTERS if TURN in augment else 1)
    return tuple(start + turn for start in ((0, MIRRORED) if FLIP in augment else (0,)) for turn in turns)


def draw_variant(variants: Sequence[int], seed: int, epoch: int, index: int) -> int:
    """Draw the variant of an image in an epoch."""
    if len(variants) == 1:
        return variants[0]
    return int(np.random.default_rng([seed, epoch, index, _VARIANT_DRAW]).choice(variants))


def turn_pixels(pixels: NDArray[Any], variant: int) -> NDArray[Any]:
    """Mirror and turn an image [H, W, ...]: [H, W, ...] or [W, H, ...]."""
    if variant == 0:
        return pixels
    mirrored = pixels[:, ::-1] if variant >= MIRRORED else pixels
    return np.ascontiguousarray(np.rot90(mirrored, variant % QUARTERS))


def turn_size(height: int, width: int, variant: int) -> tuple[int, int]:
    """Compute the size of a turned image."""
    return (width, height) if variant % 2 else (height, width)


def turn_boxes(boxes_N4: NDArray[np.float32], height: int, width: int, variant: int) -> NDArray[np.float32]:
    """Mirror and turn boxes, xyxy, with their image of H times W pixels."""
    left_N, top_N, right_N, bottom_N = boxes_N4.T
    if variant >= MIRRORED:
        left_N, right_N = width - right_N, width - left_N
    for _ in range(variant % QUARTERS):
        left_N, top_N, right_N, bottom_N = top_N, width - right_N, bottom_N, width - left_N
        height, width = width, height
    return np.stack([left_N, top_N, right_N, bottom_N], axis=1).astype(np.float32)


def turn_mask(rle: Rle, variant: int) -> Rle:
    """Mirror and turn a mask; only the part that has pixels is expanded."""
    height, width = rle["size"]
    box_4 = compute_box(rle)
    left, top, right, bottom = box_4.astype(int).tolist()
    part_hw = decode_rle(move_mask(rle, top, left, bottom - top, right - left))
    turned_4 = turn_boxes(box_4[None], height, width, variant)[0].astype(int).tolist()
    region = Region(turned_4[1], turned_4[0], turned_4[3], turned_4[2])
    return encode_part(turn_pixels(part_hw, variant), region, *turn_size(height, width, variant))


def turn_annotations(image: AnnotatedImage, variant: int) -> AnnotatedImage:
    """Mirror and turn an image, or a window of one, with its objects; its pixels are turned when they are read."""
    if variant == 0:
        return image
    height, width = turn_size(image.height, image.width, variant)
    return replace(
        image,
        height=height,
        width=width,
        masks=tuple(turn_mask(rle, variant) for rle in image.masks),
        boxes_N4=turn_boxes(image.boxes_N4, image.height, image.width, variant),
        variant=variant,
    )


def list_variant_places(places: Sequence[ImagePlace], variants: Sequence[int]) -> list[ImagePlace]:
    """List where the pixels of all variants but 0 come from, those of one image behind each other."""
    return [place._replace(variant=variant) for place in places for variant in variants if variant]


def change_photo(image_hw3: NDArray[np.uint8], seed: int, epoch: int, index: int) -> NDArray[np.uint8]:
    """Change brightness, contrast and saturation of an image, and add noise to its pixels; RGB uint8."""
    rng = np.random.default_rng([seed, epoch, index, _PHOTO_DRAW])
    brightness, contrast, saturation = rng.uniform(1 - MOST_CHANGE, 1 + MOST_CHANGE, 3).astype(np.float32).tolist()
    pixels_hw3 = image_hw3.astype(np.float32)
    mean = float(pixels_hw3.mean())
    pixels_hw3 = (pixels_hw3 - mean) * contrast + mean * brightness
    grey_hw1 = (pixels_hw3 @ GREY)[..., None]
    pixels_hw3 = grey_hw1 + (pixels_hw3 - grey_hw1) * saturation
    pixels_hw3 += rng.uniform(0, MOST_NOISE) * rng.standard_normal(pixels_hw3.shape, dtype=np.float32)
    changed_hw3: NDArray[np.uint8] = np.clip(np.rint(pixels_hw3), 0, 255).astype(np.uint8)
    return changed_hw3
