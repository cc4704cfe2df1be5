"""The image encoder of SAM 2: a Hiera trunk of four stages, and the neck that makes three maps of them.

Sources: Ryali et al. 2023 "Hiera", Bolya et al. 2023 "Window attention is bugged" (absolute positions of windows), as used by Ravi et
al. 2024 "SAM 2: Segment Anything in Images and Videos". Parameter names are those of the official checkpoints, but for what
``vpexp.models.sam2`` says of them.

Shapes: B images, S model input size, H W rows and columns of a feature map, C channels, V windows, K side of a window, A attention
heads, D channels of one head.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpexp.models.layers import MLPBlock, merge_windows, partition_windows

PATCH_STRIDE = 4
POOL = 2
"""Rows and columns of a map that become one where a stage begins."""


class Hiera(nn.Module):
    """What turns images [B, 3, S, S] into tokens, and the blocks of four stages [B, H, W, C] of strides 4, 8, 16 and 32.

    Each stage has twice the channels and the heads of the one before. Its first block pools the queries, within windows of the size
    that the stage before had. Random weights: PyTorch's defaults, positions normal with standard deviation 0.02.

    Args:
        channels: of the first stage.
        heads: of the first stage.
        depths: blocks of each stage.
        window_sizes: of each stage.
        global_blocks: those, counted from the first of all, that attend over the whole map.
        positions: side of the learnt map of positions, which is interpolated.
    """

    def __init__(
        self,
        *,
        channels: int,
        heads: int,
        depths: Sequence[int],
        window_sizes: Sequence[int],
        global_blocks: Sequence[int],
        positions: int = 7,
    ) -> None:
        super().__init__()
        self.channels = tuple(channels * 2**stage for stage in range(len(depths)))
        self.patch_embed = PatchEmbed(channels)
        self.pos_embed = nn.Parameter(torch.zeros(1, channels, positions, positions))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, channels, window_sizes[0], window_sizes[0]))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.pos_embed_window, std=0.02)
        self.blocks = nn.ModuleList()
        self.ends: list[int] = []
        for stage, depth in enumerate(depths):
            for place in range(depth):
                begins = stage > 0 and place == 0
                window_size = 0 if len(self.blocks) in global_blocks else window_sizes[stage - 1 if begins else stage]
                self.blocks.append(
                    HieraBlock(
                        self.channels[stage - 1 if begins else stage],
                        self.channels[stage],
                        heads=heads * 2**stage,
                        window_size=window_size,
                        pools=begins,
                    )
                )
            self.ends.append(len(self.blocks) - 1)

    def embed(self, images_B3SS: Tensor) -> Tensor:
        """Make images the tokens [B, S/4, S/4, C] that the first block takes."""
        tokens_BHWC: Tensor = self.patch_embed(images_B3SS)
        return tokens_BHWC + self._compute_positions(int(tokens_BHWC.shape[1]))

    def count_ended(self, block: int) -> int:
        """Count the stages that end before a block."""
        return sum(end < block for end in self.ends)

    def _compute_positions(self, grid_size: int) -> Tensor:
        """Add the interpolated map and the repeated one of a window: [1, H, W, C].

        Bicubic interpolation is linear and treats the axes one after the other: a product with a matrix for each.
        """
        side, window = self.pos_embed.shape[-1], self.pos_embed_window.shape[-1]
        eye_11PP = torch.eye(side, dtype=self.pos_embed.dtype, device=self.pos_embed.device)[None, None]
        matrix_HP = F.interpolate(eye_11PP, (grid_size, side), mode="bicubic", align_corners=False)[0, 0]
        whole_1CHW = matrix_HP @ self.pos_embed @ matrix_HP.T
        tiles = grid_size // window
        return (whole_1CHW + self.pos_embed_window.repeat(1, 1, tiles, tiles)).permute(0, 2, 3, 1)


class PatchEmbed(nn.Module):
    """Project patches of 7 x 7 pixels that overlap to tokens: [B, 3, S, S] to [B, S/4, S/4, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, kernel_size=7, stride=PATCH_STRIDE, padding=3)

    def forward(self, images_B3SS: Tensor) -> Tensor:
        """Embed the patches of images."""
        features_BCHW: Tensor = self.proj(images_B3SS)
        return features_BCHW.permute(0, 2, 3, 1)


