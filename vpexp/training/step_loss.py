"""The loss of a training step and its gradients, in memory that does not grow with the number of prompts: chunk by chunk.

Each prompt is answered by one mask, that of mask token 0, or of an ambiguous prompt (``find_ambiguous``) that one of the three
of tokens 1 to 3 that is nearest to the object: learning is from the lowest of three losses, as in Kirillov et al. 2023 "Segment
Anything", appendix A. Token 0 learns from ambiguous prompts too, at the decoder's own resolution, so that it does not fall behind,
and so does the predicted IoU of the three, by which one is chosen later. The three do not learn from what is clear: on boxes they forget
what a point may mean (docs/clicks.md).

Legend: B images, N prompts of the step, n of one part, C channels, S model size, h w = S/4, r q those of it
that the image lies in, R Q rows and columns of the loss's grid, K masks of a prompt: 4, or token 0 alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from vpexp.data.batch import Batch
from vpexp.data.prompts import find_ambiguous, find_unstable
from vpexp.models.mask_decoder import ALL_MASKS, ONE_MASK, THREE_MASKS
from vpexp.models.sam import DecodedMasks, Sam, choose_tokens, enlarge_to_input, upscale_logits
from vpexp.training.clicks import StepPrompts, correct_by_clicks, reduce_targets
from vpexp.training.losses import Loss, LossTerms, compute_focal_and_dice, compute_mask_iou

# Prompts whose activations are held at once, in pixels of the model's input: 12 at 1024 px are about 1.2 GB.
CHUNK_PIXELS = 12 * 1024 * 1024
# Where masks are compared at the images' own size, also in those pixels: 8 of 2048 x 1365 are about 0.5 GB.
ORIGINAL_CHUNK_PIXELS = 24 * 1024 * 1024


class Part(NamedTuple):
    """Prompts of one image, counted from its first."""

    image: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class StepLoss:
    """Decodes the prompts of a step and compares their masks.

    Attributes:
        loss: of the masks of one image.
        resolution: where they are compared: ``low`` (the decoder's own logits), ``input`` (the resized image) or ``original``.
        feed_mask: where clicks correct masks, the decoder is given the mask that is corrected.
        multimask: which prompts are ambiguous: ``auto``, ``always`` or ``never``; with ``never`` only token 0 learns.
    """

    loss: Loss
    resolution: str
    feed_mask: bool = True
    multimask: str = "never"

    def compute(self, sam: Sam, embeddings_BCHW: Tensor, batch: Batch, *, scale: float = 1.0) -> LossTerms:
        """Compute the means over all prompts, whose gradient is exact however many chunks they take.

        Args:
            sam: decodes.
            embeddings_BCHW: of the step's images.
            batch: prompts and targets.
            scale: see ``sum_over_chunks``.
        """
        inputs = [*sam.prompt_encoder.parameters(), *sam.mask_decoder.parameters(), embeddings_BCHW]
        terms_4 = sum_over_chunks(
            partial(self._compute_chunk, sam, embeddings_BCHW, batch),
            self._cut(sam, batch),
            [tensor for tensor in inputs if tensor.requires_grad],
            scale=scale,
        )
        return LossTerms(*terms_4)

    def _cut(self, sam: Sam, batch: Batch) -> list[list[Part]]:
        """Cut the prompts into chunks of parts.

        On a CPU a chunk is of one image: several at once bring nothing there, but copies of what its prompts share.
        """
        chunks: list[list[Part]] = []
        room = 0
        for image, targets in enumerate(batch.targets):
            limit = self._count_prompts_a_chunk(sam, targets.grid_hw)
            if batch.coords_NP2.device.type == "cpu":
                room = 0
            start = 0
            while start < len(targets):
                if not room:
                    chunks.append([])
                    room = limit
                stop = min(len(targets), start + room)
                chunks[-1].append(Part(image, start, stop))
                room -= stop - start
                start = stop
        return chunks

    def _count_prompts_a_chunk(self, sam: Sam, grid_hw: tuple[int, int]) -> int:
        limit = CHUNK_PIXELS // sam.image_size**2
        if self.resolution == "original":
            limit = min(limit, ORIGINAL_CHUNK_PIXELS // (grid_hw[0] * grid_hw[1]))
        return max(1, limit)

    def _compute_chunk(self, sam: Sam, embeddings_BCHW: Tensor, batch: Batch, parts: list[Part]) -> Tensor:
        """Compute what some prompts add to the four terms: total, focal, dice, iou."""
        offsets = list(accumulate((len(targets) for targets in batch.targets), initial=0))
        spans = [(offsets[part.image] + part.start, offsets[part.image] + part.stop) for part in parts]
        first, last = spans[0][0], spans[-1][1]  # the parts of a chunk follow one another
        images = slice(parts[0].image, parts[-1].image + 1)
        decode = partial(self._decode, sam, embeddings_BCHW[images])
        prompts = StepPrompts(
            batch.image_index_N[first:last] - images.start, batch.coords_NP2[first:last], batch.labels_NP[first:last]
        )
        if (batch.click_draws_NR.numpy()[first:last] >= 0).any():
            # Inside the chunk, so that the masks of the rounds do not pile up.
            truths = [truth for part in parts for truth in _reduce_truths(batch, part).cpu()]
            draws_nR = batch.click_draws_NR[first:last]
            prompts = correct_by_clicks(self._answer(sam, decode), prompts, truths, draws_nR, feed_mask=self.feed_mask)
        decoded, ambiguous_n = decode(prompts), self._find_ambiguous(prompts)
        terms: list[Tensor] = []
        for part, (start, stop) in zip(parts, spans, strict=True):
            mine = slice(start - first, stop - first)
            own = DecodedMasks(decoded.low_res_logits_NKHW[mine].float(), decoded.iou_NK[mine])
            targets_nRQ = batch.targets[part.image].unpack(slice(part.start, part.stop))
            extra: Tensor | float = 0.0
            token_n = torch.zeros(stop - start, dtype=torch.int64, device=targets_nRQ.device)
            (place_a,) = np.nonzero(ambiguous_n[mine])
            if len(place_a):
                truths_nrq = _reduce_truths(batch, part)
                index_a = torch.from_numpy(place_a).to(targets_nRQ.device, non_blocking=True)
                token_n = token_n.index_copy(0, index_a, _find_best(own, truths_nrq)[index_a])
                extra = self._learn_others(own, truths_nrq, index_a)
            own = own.pick(token_n)
            logits_nRQ = self._enlarge(sam, own.low_res_logits_NKHW, batch, part.image)
            found = self.loss(logits_nRQ, own.iou_NK[:, 0], targets_nRQ)
            share = (stop - start) / offsets[-1]
            terms.append(torch.stack([found.total + extra, found.focal, found.dice, found.iou]) * share)
        return torch.stack(terms).sum(dim=0)

    def _decode(self, sam: Sam, embeddings_BCHW: Tensor, prompts: StepPrompts) -> DecodedMasks:
        """Decode prompts: the mask of token 0, or of all four tokens where any but it is ever asked for."""
        masks = ONE_MASK if self.multimask == "never" else ALL_MASKS
        return sam.decode(embeddings_BCHW, *prompts.list_arguments(), masks=masks)

    def _find_ambiguous(self, prompts: StepPrompts) -> NDArray[np.bool_]:
        has_mask_n = 0 if prompts.has_mask_n is None else prompts.has_mask_n.numpy()
        ambiguous_n: NDArray[np.bool_] = find_ambiguous(prompts.labels_nP.numpy(), has_mask_n, self.multimask)
        return ambiguous_n

    def _answer(self, sam: Sam, decode: Callable[[StepPrompts], DecodedMasks]) -> Callable[[StepPrompts], DecodedMasks]:
        """Return a function that decodes prompts to one mask each, the one that a user of the model is shown."""

        def answer(prompts: StepPrompts) -> DecodedMasks:
            decoded = decode(prompts)
            if self.multimask == "never":
                return decoded
            ambiguous_n = torch.from_numpy(self._find_ambiguous(prompts)).to(decoded.iou_NK.device)
            if sam.interface.dynamic_multimask:
                ambiguous_n = ambiguous_n | find_unstable(decoded.low_res_logits_NKHW[:, 0])
            return decoded.pick(choose_tokens(decoded.iou_NK, ambiguous_n))

        return answer

    def _learn_others(self, own: DecodedMasks, truths_nrq: Tensor, index_a: Tensor) -> Tensor:
        """Compute what ambiguous prompts, ``index_a``, add to the loss: the mask of token 0, and the predicted IoU of the other three."""
        cells = _cut_cells(own, truths_nrq)
        found = self.loss(cells[index_a, 0], own.iou_NK[index_a, 0], truths_nrq[index_a])
        true_ious = [compute_mask_iou(logits_nrq, truths_nrq) for logits_nrq in cells[:, THREE_MASKS].unbind(dim=1)]
        errors_n3 = (own.iou_NK[:, THREE_MASKS] - torch.stack(true_ious, dim=1)).square()
        return (found.total + errors_n3[index_a].mean()) * (len(index_a) / len(truths_nrq))

    def _enlarge(self, sam: Sam, low_res_n1hw: Tensor, batch: Batch, image: int) -> Tensor:
        """Bring logits to the grid of the loss: [n, R, Q]."""
        grid_hw = batch.targets[image].grid_hw
        if self.resolution == "low":
            return low_res_n1hw[:, 0, : grid_hw[0], : grid_hw[1]]
        height, width = batch.resized_B2.numpy()[image].tolist()
        if self.resolution == "input":
            return enlarge_to_input(low_res_n1hw, (height, width))[:, 0]
        return upscale_logits(
            low_res_n1hw,
            image_size=sam.image_size,
            resized_hw=(height, width),
            original_hw=grid_hw,
            resize=sam.interface.resize,
        )


def _cut_cells(own: DecodedMasks, truths_nrq: Tensor) -> Tensor:
    """Cut the logits [n, K, r, q] of the cells that the image lies in."""
    return own.low_res_logits_NKHW[:, :, : truths_nrq.shape[1], : truths_nrq.shape[2]]


@torch.no_grad()
def _find_best(own: DecodedMasks, truths_nrq: Tensor) -> Tensor:
    """Find the token, 1 to 3, whose mask has the lowest loss by SAM's recipe, on the decoder's cells: int64 [n]."""
    losses = []
    for logits_nrq in _cut_cells(own, truths_nrq)[:, THREE_MASKS].unbind(dim=1):
        focal_n, dice_n = compute_focal_and_dice(logits_nrq, truths_nrq, alpha=0.25, gamma=2.0)
        losses.append(20 * focal_n + dice_n)
    return 1 + torch.stack(losses, dim=1).argmin(dim=1)


def _reduce_truths(batch: Batch, part: Part) -> Tensor:
    targets_nRQ = batch.targets[part.image].unpack(slice(part.start, part.stop))
    height, width = batch.resized_B2.numpy()[part.image].tolist()
    return reduce_targets(targets_nRQ, (height, width))


def sum_over_chunks(
    compute: Callable[[Any], Tensor], chunks: Sequence[Any], inputs: Sequence[Tensor], *, scale: float = 1.0
) -> Tensor:
    """Compute the sum of a function over chunks, with its exact gradient, holding the activations of one chunk at a time.

    Each chunk is differentiated as soon as it is computed, and what it gives is added up: nothing is computed twice, as it would be
    with recomputation.

    Args:
        compute: from a chunk to a tensor [K] of terms; the gradient is that of the first.
        chunks: at least one.
        inputs: the leaves and intermediate results that ``compute`` depends on and that need a gradient.
        scale: what a chunk's value is multiplied with before it is differentiated, so that float16 gradients do not
            vanish; taken back from the sum.

    Returns:
        The sums of the terms, [K]; ``backward`` on the first gives ``inputs`` their gradients, the other terms have none.
    """
    if len(chunks) == 1 or not (inputs and torch.is_grad_enabled()):
        return torch.stack([compute(chunk) for chunk in chunks]).sum(dim=0)
    total: Tensor | None = None
    gradients: list[Tensor | None] = [None] * len(inputs)
    for chunk in chunks:
        terms_K = compute(chunk)
        found = torch.autograd.grad(terms_K[0] * scale, inputs, allow_unused=True)
        for place, gradient in enumerate(found):
            if gradient is not None:
                summed = gradients[place]
                gradients[place] = gradient if summed is None else summed.add_(gradient)
        total = terms_K.detach() if total is None else total + terms_K.detach()
    assert total is not None
    known = [_divide(gradient, scale) for gradient in gradients]
    first: Tensor = _KnownGradient.apply(total[0], known, *inputs)  # type: ignore[no-untyped-call]
    return torch.cat([first[None], total[1:]])


def _divide(gradient: Tensor | None, scale: float) -> Tensor | None:
    return gradient if gradient is None or scale == 1 else gradient / scale


class _KnownGradient(Function):
    """A value whose gradient was computed with it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *inputs: Tensor) -> Tensor:
        del inputs
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if gradient is None else gradient * factor for gradient in ctx.gradients)
