"""Attention between the few tokens of a prompt and the thousands of an image, without projecting the image's.

A projection of the image is a product with a matrix, and so is an attention score: their order may be exchanged. With a head's
query ``q`` and key ``K x``, ``q . (K x) = (K^T q) . x``, so the few tokens are projected instead of the many; and since
a head's weights sum to 1, ``sum_l w_l (V x_l + b) = V (sum_l w_l x_l) + b``. The numbers are those of the attention of
Kirillov et al. 2023 "Segment Anything", appendix A, up to rounding, at less than half of its products.

Before the first layer the image is the same for all prompts on it. It is then projected once an image, which costs less than
projecting each prompt's tokens.

Shapes: N prompts, T tokens of a prompt, L = H * W cells of the image embedding, C channels, A attention heads, D channels of one
head, M images: 1 that all prompts share, or N.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpexp.models.layers import widen


@dataclass(frozen=True, slots=True)
class SharedImage:
    """The embeddings of M images as they come to the decoder: all prompts on one see the same.

    Attributes:
        features_MLC: the embeddings; without ``index_N`` M is 1, an image that all prompts share, or N.
        positioned_MLC: the same with the encoded positions of the cells added.
        index_N: int64, the image of each prompt, where there are several.
    """

    features_MLC: Tensor
    positioned_MLC: Tensor
    index_N: Tensor | None = None

    def hand_out(self, computed_M: Tensor) -> Tensor:
        """Give each prompt what was computed of its image, M first; what all share stays as it is."""
        return computed_M if self.index_N is None else computed_M[self.index_N]


class Attention(nn.Module):
    """Multi-head attention whose inner width may be a part of the outer one; parameter names are the official ones."""

    def __init__(self, channels: int, heads: int, downsample_rate: int = 1) -> None:
        super().__init__()
        inner_channels = channels // downsample_rate
        self.heads = heads
        self.q_proj = nn.Linear(channels, inner_channels)
        self.k_proj = nn.Linear(channels, inner_channels)
        self.v_proj = nn.Linear(channels, inner_channels)
        self.out_proj = nn.Linear(inner_channels, channels)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_mask_NT: Tensor | None = None) -> Tensor:
        """Attend from [N, Q, C] to [N, K, C]; ``key_mask_NT`` [N, K] bool is True where a key takes part."""
        q_NAQD = self._split_heads(self.q_proj(query))
        k_NAKD = self._split_heads(self.k_proj(key))
        v_NAKD = self._split_heads(self.v_proj(value))
        mask = None if key_mask_NT is None else key_mask_NT[:, None, None, :]
        return self._join_heads(F.scaled_dot_product_attention(q_NAQD, k_NAKD, v_NAKD, attn_mask=mask))

    def from_tokens_to_shared_image(self, query_NTC: Tensor, image: SharedImage) -> Tensor:
        """Attend from tokens to images that no prompt has changed yet; returns [N, T, C]."""
        queries_NATD = self._scale(self._split_heads(self.q_proj(query_NTC)))
        keys_MALD = image.hand_out(self._split_heads(self.k_proj(image.positioned_MLC)))
        values_MALD = image.hand_out(self._split_heads(self.v_proj(image.features_MLC)))
        scores = _fold(queries_NATD, keys_MALD) @ keys_MALD.transpose(2, 3)
        context = widen(scores).softmax(dim=-1) @ values_MALD
        return self._join_heads(_unfold(context, keys_MALD, queries_NATD))

    def from_tokens_to_image(self, query_NTC: Tensor, positions_1LC: Tensor, image_NLC: Tensor) -> Tensor:
        """Attend from tokens to each prompt's own state of the image; returns [N, T, C]."""
        queries_NATD = self._scale(self._split_heads(self.q_proj(query_NTC)))
        position_keys_1ALD = self._split_heads(self.k_proj(positions_1LC))
        absorbed_NQC = (queries_NATD @ self._get_head_matrices(self.k_proj)).flatten(1, 2)
        scores_NQL = add_product(
            _score(queries_NATD, position_keys_1ALD).flatten(1, 2), absorbed_NQC, image_NLC.transpose(1, 2)
        )
        mixed_NATC = torch.unflatten(widen(scores_NQL).softmax(dim=-1) @ image_NLC, 1, (self.heads, -1))
        context_NATD = mixed_NATC @ self._get_head_matrices(self.v_proj).transpose(1, 2)
        return self._join_heads(context_NATD + torch.unflatten(self.v_proj.bias, 0, (self.heads, 1, -1)))

    def from_shared_image_to_tokens(
        self, image: SharedImage, key_NTC: Tensor, value_NTC: Tensor, token_mask_NT: Tensor | None
    ) -> Tensor:
        """Add to images, shared until now, what each prompt's tokens have to say to them; returns [N, L, C]."""
        queries_MALD = image.hand_out(self._split_heads(self.q_proj(image.positioned_MLC)))
        keys_NATD = self._scale(self._split_heads(self.k_proj(key_NTC)))
        weights_NQL = self._weigh_tokens(_score(keys_NATD, queries_MALD), token_mask_NT)
        base_MLC = image.hand_out(image.features_MLC + self.out_proj.bias)
        return add_product(base_MLC, weights_NQL.transpose(1, 2), self._project_values(value_NTC))

    def from_image_to_tokens(
        self,
        positions_1LC: Tensor,
        image_NLC: Tensor,
        key_NTC: Tensor,
        value_NTC: Tensor,
        token_mask_NT: Tensor | None,
    ) -> Tensor:
        """Add to each prompt's own state of the image what its tokens have to say to it; returns [N, L, C]."""
        position_queries_1ALD = self._split_heads(self.q_proj(positions_1LC))
        keys_NATD = self._scale(self._split_heads(self.k_proj(key_NTC)))
        absorbed_NQC = (keys_NATD @ self._get_head_matrices(self.q_proj)).flatten(1, 2)
        scores_NQL = add_product(
            _score(keys_NATD, position_queries_1ALD).flatten(1, 2), absorbed_NQC, image_NLC.transpose(1, 2)
        )
        weights_NQL = self._weigh_tokens(torch.unflatten(scores_NQL, 1, (self.heads, -1)), token_mask_NT)
        # The weights of a head sum to 1: a bias in the values of one head is added once.
        values_NQC = self._project_values(value_NTC, bias=self.out_proj.bias)
        return add_product(image_NLC, weights_NQL.transpose(1, 2), values_NQC)

    def _split_heads(self, tokens_XTC: Tensor) -> Tensor:
        return torch.unflatten(tokens_XTC, -1, (self.heads, -1)).transpose(1, 2)

    def _join_heads(self, context_NATD: Tensor) -> Tensor:
        output_NTC: Tensor = self.out_proj(context_NATD.transpose(1, 2).flatten(2))
        return output_NTC

    def _scale(self, queries_NATD: Tensor) -> Tensor:
        return queries_NATD / math.sqrt(self.q_proj.out_features // self.heads)

    def _get_head_matrices(self, projection: nn.Linear) -> Tensor:
        """Cut a projection into those of its heads: [A, D, C]."""
        return torch.unflatten(projection.weight, 0, (self.heads, -1))

    def _project_values(self, value_NTC: Tensor, *, bias: Tensor | None = None) -> Tensor:
        """Bring the values of each head to the image's channels at once: [N, A * T, C]."""
        values_NATD = self._split_heads(self.v_proj(value_NTC))
        out_ADC = torch.unflatten(self.out_proj.weight, 1, (self.heads, -1)).permute(1, 2, 0)
        projected_NATC = values_NATD @ out_ADC
        if bias is not None:
            first_A = torch.zeros(self.heads, 1, 1, dtype=bias.dtype, device=bias.device)
            first_A[0] = 1
            projected_NATC = projected_NATC + first_A * bias
        return projected_NATC.flatten(1, 2)

    @staticmethod
    def _weigh_tokens(scores_NATL: Tensor, token_mask_NT: Tensor | None) -> Tensor:
        """Turn scores into each cell's weights of the tokens that take part: [N, A * T, L]."""
        if token_mask_NT is not None:
            scores_NATL = scores_NATL.masked_fill(~token_mask_NT[:, None, :, None], float("-inf"))
        return widen(scores_NATL).softmax(dim=2).flatten(1, 2)


def _score(queries_NATD: Tensor, keys_MALD: Tensor) -> Tensor:
    """Compute the scores [N, A, T, L] of each prompt's tokens against cells."""
    scores = _fold(queries_NATD, keys_MALD) @ keys_MALD.transpose(2, 3)
    return _unfold(scores, keys_MALD, queries_NATD)


def _fold(queries_NATD: Tensor, keys_MALD: Tensor) -> Tensor:
    """Put the tokens of all prompts on one axis, [1, A, N * T, D], where they share their keys.

    A batched product would copy the keys for each prompt.
    """
    return queries_NATD.transpose(0, 1).flatten(1, 2)[None] if _is_shared(keys_MALD) else queries_NATD


def _unfold(folded: Tensor, keys_MALD: Tensor, queries_NATD: Tensor) -> Tensor:
    """Give the prompts their axis back: [N, A, T, ...]."""
    if not _is_shared(keys_MALD):
        return folded
    return torch.unflatten(folded[0], 1, (queries_NATD.shape[0], queries_NATD.shape[2])).transpose(0, 1)


def _is_shared(keys_MALD: Tensor) -> bool:
    # A graph that is being exported must serve both, and leaves it to its library's broadcasting.
    return not is_exporting() and keys_MALD.shape[0] == 1


def add_product(base: Tensor, left_NXK: Tensor, right_NKY: Tensor) -> Tensor:
    """Compute ``base + left @ right``; in one pass over memory, unless that would round the base to half precision.

    Under autocast the product alone is rounded: the sum is float32.
    """
    device = base.device.type
    if is_exporting() or (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return widen(base) + left_NXK @ right_NKY
    return torch.baddbmm(base.expand(left_NXK.shape[0], -1, -1), left_NXK, right_NKY)


def is_exporting() -> bool:
    """Return whether a graph is being recorded, in which sizes may not decide what is computed."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