class HieraBlock(nn.Module):
    """Pre-norm transformer block; the first of a stage halves rows and columns and changes the channels.

    Args:
        in_channels: C before.
        channels: C after.
        heads: A.
        window_size: K of what comes in; 0: attention over the whole map.
        pools: whether rows and columns are halved.
    """

    def __init__(self, in_channels: int, channels: int, *, heads: int, window_size: int, pools: bool) -> None:
        super().__init__()
        self.window_size = window_size
        self.pools = pools
        self.norm1 = nn.LayerNorm(in_channels, eps=1e-6)
        self.attn = PooledAttention(in_channels, channels, heads=heads, pools=pools)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = MLPBlock(channels, 4 * channels)
        self.proj = nn.Linear(in_channels, channels) if in_channels != channels else None

    def forward(self, tokens_BHWC: Tensor) -> Tensor:
        """Let tokens [B, H, W, C] attend to each other."""
        normalised = self.norm1(tokens_BHWC)
        if self.proj is not None:
            tokens_BHWC = self.proj(normalised)
        if self.pools:
            tokens_BHWC = pool(tokens_BHWC)
        if self.window_size:
            # The zeros that fill up windows take part in the attention, as in the official encoder.
            attended = self.attn(partition_windows(normalised, self.window_size))
            attended = merge_windows(attended, int(tokens_BHWC.shape[1]), int(tokens_BHWC.shape[2]))
        else:
            attended = self.attn(normalised)
        tokens_BHWC = tokens_BHWC + attended
        output: Tensor = tokens_BHWC + self.mlp(self.norm2(tokens_BHWC))
        return output


class PooledAttention(nn.Module):
    """Self-attention over a grid [V, K, K, C] whose queries may be pooled; returns [V, K, K, C], or half the rows and columns."""

    def __init__(self, in_channels: int, channels: int, *, heads: int, pools: bool) -> None:
        super().__init__()
        self.heads = heads
        self.pools = pools
        self.qkv = nn.Linear(in_channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, tokens_VKKC: Tensor) -> Tensor:
        """Attend within each grid."""
        rows, columns = (int(side) for side in tokens_VKKC.shape[1:3])
        channels = self.proj.in_features
        qkv_VL3AD = self.qkv(tokens_VKKC).reshape(-1, rows * columns, 3, self.heads, channels // self.heads)
        q_VALD, k_VALD, v_VALD = qkv_VL3AD.permute(2, 0, 3, 1, 4).unbind(0)
        if self.pools:
            query = pool(q_VALD.transpose(1, 2).reshape(-1, rows, columns, channels))
            rows, columns = rows // POOL, columns // POOL
            q_VALD = torch.unflatten(query.flatten(1, 2), -1, (self.heads, -1)).transpose(1, 2)
        attended_VALD = F.scaled_dot_product_attention(q_VALD, k_VALD, v_VALD)
        attended = attended_VALD.transpose(1, 2).reshape(-1, rows, columns, channels)
        output: Tensor = self.proj(attended)
        return output


def pool(tokens_BHWC: Tensor) -> Tensor:
    """Take the largest of each 2 x 2 tokens, channel by channel."""
    return F.max_pool2d(tokens_BHWC.permute(0, 3, 1, 2), POOL).permute(0, 2, 3, 1)


class FpnNeck(nn.Module):
    """Bring the stages to one width; the map of stride 32 is added to that of stride 16, the finer ones stand alone.

    Args:
        channels: of the stages, in their order.
        out_channels: of each map.
    """

    def __init__(self, channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_Lateral(width, out_channels) for width in reversed(channels))

    def forward(self, earlier_BHWC: Tensor, last_BHWC: Tensor) -> Tensor:
        """Make the map [B, C, S/16, S/16] of the last two stages."""
        coarse_BHWC, fine_BHWC = self.convs[0](last_BHWC), self.convs[1](earlier_BHWC)
        _, height, width, channels = coarse_BHWC.shape
        cells = torch.unflatten(torch.unflatten(fine_BHWC, 2, (-1, 2)), 1, (-1, 2))
        output: Tensor = (cells + coarse_BHWC[:, :, None, :, None]).reshape(-1, 2 * height, 2 * width, channels)
        return output.permute(0, 3, 1, 2)

    def find_lateral(self, stage: int) -> nn.Module:
        """Find what brings a stage, counted from 0, to the width of the maps."""
        return self.convs[len(self.convs) - 1 - stage]

    def project(self, tokens_BHWC: Tensor, stage: int, convolution: nn.Conv2d) -> Tensor:
        """Make the map [B, C, H, W] of one of the first two stages, and apply a 1 x 1 convolution to it.

        Two linear maps in a row are one: their product takes few of its products.
        """
        lateral = self.find_lateral(stage).conv
        assert isinstance(lateral, nn.Conv2d)
        assert lateral.bias is not None
        weight_XC = convolution.weight.flatten(1)
        joined = F.linear(
            tokens_BHWC,
            weight_XC @ lateral.weight.flatten(1),
            F.linear(lateral.bias, weight_XC, convolution.bias),
        )
        return joined.permute(0, 3, 1, 2)


class _Lateral(nn.Module):
    """A 1 x 1 convolution on channels-last features."""

    conv: nn.Conv2d

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, features_BHWC: Tensor) -> Tensor:
        output: Tensor = F.linear(features_BHWC, self.conv.weight.flatten(1), self.conv.bias)
        return output
