"""Prompts of one image in, compressed masks out; memory does not grow with the number of prompts.

``prompts=grid`` finds everything in an image, by a grid of single points and the best of the masks that overlap.

Legend: N prompts, H W size of the image, s side of the low-resolution logits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vpexp.data.annotations import Rle
from vpexp.data.masks import choose_distinct, compute_area
from vpexp.data.prompts import Prompts, prompts_from_points
from vpexp.inference.predictor import ImageEmbedding, Prediction, Predictor

# Masks that are held at the image's size at once, in pixels.
CHUNK_PIXELS = 64 * 1024 * 1024
CHUNK_PROMPTS = 256


@dataclass(frozen=True, slots=True)
class FoundMask:
    """A mask that a prompt gave.

    Attributes:
        rle: the mask, compressed; it has at least one pixel.
        score: its predicted IoU.
        prompt: which prompt gave it.
    """

    rle: Rle
    score: float
    prompt: int


@dataclass(frozen=True, slots=True)
class Segmentation:
    """What the prompts of one image gave.

    Attributes:
        masks: in the order of the prompts.
        empty: how many prompts gave no pixel.
        weak: how many masks were left out for their score.
    """

    masks: list[FoundMask]
    empty: int = 0
    weak: int = 0


def segment(predictor: Predictor, embedding: ImageEmbedding, prompts: Prompts, *, min_score: float) -> Segmentation:
    """Decode prompts in chunks, and keep the masks that have a pixel and score well enough.

    Args:
        predictor: any backend.
        embedding: of the image.
        prompts: pixels of the image.
        min_score: lowest predicted IoU; one below 0, which a model may predict, counts as 0. A score that is no number
            is never well enough.
    """
    masks: list[FoundMask] = []
    empty = weak = 0
    for start, prediction in decode_in_chunks(predictor, embedding, prompts):
        for offset, (rle, score) in enumerate(zip(prediction.encode_masks(), prediction.iou.tolist(), strict=True)):
            if not max(score, 0.0) >= min_score:
                weak += 1
            elif not compute_area(rle):
                empty += 1
            else:
                masks.append(FoundMask(rle, score, start + offset))
    return Segmentation(masks, empty, weak)


def decode_in_chunks(
    predictor: Predictor, embedding: ImageEmbedding, prompts: Prompts
) -> Iterator[tuple[int, Prediction]]:
    """Decode prompts in chunks whose masks fit into memory; with each, the place of its first prompt."""
    height, width = embedding.original_hw
    chunk = min(CHUNK_PROMPTS, max(1, CHUNK_PIXELS // (height * width)))
    for start in range(0, len(prompts), chunk):
        yield start, predictor.decode_prompts(embedding, prompts.select(slice(start, start + chunk)))


def build_grid(height: int, width: int, points_per_side: int) -> Prompts:
    """Build prompts of one point each: the pixels in the middle of the cells of a grid laid over the image.

    Along a side of fewer pixels than points, every pixel is one. Row by row, from the top left.
    """
    xs, ys = (_space_evenly(length, points_per_side) for length in (width, height))
    points_N2 = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
    return prompts_from_points(points_N2.astype(np.float32))


def keep_best(masks: Sequence[FoundMask], max_overlap: float) -> list[FoundMask]:
    """Keep the masks that score best: of two whose IoU is above ``max_overlap`` only the better one.

    The best is kept first, then the best of what is left; of equals, the one whose prompt came first.

    Returns:
        What is kept, best first.
    """
    places = choose_distinct([mask.rle for mask in masks], [mask.score for mask in masks], max_overlap)
    return [masks[place] for place in places]


def _space_evenly(length: int, count: int) -> NDArray[np.int64]:
    """Choose the pixels in the middle of ``count`` equal parts of a side."""
    if count >= length:
        return np.arange(length)
    return ((2 * np.arange(count) + 1) * length) // (2 * count)
