"""The two-way transformer of the mask decoder: tokens attend to the image, the image attends to the tokens.

Source: Kirillov et al. 2023 "Segment Anything", appendix A, figure 14. Parameter names are those of the official
checkpoints.

Shapes: N prompts, T tokens of a prompt (output tokens and embedded points), L = H * W cells of the image embedding,
C channels, A attention heads, D channels of one head.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from vpexp.models.layers import MLPBlock


class TwoWayTransformer(nn.Module):
    """Layers of token self-attention, token-to-image attention, perceptron and image-to-token attention."""

    def __init__(self, *, depth: int, channels: int, heads: int, mlp_channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(channels=channels, heads=heads, mlp_channels=mlp_channels, is_first=i == 0)
            for i in range(depth)
        )
        self.final_attn_token_to_image = Attention(channels, heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(channels)

    def forward(
        self, image_NLC: Tensor, image_positions_1LC: Tensor, tokens_NTC: Tensor, token_mask_NT: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Let tokens and image attend to each other.

        ``token_mask_NT`` is bool, True where a token may be attended to, None where all may; a masked token never
        changes another token or the image. Returns the tokens [N, T, C] and the image [N, L, C].
        """
        # The embedded prompt serves as the tokens' position throughout.
        queries_NTC = tokens_NTC
        for layer in self.layers:
            queries_NTC, image_NLC = layer(queries_NTC, image_NLC, tokens_NTC, image_positions_1LC, token_mask_NT)
        attended = self.final_attn_token_to_image(queries_NTC + tokens_NTC, image_NLC + image_positions_1LC, image_NLC)
        return self.norm_final_attn(queries_NTC + attended), image_NLC


class TwoWayBlock(nn.Module):
    """One layer of the two-way transformer; the first layer's self-attention takes no positions and no residual."""

    def __init__(self, *, channels: int, heads: int, mlp_channels: int, is_first: bool) -> None:
        super().__init__()
        self.is_first = is_first
        self.self_attn = Attention(channels, heads)
        self.norm1 = nn.LayerNorm(channels)
        self.cross_attn_token_to_image = Attention(channels, heads, downsample_rate=2)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MLPBlock(channels, mlp_channels, nn.ReLU)
        self.norm3 = nn.LayerNorm(channels)
        self.norm4 = nn.LayerNorm(channels)
        self.cross_attn_image_to_token = Attention(channels, heads, downsample_rate=2)

    def forward(
        self,
        tokens_NTC: Tensor,
        image_NLC: Tensor,
        token_positions_NTC: Tensor,
        image_positions_1LC: Tensor,
        token_mask_NT: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Run the layer; see ``TwoWayTransformer.forward``."""
        if self.is_first:
            tokens_NTC = self.self_attn(tokens_NTC, tokens_NTC, tokens_NTC, token_mask_NT)
        else:
            query = tokens_NTC + token_positions_NTC
            tokens_NTC = tokens_NTC + self.self_attn(query, query, tokens_NTC, token_mask_NT)
        tokens_NTC = self.norm1(tokens_NTC)

        image_query = image_NLC + image_positions_1LC
        attended = self.cross_attn_token_to_image(tokens_NTC + token_positions_NTC, image_query, image_NLC)
        tokens_NTC = self.norm2(tokens_NTC + attended)

        tokens_NTC = self.norm3(tokens_NTC + self.mlp(tokens_NTC))

        key = tokens_NTC + token_positions_NTC
        attended = self.cross_attn_image_to_token(image_query, key, tokens_NTC, token_mask_NT)
        return tokens_NTC, self.norm4(image_NLC + attended)


class Attention(nn.Module):
    """Multi-head attention whose inner width may be a part of the outer one."""

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
        attended_NAQD = F.scaled_dot_product_attention(q_NAQD, k_NAKD, v_NAKD, attn_mask=mask)
        output: Tensor = self.out_proj(attended_NAQD.transpose(1, 2).flatten(2))
        return output

    def _split_heads(self, tokens_NTC: Tensor) -> Tensor:
        prompts, length, channels = tokens_NTC.shape
        return tokens_NTC.reshape(prompts, length, self.heads, channels // self.heads).transpose(1, 2)
