"""Logits of the low resolution become pixels of the original image, of which only those that can be above 0 are computed.

Logits go from the low resolution to the model's square, lose the padding, and go to the original size, both times by
bilinear interpolation. Its weights are never negative: a pixel above 0 has at least one logit above 0 among the few that
it is made of. So only the pixels that a logit above 0 reaches need to be computed or looked at. No backend takes part, so that
the same logits give the same mask whatever ran the model.

Legend: h w low resolution (S/4), S model size, H W original size.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vpexp.data.annotations import Region
from vpexp.data.masks import NOWHERE

_SLACK = 0.01
"""Libraries compute places in float32, each in its own way; in pixels of the smaller size."""


@dataclass(frozen=True, slots=True, eq=False)
class AxisUpscaling:
    """One axis on its way from the low resolution to the original size.

    Attributes:
        weights: float32 [H, h], of the low-resolution values in each original pixel.
        lowest: int64 [H], the first low-resolution value that an original pixel may be made of.
        highest: int64 [H], the last one.
    """

    weights: NDArray[np.float32]
    lowest: NDArray[np.int64]
    highest: NDArray[np.int64]

    def find_reach(self, positive: NDArray[np.bool_]) -> tuple[int, int]:
        """Find the original pixels, from and up to, that low-resolution values can make positive."""
        places = np.flatnonzero(positive[: self.highest[-1] + 1])
        if not places.size:
            return 0, 0
        start = int(np.searchsorted(self.highest, places[0], side="left"))
        end = int(np.searchsorted(self.lowest, places[-1], side="right"))
        return (start, end) if start < end else (0, 0)

    def cut(self, start: int, end: int) -> tuple[slice, NDArray[np.float32]]:
        """Cut out what original pixels are made of: the low-resolution values, and their weights."""
        made_of = slice(int(self.lowest[start]), int(self.highest[end - 1]) + 1)
        return made_of, self.weights[start:end, made_of]


@dataclass(frozen=True, slots=True, eq=False)
class Upscaling:
    """Both axes; built by ``plan_upscaling``."""

    rows: AxisUpscaling
    columns: AxisUpscaling

    def find_region(self, low_res_hw: NDArray[np.floating]) -> Region:
        """Find the part of the original image outside of which no pixel of a mask is above 0.

        Args:
            low_res_hw: logits [S/4, S/4].
        """
        positive_hw = low_res_hw > 0
        top, bottom = self.rows.find_reach(np.any(positive_hw, axis=1))
        left, right = self.columns.find_reach(np.any(positive_hw, axis=0))
        region = Region(top, left, bottom, right)
        return region if region.area else NOWHERE

    def upscale(self, low_res_hw: NDArray[np.float32], region: Region) -> NDArray[np.float32]:
        """Compute the logits of a region of at least one pixel.

        Interpolation is linear and treats the axes one after the other, so it is a product with a matrix for each axis.

        Args:
            low_res_hw: logits [S/4, S/4].
            region: part of the original image.
        """
        rows, row_weights = self.rows.cut(region.top, region.bottom)
        columns, column_weights = self.columns.cut(region.left, region.right)
        return np.asarray(row_weights @ low_res_hw[rows, columns] @ column_weights.T, dtype=np.float32)


@lru_cache(maxsize=8)  # some megabytes each
def plan_upscaling(
    low_res_size: int, image_size: int, resized_hw: tuple[int, int], original_hw: tuple[int, int]
) -> Upscaling:
    """Compute the weights of both interpolations, once a size of images.

    Args:
        low_res_size: S/4.
        image_size: S.
        resized_hw: size of the image inside the model's square.
        original_hw: size of the image as it came.
    """
    rows, columns = (
        _plan_axis(low_res_size, image_size, resized, original)
        for resized, original in zip(resized_hw, original_hw, strict=True)
    )
    return Upscaling(rows, columns)


def _plan_axis(low_res_size: int, image_size: int, resized: int, original: int) -> AxisUpscaling:
    low_of_model, model_of_original = _find_bounds(low_res_size, image_size), _find_bounds(resized, original)
    to_model = _compute_taps(low_res_size, image_size)
    weights = np.zeros((original, low_res_size), dtype=np.float32)
    pixels = np.arange(original)
    for model_index, model_weight in _compute_taps(resized, original):
        for low_index, low_weight in to_model:
            weights[pixels, low_index[model_index]] += model_weight * low_weight[model_index]
    return AxisUpscaling(
        weights,
        lowest=low_of_model[0][model_of_original[0]],
        highest=low_of_model[1][model_of_original[1]],
    )


def _compute_places(size: int, new_size: int) -> NDArray[np.float32]:
    """Compute where the centres of the new pixels lie among the old ones, in float32 and rounded once, as torch does."""
    scale = np.float64(np.float32(size) / np.float32(new_size))
    places = scale * (np.arange(new_size) + 0.5) - 0.5
    return np.maximum(places, 0).astype(np.float32)


def _compute_taps(size: int, new_size: int) -> tuple[tuple[NDArray[np.int64], NDArray[np.float32]], ...]:
    """Compute the two old values that each new one is made of, and their shares, as torch does."""
    if size == new_size:
        return ((np.arange(size), np.ones(size, np.float32)),)
    places = _compute_places(size, new_size)
    first = np.minimum(places.astype(np.int64), size - 1)
    second = np.minimum(first + 1, size - 1)
    second_weight = np.clip(places - first.astype(np.float32), 0, 1).astype(np.float32)
    return (first, np.float32(1) - second_weight), (second, second_weight)


def _find_bounds(size: int, new_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    places = _compute_places(size, new_size)
    lowest = np.clip(np.floor(places - _SLACK), 0, size - 1).astype(np.int64)
    return lowest, np.clip(np.ceil(places + _SLACK), 0, size - 1).astype(np.int64)
