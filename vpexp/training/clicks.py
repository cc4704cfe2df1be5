"""Simulated clicks in training: masks are corrected a few times, and learning is from the answer to the last click.

Source: the iterative training of Kirillov et al. 2023 "Segment Anything", appendix A (a first prompt, then points from the error
of the model's own mask, which is given to it with them), and of Sofiiuk et al. 2021 (RITM), whose rule says where a click
falls, and in which only the last round has a gradient. Each object is corrected a number of times of its own, drawn with its
first prompt, so that first prompts are learnt from as well.

Legend: n prompts of a chunk, P points a prompt, R clicks an object at most, a prompts that are corrected in a round, h w the
decoder's low-resolution cells (S/4), r q those that the image lies in.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vpexp.data.clicks import Click, draw_next_click
from vpexp.data.prompts import NO_POINT, POINT_IN, POINT_OUT
from vpexp.models.sam import LOW_RES_STRIDE, DecodedMasks

HALF_COVERED = 0.5


@dataclass(frozen=True, slots=True)
class StepPrompts:
    """Prompts as ``Sam.decode`` takes them.

    Attributes:
        image_index_n: int64, the image of each.
        coords_nP2: pixels of the resized image.
        labels_nP: SAM's point labels, on the CPU.
        masks_n1hw: logits of the masks that are corrected; None: no prompt has one.
        has_mask_n: bool, which prompts have one, on the CPU.
    """

    image_index_n: Tensor
    coords_nP2: Tensor
    labels_nP: Tensor
    masks_n1hw: Tensor | None = None
    has_mask_n: Tensor | None = None

    def list_arguments(self) -> tuple[Tensor, ...]:
        """List what ``Sam.decode`` takes after the embeddings."""
        plain = (self.image_index_n, self.coords_nP2, self.labels_nP)
        if self.masks_n1hw is None or self.has_mask_n is None:
            return plain
        return (*plain, self.masks_n1hw, self.has_mask_n)

    def select(self, index_a: Tensor) -> "StepPrompts":
        """Take some of the prompts: int64 [a], on the CPU."""
        moved_a = index_a.to(self.coords_nP2.device)
        return StepPrompts(
            self.image_index_n[moved_a],
            self.coords_nP2[moved_a],
            self.labels_nP[index_a],
            None if self.masks_n1hw is None else self.masks_n1hw[moved_a],
            None if self.has_mask_n is None else self.has_mask_n[index_a],
        )


@torch.no_grad()
def correct_by_clicks(
    decode: Callable[[StepPrompts], DecodedMasks],
    prompts: StepPrompts,
    truths: list[Tensor],
    draws_nR: Tensor,
    *,
    feed_mask: bool,
) -> StepPrompts:
    """Correct each prompt's mask as often as was drawn, each time by a click on the error of the model's own mask.

    Args:
        decode: the model as it is.
        prompts: the first ones, without masks.
        truths: bool [r, q], the true mask of each prompt; see ``reduce_targets``.
        draws_nR: see ``draw_corrections``.
        feed_mask: give the decoder the mask that is corrected.

    Returns:
        The prompts with all clicks. Where a mask had no error left, its prompt is the one that gave it.
    """
    active_a = torch.arange(len(draws_nR))
    for draws_n in draws_nR.unbind(dim=1):
        active_a = active_a[draws_n[active_a] >= 0]
        if not len(active_a):
            break
        logits_a1hw = decode(prompts.select(active_a)).low_res_logits_NKHW.float()
        masks_ahw = (logits_a1hw[:, 0] > 0).cpu().numpy()
        clicks: list[Click | None] = []
        for place, mask_hw in zip(active_a.tolist(), masks_ahw, strict=True):
            truth_rq = truths[place]
            rows, columns = truth_rq.shape
            clicks.append(draw_next_click(mask_hw[:rows, :columns], truth_rq.numpy(), float(draws_n[place])))
        wrong_a = torch.tensor([place for place, click in enumerate(clicks) if click], dtype=torch.int64)
        active_a = active_a[wrong_a]
        prompts = _add_clicks(prompts, active_a, [click for click in clicks if click])
        if feed_mask:
            prompts = _add_masks(prompts, active_a, logits_a1hw[wrong_a.to(logits_a1hw.device)])
    return prompts


def reduce_targets(targets_nRQ: Tensor, resized_hw: tuple[int, int]) -> Tensor:
    """Bring the masks of an image from the grid of the loss to the decoder's cells that the image lies in.

    A cell belongs to the object where half of its area does; of an object too thin for that, the cells with the most of it.

    Args:
        targets_nRQ: uint8, 0 or 1, at any resolution of the loss.
        resized_hw: size of the image inside the model's square.

    Returns:
        bool [n, r, q].
    """
    cells = tuple(-(-side // LOW_RES_STRIDE) for side in resized_hw)
    if targets_nRQ.shape[1:] == cells:  # which is the loss's own grid at its resolution "low"
        return targets_nRQ.bool()
    targets_n1RQ = targets_nRQ[:, None].float()
    if targets_n1RQ.shape[2:] != resized_hw:
        targets_n1RQ = F.interpolate(targets_n1RQ, resized_hw, mode="area")
    bottom, right = (LOW_RES_STRIDE * count - side for count, side in zip(cells, resized_hw, strict=True))
    covered_nrq = F.avg_pool2d(F.pad(targets_n1RQ, (0, right, 0, bottom)), LOW_RES_STRIDE)[:, 0]
    most_n11 = covered_nrq.amax(dim=(1, 2), keepdim=True)
    return (covered_nrq >= most_n11.clamp(max=HALF_COVERED)) & (covered_nrq > 0)


def _add_clicks(prompts: StepPrompts, active_a: Tensor, clicks: list[Click]) -> StepPrompts:
    """Give some prompts one more point, and the others a place without one."""
    coords_n12 = torch.zeros(len(prompts.labels_nP), 1, 2)
    labels_n1 = torch.full((len(prompts.labels_nP), 1), NO_POINT)
    for place, click in zip(active_a.tolist(), clicks, strict=True):
        # The middle of a cell, between the second and the third of its pixels.
        middle = [LOW_RES_STRIDE * cell + (LOW_RES_STRIDE - 1) / 2 for cell in (click.column, click.row)]
        coords_n12[place, 0] = torch.tensor(middle)
        labels_n1[place] = POINT_IN if click.is_inside else POINT_OUT
    return replace(
        prompts,
        coords_nP2=torch.cat([prompts.coords_nP2, coords_n12.to(prompts.coords_nP2)], dim=1),
        labels_nP=torch.cat([prompts.labels_nP, labels_n1.to(prompts.labels_nP.dtype)], dim=1),
    )


def _add_masks(prompts: StepPrompts, active_a: Tensor, logits_a1hw: Tensor) -> StepPrompts:
    count = len(prompts.labels_nP)
    if prompts.masks_n1hw is None or prompts.has_mask_n is None:
        masks_n1hw = logits_a1hw.new_zeros(count, *logits_a1hw.shape[1:])
        has_mask_n = torch.zeros(count, dtype=torch.bool)
    else:
        masks_n1hw, has_mask_n = prompts.masks_n1hw, prompts.has_mask_n.clone()
    has_mask_n[active_a] = True
    masks_n1hw = masks_n1hw.index_copy(0, active_a.to(masks_n1hw.device), logits_a1hw)
    return replace(prompts, masks_n1hw=masks_n1hw, has_mask_n=has_mask_n)
