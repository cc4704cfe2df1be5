"""Masks at original size from low-resolution logits, by torch: only what can be above 0 is upscaled.

Legend as in ``upscaling.py``; a part of an axis is ``from, up to`` in pixels.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vpexp.data.run_lengths import Region
from vpexp.inference.upscaling import AxisUpscaling, Taps, Upscaling
from vpexp.models.sam import upscale_logits

# Where the region covers more of the image, interpolating all of it in one go is faster.
LARGEST_SHARE = 0.4
# Torch interpolates to small sizes (rows + columns) by other code, which rounds differently, and takes no time there.
SMALL_SIZE = 128


def threshold_part(low_res_11hw: Tensor, region: Region, upscaling: Upscaling) -> NDArray[np.bool_]:
    """Compute the pixels of a mask inside a region: bool [region], logit above 0 as ``upscale_logits`` computes it.

    Args:
        low_res_11hw: logits of one mask, [1, 1, S/4, S/4], on any device.
        region: from ``Upscaling.find_region``.
        upscaling: of the image.
    """
    if _pays(low_res_11hw, region, upscaling):
        logits_hw = _upscale_part(low_res_11hw[0, 0], region, upscaling)
    else:
        logits_NHW = upscale_logits(
            low_res_11hw,
            image_size=upscaling.image_size,
            resized_hw=upscaling.resized_hw,
            original_hw=upscaling.original_hw,
        )
        logits_hw = logits_NHW[0][region.slices]
    positive_hw: NDArray[np.bool_] = (logits_hw > 0).cpu().numpy()
    return positive_hw


def _pays(low_res_11hw: Tensor, region: Region, upscaling: Upscaling) -> bool:
    """Say whether to compute the region alone: on a CPU, in float32, and where it is a small part of a larger image."""
    height, width = upscaling.original_hw
    return (
        low_res_11hw.device.type == "cpu"
        and low_res_11hw.dtype == torch.float32
        and min(2 * upscaling.image_size, height + width) > SMALL_SIZE
        and region.area <= LARGEST_SHARE * height * width
    )


def _upscale_part(low_res_hw: Tensor, region: Region, upscaling: Upscaling) -> Tensor:
    """Compute the logits of a region, bit by bit those that ``upscale_logits`` gives for the whole image."""
    rows = _find_steps(upscaling.rows, region.top, region.bottom)
    columns = _find_steps(upscaling.columns, region.left, region.right)
    part = low_res_hw[rows[0][0] : rows[0][1], columns[0][0] : columns[0][1]]
    for row_taps, column_taps in zip(rows[1], columns[1], strict=True):
        part = _interpolate(_interpolate(part, column_taps, dim=1), row_taps, dim=0)
    return part


def _find_steps(axis: AxisUpscaling, start: int, end: int) -> tuple[tuple[int, int], tuple[Taps, Taps]]:
    """Find the low-resolution part that original pixels are made of, and the taps of both steps inside the parts."""
    model_start, last, to_original = _cut(axis.to_original, start, end)
    low_start, low_last, to_model = _cut(axis.to_model, model_start, last + 1)
    return (low_start, low_last + 1), (to_model, to_original)


def _cut(taps: Taps, start: int, end: int) -> tuple[int, int, Taps]:
    """Cut taps to a part of the new axis, counted from the first value that they need: first, last and the taps."""
    part = slice(start, end)
    first, last = int(taps.first[start]), int(taps.second[end - 1])
    cut = Taps(taps.first[part] - first, taps.second[part] - first, taps.first_weight[part], taps.second_weight[part])
    return first, last, cut


def _interpolate(values_hw: Tensor, taps: Taps, *, dim: int) -> Tensor:
    """Interpolate along one axis in torch's own order: the second product is rounded, the first is not."""
    shape = (-1, 1) if dim == 0 else (1, -1)
    first, second = (values_hw.index_select(dim, torch.from_numpy(index)) for index in (taps.first, taps.second))
    second *= torch.from_numpy(taps.second_weight).view(shape)
    return torch.addcmul(second, first, torch.from_numpy(taps.first_weight).view(shape))
