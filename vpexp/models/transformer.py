"""The two-way transformer of the mask decoder: tokens attend to the image, the image attends to the tokens.

Source: Kirillov et al. 2023 "Segment Anything", appendix A, figure 14. Parameter names are those of the official
checkpoints.

Shapes: N prompts, T tokens of a prompt (output tokens and embedded points), L = H * W cells of the image embedding,
C channels, M images (see ``TwoWayTransformer.forward``).
"""

from torch import Tensor, nn

from vpexp.models.cross_attention import Attention, SharedImage
from vpexp.models.layers import MLPBlock


class TwoWayTransformer(nn.Module):
    """Layers of token self-attention, token-to-image attention, perceptron and image-to-token attention."""

    def __init__(self, *, depth: int, channels: int, heads: int, mlp_channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(channels=channels, heads=heads, mlp_channels=mlp_channels) for _ in range(depth)
        )
        self.final_attn_token_to_image = Attention(channels, heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(channels)

    def forward(
        self, image: SharedImage, positions_1LC: Tensor, tokens_NTC: Tensor, token_mask_NT: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Let tokens and image attend to each other.

        ``positions_1LC`` is the encoded position of each cell. ``token_mask_NT`` is bool, True where a token may be
        attended to, None where all may; a masked token never changes another token or the image. Returns the tokens
        [N, T, C], and the image as each prompt sees it [N, L, C].
        """
        # The embedded prompt serves as the tokens' position throughout.
        first, *others = self.layers
        assert isinstance(first, TwoWayBlock)
        queries_NTC, image_NLC = first.begin(tokens_NTC, image, token_mask_NT)
        for layer in others:
            queries_NTC, image_NLC = layer(queries_NTC, image_NLC, tokens_NTC, positions_1LC, token_mask_NT)
        attended_NTC = self.final_attn_token_to_image.from_tokens_to_image(
            queries_NTC + tokens_NTC, positions_1LC, image_NLC
        )
        return self.norm_final_attn(queries_NTC + attended_NTC), image_NLC


class TwoWayBlock(nn.Module):
    """One layer of the two-way transformer, as its first (``begin``) or as a later one (``forward``)."""

    def __init__(self, *, channels: int, heads: int, mlp_channels: int) -> None:
        super().__init__()
        self.self_attn = Attention(channels, heads)
        self.norm1 = nn.LayerNorm(channels)
        self.cross_attn_token_to_image = Attention(channels, heads, downsample_rate=2)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MLPBlock(channels, mlp_channels, nn.ReLU)
        self.norm3 = nn.LayerNorm(channels)
        self.norm4 = nn.LayerNorm(channels)
        self.cross_attn_image_to_token = Attention(channels, heads, downsample_rate=2)

    def begin(self, tokens_NTC: Tensor, image: SharedImage, token_mask_NT: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run as the first layer: self-attention without positions and residual, on images that prompts share."""
        positions_NTC = tokens_NTC
        tokens_NTC = self.norm1(self.self_attn(tokens_NTC, tokens_NTC, tokens_NTC, token_mask_NT))
        attended_NTC = self.cross_attn_token_to_image.from_tokens_to_shared_image(tokens_NTC + positions_NTC, image)
        tokens_NTC = self._think(tokens_NTC, attended_NTC)
        image_NLC = self.cross_attn_image_to_token.from_shared_image_to_tokens(
            image, tokens_NTC + positions_NTC, tokens_NTC, token_mask_NT
        )
        return tokens_NTC, self.norm4(image_NLC)

    def forward(
        self,
        tokens_NTC: Tensor,
        image_NLC: Tensor,
        token_positions_NTC: Tensor,
        image_positions_1LC: Tensor,
        token_mask_NT: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Run as a later layer; see ``TwoWayTransformer.forward``."""
        query_NTC = tokens_NTC + token_positions_NTC
        tokens_NTC = self.norm1(tokens_NTC + self.self_attn(query_NTC, query_NTC, tokens_NTC, token_mask_NT))
        attended_NTC = self.cross_attn_token_to_image.from_tokens_to_image(
            tokens_NTC + token_positions_NTC, image_positions_1LC, image_NLC
        )
        tokens_NTC = self._think(tokens_NTC, attended_NTC)
        image_NLC = self.cross_attn_image_to_token.from_image_to_tokens(
            image_positions_1LC, image_NLC, tokens_NTC + token_positions_NTC, tokens_NTC, token_mask_NT
        )
        return tokens_NTC, self.norm4(image_NLC)

    def _think(self, tokens_NTC: Tensor, attended_NTC: Tensor) -> Tensor:
        tokens_NTC = self.norm2(tokens_NTC + attended_NTC)
        output_NTC: Tensor = self.norm3(tokens_NTC + self.mlp(tokens_NTC))
        return output_NTC
