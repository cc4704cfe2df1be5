"""The torch form of the predictor. Of the masks at original size, only what can be above 0 is upscaled.

Legend as in ``predictor.py`` and ``upscaling.py``; a part of an axis is ``from, up to`` in pixels.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vpexp.data.geometry import compute_resized_size, normalize_and_pad, resize_image, scale_points
from vpexp.data.masks import Region
from vpexp.data.prompts import Prompts
from vpexp.inference.predictor import (
    ImageEmbedding,
    Prediction,
    build_prompts,
    check_image,
    check_mask_input,
    count_prompts_a_call,
)
from vpexp.inference.upscaling import AxisUpscaling, Taps, Upscaling, plan_upscaling
from vpexp.models.sam import Sam, upscale_logits

# Where the region covers more of the image, interpolating all of it in one go is faster.
LARGEST_SHARE = 0.4
# Torch interpolates to small sizes (rows + columns) by other code, which rounds differently, and takes no time there.
SMALL_SIZE = 128


class TorchPredictor:
    """Runs a ``Sam`` module where it lies, in the mode it is in, without gradients."""

    def __init__(self, sam: Sam) -> None:
        self.sam = sam
        self.image_size = sam.image_size

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.sam.parameters()).device

    @torch.no_grad()
    def embed(self, image_HW3: NDArray[np.uint8]) -> ImageEmbedding:
        """Encode an RGB image: uint8 [H, W, 3], any size; ValueError for anything else."""
        check_image(image_HW3)
        original_hw = (int(image_HW3.shape[0]), int(image_HW3.shape[1]))
        input_3SS = normalize_and_pad(resize_image(image_HW3, self.image_size), self.image_size)
        features = self.sam.encode_image(torch.from_numpy(input_3SS)[None].to(self.device))
        return ImageEmbedding(features, original_hw, compute_resized_size(*original_hw, self.image_size))

    def restore(self, embedding_CHW: NDArray[Any], original_hw: tuple[int, int]) -> ImageEmbedding:
        """Take up an embedding [C, S/16, S/16] that this model's encoder made before."""
        parameter = next(self.sam.mask_decoder.parameters())
        features = torch.from_numpy(np.array(embedding_CHW))[None].to(parameter.device).to(parameter.dtype)
        return ImageEmbedding(features, original_hw, compute_resized_size(*original_hw, self.image_size))

    @torch.no_grad()
    def decode_prompts(self, embedding: ImageEmbedding, prompts: Prompts) -> Prediction:
        """Decode prompts in chunks that bound memory; masks are brought to the original size one by one."""
        coords_NP2 = scale_points(prompts.coords_NP2, embedding.original_hw, embedding.resized_hw).astype(np.float32)
        height, width = embedding.original_hw
        low_res_size = self.image_size // 4
        check_mask_input(prompts, low_res_size)
        masks = np.zeros((len(prompts), height, width), dtype=np.bool_)
        iou = np.zeros(len(prompts), dtype=np.float32)
        low_res = np.zeros((len(prompts), low_res_size, low_res_size), dtype=np.float32)
        regions: list[Region] = []
        upscaling = plan_upscaling(low_res_size, self.image_size, embedding.resized_hw, embedding.original_hw)
        chunk = count_prompts_a_call((1, 1), self.image_size)
        for start in range(0, len(prompts), chunk):
            part = slice(start, start + chunk)
            labels_NP = torch.from_numpy(prompts.labels_NP[part]).to(self.device)
            earlier = None if prompts.mask_input_Nhw is None else torch.from_numpy(prompts.mask_input_Nhw[part, None])
            decoded = self.sam.decode(
                embedding.features,
                torch.zeros(len(labels_NP), dtype=torch.int64, device=self.device),
                torch.from_numpy(coords_NP2[part]).to(self.device),
                labels_NP,
                None if earlier is None else earlier.to(embedding.features.device, embedding.features.dtype),
            )
            iou[part] = decoded.iou_NK[:, 0].float().cpu().numpy()
            low_res[part] = decoded.low_res_logits_NKHW[:, 0].float().cpu().numpy()
            for mask_HW, logits_1hw, own_hw in zip(
                masks[part], decoded.low_res_logits_NKHW, low_res[part], strict=True
            ):
                region = upscaling.find_region(own_hw)
                if region.area:
                    mask_HW[region.slices] = threshold_part(logits_1hw[None], region, upscaling)
                regions.append(region)
        return Prediction(masks, iou, low_res, regions)

    def decode(
        self,
        embedding: ImageEmbedding,
        *,
        boxes: NDArray[np.float32] | None = None,
        points: NDArray[np.float32] | None = None,
        point_labels: NDArray[np.float32] | None = None,
        mask_input: NDArray[np.float32] | None = None,
    ) -> Prediction:
        """Decode boxes [N, 4], points [N, P, 2] with labels [N, P], or both together for each of the N prompts."""
        return self.decode_prompts(embedding, build_prompts(boxes, points, point_labels, mask_input))


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
    """Return whether to compute the region alone: on a CPU, in float32, and where it is a small part of a larger image."""
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
