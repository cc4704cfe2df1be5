"""Prompts of one image in, compressed masks out; memory does not grow with the number of prompts.

``prompts=grid`` finds everything in an image, by a grid of single points: the masks of each that the model is sure of, that
hardly change with the threshold, and that no better one covers. Reference: ``SamAutomaticMaskGenerator`` of segment-anything, on
the whole image as its one crop.

Legend: N prompts, K masks, H W size of the image, h w of the low-resolution logits.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vpexp.data.annotations import Rle
from vpexp.data.masks import choose_distinct, compute_area, compute_box, decode_rle, encode_mask
from vpexp.data.prompts import Prompts, prompts_from_points
from vpexp.inference.predictor import ImageEmbedding, Prediction, Predictor
from vpexp.inference.upscaling import Upscaling

if TYPE_CHECKING:
    from vpexp.config.schema import PredictConfig

# Masks that are held at the image's size at once, in pixels.
CHUNK_PIXELS = 64 * 1024 * 1024
CHUNK_PROMPTS = 256


@dataclass(frozen=True, slots=True)
class FoundMask:
    """A mask that a prompt gave.

    Attributes:
        rle: the mask, compressed; it has at least one pixel.
        score: its predicted IoU; of what the prompter found, that and the box's own score.
        prompt: which prompt gave it.
        label: its class, where the model names it.
    """

    rle: Rle
    score: float
    prompt: int
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Segmentation:
    """What the prompts of one image gave.

    Attributes:
        masks: in the order of the prompts; of a grid, the best first.
        empty: how many masks have no pixel.
        weak: how many masks were left out for their score.
        unstable: how many were left out for their stability.
        overlapping: how many were left out for a better one.
    """

    masks: list[FoundMask]
    empty: int = 0
    weak: int = 0
    unstable: int = 0
    overlapping: int = 0


@dataclass(frozen=True, slots=True)
class GridFilter:
    """Which masks of a grid are kept.

    Attributes:
        min_score: lowest predicted IoU.
        min_stability: lowest stability score, see ``compute_stability``.
        stability_offset: by how much its two thresholds lie beside 0, in logits.
        max_box_overlap: of masks whose boxes have a higher IoU only the better one is kept.
        max_overlap: the same for the masks themselves, after the boxes; 1: boxes decide alone.
        min_area: islands and holes of fewer pixels are removed; 0: none.
    """

    min_score: float
    min_stability: float = 0.0
    stability_offset: float = 1.0
    max_box_overlap: float = 1.0
    max_overlap: float = 1.0
    min_area: int = 0

    @classmethod
    def from_config(cls, settings: "PredictConfig") -> "GridFilter":
        """Build the filter of ``prompts=grid``."""
        return cls(
            min_score=max(settings.min_score, settings.grid_min_score),
            min_stability=settings.grid_stability,
            max_box_overlap=settings.grid_box_overlap,
            max_overlap=settings.grid_overlap,
            min_area=settings.grid_min_area,
        )


def segment(predictor: Predictor, embedding: ImageEmbedding, prompts: Prompts, *, min_score: float) -> Segmentation:
    """Decode prompts in chunks, and keep the masks that have a pixel and score well enough.

    Args:
        predictor: any backend.
        embedding: of the image.
        prompts: pixels of the image.
        min_score: lowest predicted IoU; one below 0, which a model may predict, counts as 0. A score that is no number
            is never well enough.
    """
    return _collect(decode_in_chunks(predictor, embedding, prompts), GridFilter(min_score))


def segment_grid(
    predictor: Predictor,
    embedding: ImageEmbedding,
    prompts: Prompts,
    filters: GridFilter,
    advance: Callable[[int], None],
) -> Segmentation:
    """Decode points in chunks, three masks each unless the predictor's rule is ``never``, and keep the best of all masks.

    Args:
        predictor: any backend.
        embedding: of the image.
        prompts: points, see ``build_grid``.
        filters: which masks are kept.
        advance: called after each chunk with how many points it had.
    """
    upscaling = predictor.plan_upscaling(embedding)
    multimask = None if predictor.multimask == "never" else True

    def decode() -> Iterator[tuple[int, Prediction]]:
        for start, prediction in decode_in_chunks(predictor, embedding, prompts, multimask=multimask):
            yield start, prediction
            advance(len(prediction.iou))

    found = _collect(decode(), filters, upscaling)
    kept = keep_distinct(found.masks, filters)
    return replace(found, masks=kept, overlapping=len(found.masks) - len(kept))


def decode_in_chunks(
    predictor: Predictor, embedding: ImageEmbedding, prompts: Prompts, *, multimask: bool | None = None
) -> Iterator[tuple[int, Prediction]]:
    """Decode prompts in chunks whose masks fit into memory; with each, the place of its first prompt."""
    height, width = embedding.original_hw
    pixels = height * width * (3 if multimask else 1)
    chunk = min(CHUNK_PROMPTS, max(1, CHUNK_PIXELS // pixels))
    for start in range(0, len(prompts), chunk):
        some = prompts.select(slice(start, start + chunk))
        yield start, predictor.decode_prompts(embedding, some, multimask=multimask)


def _collect(
    predictions: Iterator[tuple[int, Prediction]], filters: GridFilter, upscaling: Upscaling | None = None
) -> Segmentation:
    """Collect the masks that are good enough by themselves; ``upscaling`` is needed where stability counts."""
    masks: list[FoundMask] = []
    empty = weak = unstable = 0
    for start, prediction in predictions:
        low_res_Khw = prediction.low_res.reshape(-1, *prediction.low_res.shape[-2:])
        iou_K = prediction.iou.reshape(-1)
        for place, (rle, score) in enumerate(zip(prediction.encode_masks(), iou_K.tolist(), strict=True)):
            if not max(score, 0.0) >= filters.min_score:
                weak += 1
            elif not compute_area(rle):
                empty += 1
            elif upscaling is not None and not _is_stable(low_res_Khw[place], upscaling, filters):
                unstable += 1
            else:
                masks.append(FoundMask(rle, score, start + place * len(prediction.iou) // len(iou_K)))
    return Segmentation(masks, empty, weak, unstable)


def _is_stable(low_res_hw: NDArray[np.float32], upscaling: Upscaling, filters: GridFilter) -> bool:
    if not filters.min_stability:
        return True
    return compute_stability(low_res_hw, upscaling, filters.stability_offset) >= filters.min_stability


def compute_stability(low_res_hw: NDArray[np.float32], upscaling: Upscaling, offset: float) -> float:
    """Compute SAM's stability score: the IoU of a mask's versions whose thresholds lie ``offset`` above and below 0.

    Args:
        low_res_hw: logits.
        upscaling: to the image's size, where the pixels are counted.
        offset: in logits.

    Returns:
        0 to 1; NaN where both versions are empty.
    """
    region = upscaling.find_region(low_res_hw + np.float32(offset))
    if not region.area:
        return math.nan
    logits_HW = upscaling.upscale(low_res_hw, region)
    union = np.count_nonzero(logits_HW > -offset)
    return np.count_nonzero(logits_HW > offset) / union if union else math.nan


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


def keep_distinct(masks: Sequence[FoundMask], filters: GridFilter) -> list[FoundMask]:
    """Keep the better one of masks that overlap: first of those whose boxes do, then of those that do themselves.

    In between, small islands and holes are removed; of masks that then share a box, one that it left as it was is kept.

    Returns:
        What is kept, best first; where boxes decide alone, masks that lost islands or holes come last.
    """
    kept = _suppress(masks, [mask.score for mask in masks], filters.max_box_overlap)
    if filters.min_area:
        cleaned = [remove_small_regions(decode_rle(mask.rle), filters.min_area) for mask in kept]
        whole = [
            replace(mask, rle=encode_mask(mask_HW)) if changed else mask
            for mask, (mask_HW, changed) in zip(kept, cleaned, strict=True)
        ]
        kept = _suppress(whole, [float(not changed) for _, changed in cleaned], filters.max_box_overlap)
    return keep_best(kept, filters.max_overlap) if filters.max_overlap < 1 else kept


def _suppress(masks: Sequence[FoundMask], scores: Sequence[float], max_iou: float) -> list[FoundMask]:
    """Keep the masks that score best: of two whose boxes have an IoU above ``max_iou`` only the better one; best first."""
    boxes_K4 = np.array([compute_box(mask.rle) for mask in masks], np.float32).reshape(-1, 4)
    boxes_K4[:, 2:] -= 1  # as SAM measures them: to the last pixel, and not to its edge
    areas_K = np.prod(boxes_K4[:, 2:] - boxes_K4[:, :2], axis=1)
    left_K = np.argsort(-np.array(scores), kind="stable")
    kept: list[FoundMask] = []
    while left_K.size:
        best, left_K = left_K[0], left_K[1:]
        kept.append(masks[best])
        low_K2 = np.maximum(boxes_K4[left_K, :2], boxes_K4[best, :2])
        high_K2 = np.minimum(boxes_K4[left_K, 2:], boxes_K4[best, 2:])
        shared_K = np.prod(np.maximum(high_K2 - low_K2, 0), axis=1)
        union_K = areas_K[left_K] + areas_K[best] - shared_K
        left_K = left_K[~(shared_K > np.float32(max_iou) * union_K)]
    return kept


def remove_small_regions(mask_HW: NDArray[np.bool_], min_area: int) -> tuple[NDArray[np.bool_], bool]:
    """Fill the holes of a mask, then remove its islands, that have fewer pixels than ``min_area``; the largest stays.

    Pixels that touch at a corner are of one region.

    Returns:
        The mask, and whether it had a hole or an island so small.
    """
    holes_HW, _ = _find_small_regions(~mask_HW, min_area)
    filled_HW = mask_HW | holes_HW
    islands_HW, largest_HW = _find_small_regions(filled_HW, min_area)
    kept_HW = filled_HW & ~islands_HW
    changed = bool(holes_HW.any() or islands_HW.any())
    return (kept_HW if kept_HW.any() else largest_HW), changed


def _find_small_regions(mask_HW: NDArray[np.bool_], min_area: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Find the regions of fewer pixels than ``min_area``, and the largest region of all."""
    regions_HW, _ = ndimage.label(mask_HW, structure=np.ones((3, 3)))
    sizes = np.bincount(regions_HW.ravel(), minlength=2)
    sizes[0] = min_area  # what is outside of the mask is none
    largest = 1 + int(sizes[1:].argmax())
    return (sizes < min_area)[regions_HW], regions_HW == largest


def _space_evenly(length: int, count: int) -> NDArray[np.int64]:
    """Choose the pixels in the middle of ``count`` equal parts of a side."""
    if count >= length:
        return np.arange(length)
    return ((2 * np.arange(count) + 1) * length) // (2 * count)
