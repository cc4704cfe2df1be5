"""The torch form of the predictor. Legend as in ``predictor.py``."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vpexp.data.geometry import compute_resized_size, normalize_and_pad, resize_image, scale_points
from vpexp.data.prompts import Prompts
from vpexp.data.run_lengths import Region
from vpexp.inference.predictor import (
    ImageEmbedding,
    Prediction,
    build_prompts,
    check_image,
    check_mask_input,
    count_prompts_a_call,
)
from vpexp.inference.torch_masks import threshold_part
from vpexp.inference.upscaling import plan_upscaling
from vpexp.models.sam import Sam


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
            iou[part] = decoded.iou_N.float().cpu().numpy()
            low_res[part] = decoded.low_res_logits_N1HW[:, 0].float().cpu().numpy()
            for mask_HW, logits_1hw, own_hw in zip(
                masks[part], decoded.low_res_logits_N1HW, low_res[part], strict=True
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
