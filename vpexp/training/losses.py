"""The loss of mask fine-tuning: focal + dice + predicted-IoU error, on logits.

Legend: N masks, H W size of the grid that they are compared on, without padding.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from vpexp.config.schema import LossConfig


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The terms of one step, each a mean over the N masks (0-dimensional tensors)."""

    total: Tensor
    focal: Tensor
    dice: Tensor
    iou: Tensor


def compute_focal_and_dice(
    logits_NHW: Tensor, targets_NHW: Tensor, *, alpha: float, gamma: float, smoothing: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Compute the focal loss and the dice loss of each mask.

    Focal: ``-alpha_t (1 - p_t)^gamma log(p_t)`` with ``p = sigmoid(logit)``, averaged over the pixels (Lin et al. 2017,
    eq. 5). The sigmoid is applied here and nowhere else. Dice: ``1 - (2 |p t| + s) / (|p| + |t| + s)`` (Milletari et
    al. 2016, with additive smoothing, which keeps the gradient finite for tiny masks).

    Both come from the same two numbers a pixel, and their gradients are written out: a tenth of the passes over memory
    that autograd takes for the same formulas.

    Args:
        logits_NHW: mask logits, float32 or float64.
        targets_NHW: 0 or 1, any dtype, same shape.
        alpha: weight of the foreground in the focal loss; the background has ``1 - alpha``.
        gamma: how strongly the focal loss plays easy pixels down.
        smoothing: ``s`` of the dice loss.

    Returns:
        Focal and dice, float [N] each.
    """
    focal_N, dice_N = _FocalAndDice.apply(  # type: ignore[no-untyped-call]
        logits_NHW.flatten(1), targets_NHW.flatten(1).to(logits_NHW.dtype), alpha, gamma, smoothing
    )
    return focal_N, dice_N


class _FocalAndDice(Function):
    """See ``compute_focal_and_dice``; P pixels. Counted from the target, ``m`` is the probability of a miss."""

    @staticmethod
    def forward(  # noqa: PLR0917 (autograd passes them by place)
        ctx: Any, logits_NP: Tensor, targets_NP: Tensor, alpha: float, gamma: float, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        # The logit turned away from the target: no cancellation where the prediction is right, no log(0) where it is wrong.
        turned_NP = torch.addcmul(logits_NP, targets_NP, logits_NP, value=-2)
        miss_NP = torch.sigmoid(turned_NP)
        cross_entropy_NP = functional.softplus(turned_NP)
        focal_NP = _raise(miss_NP, gamma).mul_(cross_entropy_NP)
        foreground_N = torch.linalg.vecdot(focal_NP, targets_NP)
        pixels = max(1, logits_NP.shape[1])
        focal_N = ((1 - alpha) * focal_NP.sum(dim=1) + (2 * alpha - 1) * foreground_N) / pixels
        # p is 1 - m inside and m outside of the object, so three sums say all that dice asks.
        area_N, missed_N = targets_NP.sum(dim=1), torch.linalg.vecdot(miss_NP, targets_NP)
        overlap_N = area_N - missed_N
        total_N = overlap_N + miss_NP.sum(dim=1) - missed_N + area_N + smoothing
        ratio_N = (2 * overlap_N + smoothing) / total_N
        ctx.save_for_backward(miss_NP, cross_entropy_NP, targets_NP, total_N, ratio_N)
        ctx.constants = (alpha, gamma, pixels)
        return focal_N, 1 - ratio_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, focal_grad_N: Tensor, dice_grad_N: Tensor) -> tuple[Tensor | None, ...]:
        miss_NP, cross_entropy_NP, targets_NP, total_N, ratio_N = ctx.saved_tensors
        alpha, gamma, pixels = ctx.constants
        hit_NP = 1 - miss_NP
        # d focal / d turned = m^gamma (gamma (1 - m) ce + m), and turning the logit back changes the sign inside.
        slope_NP = torch.addcmul(miss_NP, hit_NP, cross_entropy_NP, value=gamma).mul_(_raise(miss_NP, gamma))
        outside_N1 = ((1 - alpha) / pixels * focal_grad_N)[:, None]
        inside_N1 = (-alpha / pixels * focal_grad_N)[:, None]
        gradient_NP = slope_NP.mul_(torch.addcmul(outside_N1, targets_NP, inside_N1 - outside_N1))
        # d p / d logit = p (1 - p) = m (1 - m); d dice / d p = (ratio - 2 t) / total.
        factor_NP = torch.addcmul(
            (dice_grad_N * ratio_N / total_N)[:, None], targets_NP, (-2 * dice_grad_N / total_N)[:, None]
        )
        gradient_NP.addcmul_(hit_NP.mul_(miss_NP), factor_NP)
        return gradient_NP, None, None, None, None


def _raise(base: Tensor, exponent: float) -> Tensor:
    return base * base if exponent == 2 else base.pow(exponent)


def compute_mask_iou(logits_NHW: Tensor, targets_NHW: Tensor) -> Tensor:
    """Compute the IoU of the thresholded masks (logit > 0) with the targets: float [N], without gradient."""
    with torch.no_grad():
        predicted_NP, target_NP = (logits_NHW > 0).flatten(1), (targets_NHW > 0).flatten(1)
        overlap_N = (predicted_NP & target_NP).sum(dim=1)
        union_N = predicted_NP.sum(dim=1) + target_NP.sum(dim=1) - overlap_N
        return overlap_N / union_N.clamp(min=1)


class Loss(Protocol):
    """The loss of the masks of one image; it is built with the section ``loss``."""

    def __call__(self, logits_NHW: Tensor, predicted_iou_N: Tensor, targets_NHW: Tensor) -> LossTerms:
        """Compute the terms; see ``MaskLoss``."""
        ...


class MaskLoss:
    """Weighted sum of the three terms, for masks on one grid.

    The recipe of SAM (Kirillov et al. 2023, appendix A: focal and dice 20:1, IoU head by mean squared error).

    Args:
        settings: the section ``loss``.
    """

    def __init__(self, settings: LossConfig) -> None:
        self.settings = settings

    def __call__(self, logits_NHW: Tensor, predicted_iou_N: Tensor, targets_NHW: Tensor) -> LossTerms:
        """Compute the terms, each summed over the masks and divided by their number.

        Args:
            logits_NHW: mask logits, without padding; sigmoid is applied inside, once.
            predicted_iou_N: the decoder's own estimate of its IoU.
            targets_NHW: 0 or 1 (any dtype).
        """
        if logits_NHW.dtype != torch.float64:
            logits_NHW = logits_NHW.float()  # half precision would overflow the sums over a million pixels
        count, settings = max(1, logits_NHW.shape[0]), self.settings
        focal_N, dice_N = compute_focal_and_dice(
            logits_NHW, targets_NHW, alpha=settings.focal_alpha, gamma=settings.focal_gamma
        )
        iou_N = (predicted_iou_N.to(logits_NHW.dtype) - compute_mask_iou(logits_NHW, targets_NHW)).square()
        focal, dice, iou = (term_N.sum() / count for term_N in (focal_N, dice_N, iou_N))
        total = settings.focal_weight * focal + settings.dice_weight * dice + settings.iou_weight * iou
        return LossTerms(total, focal, dice, iou)
