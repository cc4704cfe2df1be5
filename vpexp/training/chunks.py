"""Gradients of a step that is too large for the memory, summed over its chunks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


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
