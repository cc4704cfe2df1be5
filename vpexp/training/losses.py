"""The loss of mask fine-tuning: focal + dice + predicted-IoU error, on logits.

Legend: N prompts of the whole batch, R resolution of the loss (S or S/4), B images.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The terms of one step, each a mean over the N masks (0-dimensional tensors)."""

    total: Tensor
    focal: Tensor
    dice: Tensor
    iou: Tensor


def compute_focal_loss(
    logits_NRR: Tensor, targets_NRR: Tensor, valid_NRR: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Compute the focal loss of each mask, averaged over its valid pixels.

    ``-alpha_t (1 - p_t)^gamma log(p_t)`` with ``p = sigmoid(logit)`` (Lin et al. 2017, eq. 5). The sigmoid is applied
    here and nowhere else: logits come in, and the cross entropy is computed from them without forming ``log(p)``.

    Args:
        logits_NRR: mask logits, any float.
        targets_NRR: 0 or 1, same shape.
        valid_NRR: 1 where a pixel counts, 0 in the padding.
        alpha: weight of the foreground; the background has ``1 - alpha``.
        gamma: how strongly easy pixels are played down.

    Returns:
        float [N].
    """
    targets_NRR = targets_NRR.to(logits_NRR.dtype)
    cross_entropy_NRR = functional.binary_cross_entropy_with_logits(logits_NRR, targets_NRR, reduction="none")
    # 1 - p_t is the sigmoid of the logit turned away from the target: no cancellation near p_t = 1.
    miss_NRR = torch.sigmoid(logits_NRR * (1 - 2 * targets_NRR))
    weight_NRR = (alpha * targets_NRR + (1 - alpha) * (1 - targets_NRR)) * valid_NRR
    pixels_N = valid_NRR.sum(dim=(1, 2)).clamp(min=1)
    return (weight_NRR * miss_NRR.pow(gamma) * cross_entropy_NRR).sum(dim=(1, 2)) / pixels_N


def compute_dice_loss(probabilities_NRR: Tensor, targets_NRR: Tensor, *, smoothing: float = 1.0) -> Tensor:
    """Compute ``1 - (2 |p t| + s) / (|p| + |t| + s)`` of each mask (Milletari et al. 2016, with additive smoothing).

    Args:
        probabilities_NRR: foreground probability in [0, 1], 0 in the padding.
        targets_NRR: 0 or 1, 0 in the padding.
        smoothing: keeps the gradient finite for tiny masks.

    Returns:
        float [N] in [0, 1).
    """
    targets_NRR = targets_NRR.to(probabilities_NRR.dtype)
    overlap_N = (probabilities_NRR * targets_NRR).sum(dim=(1, 2))
    total_N = probabilities_NRR.sum(dim=(1, 2)) + targets_NRR.sum(dim=(1, 2))
    return 1 - (2 * overlap_N + smoothing) / (total_N + smoothing)


def compute_mask_iou(logits_NRR: Tensor, targets_NRR: Tensor, valid_NRR: Tensor) -> Tensor:
    """Compute the IoU of the thresholded masks (logit > 0) with the targets: float [N], without gradient."""
    with torch.no_grad():
        predicted_NRR = (logits_NRR > 0) & (valid_NRR > 0)
        target_NRR = targets_NRR > 0
        overlap_N = (predicted_NRR & target_NRR).sum(dim=(1, 2))
        union_N = (predicted_NRR | target_NRR).sum(dim=(1, 2))
        return overlap_N / union_N.clamp(min=1)


@dataclass(frozen=True, slots=True)
class MaskLoss:
    """Weighted sum of the three terms, for a flat batch of masks.

    The recipe of SAM (Kirillov et al. 2023, appendix A: focal and dice 20:1, IoU head by mean squared error).
    """

    focal_weight: float = 20.0
    dice_weight: float = 1.0
    iou_weight: float = 1.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0

    def __call__(
        self, logits_NRR: Tensor, predicted_iou_N: Tensor, targets_NRR: Tensor, valid_NRR: Tensor
    ) -> LossTerms:
        """Compute the terms, each summed over the masks and divided by their number.

        Args:
            logits_NRR: mask logits at the loss resolution; sigmoid is applied inside, once.
            predicted_iou_N: the decoder's own estimate of its IoU.
            targets_NRR: 0 or 1 (any dtype).
            valid_NRR: 1 inside the image, 0 in the padding (any dtype).
        """
        logits_NRR = logits_NRR.float()  # half precision would overflow the sums over a million pixels
        valid_NRR = valid_NRR.to(logits_NRR.dtype)
        targets_NRR = targets_NRR.to(logits_NRR.dtype) * valid_NRR
        count = max(1, logits_NRR.shape[0])
        focal = compute_focal_loss(logits_NRR, targets_NRR, valid_NRR, alpha=self.focal_alpha, gamma=self.focal_gamma)
        dice = compute_dice_loss(torch.sigmoid(logits_NRR) * valid_NRR, targets_NRR)
        true_iou_N = compute_mask_iou(logits_NRR, targets_NRR, valid_NRR)
        iou = (predicted_iou_N.float() - true_iou_N).square()
        focal_mean, dice_mean, iou_mean = (term_N.sum() / count for term_N in (focal, dice, iou))
        total = self.focal_weight * focal_mean + self.dice_weight * dice_mean + self.iou_weight * iou_mean
        return LossTerms(total, focal_mean, dice_mean, iou_mean)
