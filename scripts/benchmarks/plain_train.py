"""Training as a user of the original packages writes it: encoder every step, loss at original size, autograd.

Shapes: H W original size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from scripts.benchmarks.plain_data import PlainSample
from scripts.benchmarks.plain_model import PlainSam

FOCAL_WEIGHT = 20.0
ALPHA, GAMMA = 0.25, 2.0
LEARNING_RATE = 1e-5


class PlainTrainer:
    """A model, its optimizer, and a step."""

    def __init__(self, sam: PlainSam, learning_rate: float = LEARNING_RATE) -> None:
        self.sam = sam
        self.optimizer = torch.optim.Adam(sam.decoder.parameters(), lr=learning_rate)

    def compute_loss(self, samples: Sequence[PlainSample]) -> Tensor:
        """Compute the loss of a batch: 20 focal + dice + MSE of the predicted IoU, a mean over its masks."""
        embeddings_BCHW = self.sam.encode(torch.stack([sample.image_3SS for sample in samples]))
        decoded = self.sam.decode(embeddings_BCHW, [sample.boxes_N4 for sample in samples])
        total = torch.zeros(())
        for sample, (low_res_N1hw, iou_N) in zip(samples, decoded, strict=True):
            logits_NHW = upscale(low_res_N1hw, self.sam, sample)
            total = total + compute_mask_loss(logits_NHW, torch.from_numpy(sample.masks_NHW).float(), iou_N).sum()
        return total / sum(len(sample.labels) for sample in samples)

    def step(self, samples: Sequence[PlainSample]) -> float:
        """Do one optimizer step; returns the loss before it."""
        loss = self.compute_loss(samples)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def upscale(low_res_N1hw: Tensor, sam: PlainSam, sample: PlainSample) -> Tensor:
    """Bring masks to original size as ``Sam.postprocess_masks`` does, SAM 2's at once: logits [N, H, W]."""
    logits = low_res_N1hw
    if not sam.stretches:
        square = (sam.image_size, sam.image_size)
        logits = functional.interpolate(logits, square, mode="bilinear", align_corners=False)
        logits = logits[..., : sample.resized_hw[0], : sample.resized_hw[1]]
    return functional.interpolate(logits, sample.masks_NHW.shape[1:], mode="bilinear", align_corners=False)[:, 0]


def compute_mask_loss(logits_NHW: Tensor, targets_NHW: Tensor, predicted_iou_N: Tensor) -> Tensor:
    """Compute the loss of each mask: float [N]. The focal loss is written as in torchvision."""
    probabilities = torch.sigmoid(logits_NHW)
    cross_entropy = functional.binary_cross_entropy_with_logits(logits_NHW, targets_NHW, reduction="none")
    of_target = probabilities * targets_NHW + (1 - probabilities) * (1 - targets_NHW)
    weight = ALPHA * targets_NHW + (1 - ALPHA) * (1 - targets_NHW)
    focal_N = (weight * (1 - of_target) ** GAMMA * cross_entropy).mean(dim=(1, 2))
    overlap_N = (probabilities * targets_NHW).sum(dim=(1, 2))
    dice_N = 1 - (2 * overlap_N + 1) / (probabilities.sum(dim=(1, 2)) + targets_NHW.sum(dim=(1, 2)) + 1)
    with torch.no_grad():
        predicted, annotated = logits_NHW > 0, targets_NHW > 0
        union_N = (predicted | annotated).sum(dim=(1, 2))
        iou_N = (predicted & annotated).sum(dim=(1, 2)) / union_N.clamp(min=1)
    return FOCAL_WEIGHT * focal_N + dice_N + (predicted_iou_N - iou_N).square()
