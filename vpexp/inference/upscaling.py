"""Where the pixels of a mask can lie, computed from its low-resolution logits, without upscaling them.

Logits go from the low resolution to the model's square, lose the padding, and go to the original size, both times by
bilinear interpolation. Its weights are never negative: a pixel above 0 has at least one logit above 0 among the few that
it is made of. So only the pixels that a logit above 0 reaches need to be computed or looked at.

Legend: h w low resolution (S/4), S model size, H W original size.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vpexp.data.masks import NOWHERE, Region

_SLACK = 0.01
"""Libraries compute places in float32, each in its own way; in pixels of the smaller size."""


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """The two values that each value of an interpolated axis is made of, as torch computes them.

    Attributes:
        first: int64, index of the first.
        second: int64, index of the second.
        first_weight: float32, share of the first.
        second_weight: float32, share of the second.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    first_weight: NDArray[np.float32]
    second_weight: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class AxisUpscaling:
    """One axis on its way from the low resolution to the original size.

    Attributes:
        to_model: from the low resolution to the model's size, the padding left out.
        to_original: from there to the original size.
        lowest: int64 [H], the first low-resolution value that an original pixel may be made of.
        highest: int64 [H], the last one.
    """

    to_model: Taps
    to_original: Taps
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


@dataclass(frozen=True, slots=True, eq=False)
class Upscaling:
    """Both axes; built by ``plan_upscaling``."""

    rows: AxisUpscaling
    columns: AxisUpscaling
    image_size: int
    resized_hw: tuple[int, int]
    original_hw: tuple[int, int]

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


@lru_cache(maxsize=32)
def plan_upscaling(
    low_res_size: int, image_size: int, resized_hw: tuple[int, int], original_hw: tuple[int, int]
) -> Upscaling:
    """Compute the places and weights of both interpolations, once a size of images.

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
    return Upscaling(rows, columns, image_size, resized_hw, original_hw)


def _plan_axis(low_res_size: int, image_size: int, resized: int, original: int) -> AxisUpscaling:
    to_model = _take(_compute_taps(low_res_size, image_size), slice(resized))
    low_of_model, model_of_original = _find_bounds(low_res_size, image_size), _find_bounds(resized, original)
    return AxisUpscaling(
        to_model,
        _compute_taps(resized, original),
        lowest=low_of_model[0][model_of_original[0]],
        highest=low_of_model[1][model_of_original[1]],
    )


def _take(taps: Taps, part: slice) -> Taps:
    return Taps(taps.first[part], taps.second[part], taps.first_weight[part], taps.second_weight[part])


def _compute_places(size: int, new_size: int) -> NDArray[np.float32]:
    """Compute where the centres of the new pixels lie among the old ones, in float32 and rounded once, as torch does."""
    scale = np.float64(np.float32(size) / np.float32(new_size))
    places = scale * (np.arange(new_size) + 0.5) - 0.5
    return np.maximum(places, 0).astype(np.float32)


def _compute_taps(size: int, new_size: int) -> Taps:
    if size == new_size:
        same = np.arange(size)
        return Taps(same, same, np.ones(size, np.float32), np.zeros(size, np.float32))
    places = _compute_places(size, new_size)
    first = np.minimum(places.astype(np.int64), size - 1)
    second = np.minimum(first + 1, size - 1)
    second_weight = np.clip(places - first.astype(np.float32), 0, 1).astype(np.float32)
    return Taps(first, second, np.float32(1) - second_weight, second_weight)


def _find_bounds(size: int, new_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    places = _compute_places(size, new_size)
    lowest = np.clip(np.floor(places - _SLACK), 0, size - 1).astype(np.int64)
    return lowest, np.clip(np.ceil(places + _SLACK), 0, size - 1).astype(np.int64)
