"""The ViT image encoder of SAM (ViT-B, L, H): plain ViT with windowed and global attention.

Source: Li et al. 2022 "Exploring Plain Vision Transformer Backbones for Object Detection" (ViTDet) as used by
Kirillov et al. 2023 "Segment Anything". Parameter names are those of the official checkpoints.

Shapes: B images or windows, S model input size, H W rows and columns of the token grid, L = H * W tokens,
C channels, A attention heads, D channels of one head.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpexp.models.layers import BlockEncoder, MLPBlock, build_neck, merge_windows, partition_windows

PATCH_SIZE = 16
MANY = 1024
"""Tokens of a grid from which on the scores of all pairs are not held for the backward pass."""


class ImageEncoderViT(BlockEncoder):
    """Turn images into image embeddings.

    Takes [B, 3, S, S] float, normalised and padded; returns [B, out_channels, S/16, S/16] float.
    Random weights: PyTorch's defaults; absolute and relative positions normal with standard deviation 0.02.
    """

    def __init__(
        self,
        *,
        image_size: int,
        channels: int,
        depth: int,
        heads: int,
        window_size: int,
        global_attention_blocks: Sequence[int],
        mlp_ratio: float = 4.0,
        out_channels: int = 256,
    ) -> None:
        super().__init__()
        grid_size = image_size // PATCH_SIZE
        self.patch_embed = PatchEmbed(channels)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid_size, grid_size, channels))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(
            ViTBlock(
                channels=channels,
                heads=heads,
                mlp_ratio=mlp_ratio,
                window_size=0 if i in global_attention_blocks else window_size,
                grid_size=grid_size,
            )
            for i in range(depth)
        )
        self.neck = build_neck(channels, out_channels)

    def list_blocks(self) -> list[nn.Module]:
        """As of ``BlockEncoder``."""
        return list(self.blocks)

    def run_until(self, images_B3SS: Tensor, block: int) -> tuple[Tensor, ...]:
        """Encode images up to a block: tokens [B, S/16, S/16, C]."""
        tokens_BHWC = self.patch_embed(images_B3SS) + self.pos_embed
        for early in self.blocks[:block]:
            tokens_BHWC = self._run_block(early, tokens_BHWC)
        return (tokens_BHWC,)

    def run_from(self, activations: Sequence[Tensor], block: int) -> Tensor:
        """As of ``BlockEncoder``."""
        (tokens_BHWC,) = activations
        for late in self.blocks[block:]:
            tokens_BHWC = self._run_block(late, tokens_BHWC)
        embeddings_BCHW: Tensor = self.neck(tokens_BHWC.permute(0, 3, 1, 2))
        return embeddings_BCHW

    def list_late(self, block: int) -> list[nn.Module]:
        """As of ``BlockEncoder``."""
        return [*self.blocks[block:], self.neck]

    def fit_positions(self, state: dict[str, Tensor], prefix: str = "") -> None:
        """Interpolate, in place of the state dict, position embeddings that were made for another image size.

        Entries whose shape differs in more than the number of positions are left as they are.
        """
        key = f"{prefix}pos_embed"
        if key in state and state[key].dim() == self.pos_embed.dim():
            state[key] = resize_absolute_positions(state[key].float(), self.pos_embed.shape[1])
        for i, block in enumerate(self.blocks):
            # Only global attention depends on the image size.
            for table in () if block.window_size else ("rel_pos_h", "rel_pos_w"):
                key = f"{prefix}blocks.{i}.attn.{table}"
                if key in state and state[key].dim() == getattr(block.attn, table).dim():
                    state[key] = resize_relative_positions(state[key].float(), getattr(block.attn, table).shape[0])


class PatchEmbed(nn.Module):
    """Project patches of 16 x 16 pixels to tokens: [B, 3, S, S] to [B, S/16, S/16, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, kernel_size=PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, images_B3SS: Tensor) -> Tensor:
        """Embed the patches of images."""
        features_BCHW: Tensor = self.proj(images_B3SS)
        return features_BCHW.permute(0, 2, 3, 1)


class ViTBlock(nn.Module):
    """Pre-norm transformer block; attention within windows, or over the whole grid where ``window_size`` is 0."""

    def __init__(self, *, channels: int, heads: int, mlp_ratio: float, window_size: int, grid_size: int) -> None:
        super().__init__()
        self.window_size = window_size
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = RelativePositionAttention(channels=channels, heads=heads, grid_size=window_size or grid_size)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = MLPBlock(channels, int(channels * mlp_ratio))

    def forward(self, tokens_BHWC: Tensor) -> Tensor:
        """Let tokens [B, H, W, C] attend to each other."""
        normalised = self.norm1(tokens_BHWC)
        if self.window_size:
            height, width = tokens_BHWC.shape[1:3]
            # The zeros that fill up windows take part in the attention, as in the official encoder.
            attended = self.attn(partition_windows(normalised, self.window_size))
            attended = merge_windows(attended, height, width)
        else:
            attended = self.attn(normalised)
        tokens_BHWC = tokens_BHWC + attended
        output: Tensor = tokens_BHWC + self.mlp(self.norm2(tokens_BHWC))
        return output


class RelativePositionAttention(nn.Module):
    """Self-attention over a grid with decomposed relative positions; takes and returns [B, H, W, C].

    The score of a query and a key gains q . R_h[row distance] + q . R_w[column distance] with the unscaled query
    (Li et al. 2021, MViTv2, equation 4). The sum is handed to the fused attention as its bias.
    """

    def __init__(self, *, channels: int, heads: int, grid_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, channels * 3)
        self.proj = nn.Linear(channels, channels)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid_size - 1, channels // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid_size - 1, channels // heads))
        nn.init.trunc_normal_(self.rel_pos_h, std=0.02)
        nn.init.trunc_normal_(self.rel_pos_w, std=0.02)

    def forward(self, tokens_BHWC: Tensor) -> Tensor:
        """Attend within each grid."""
        _, height, width, channels = tokens_BHWC.shape
        qkv_BL3AD = self.qkv(tokens_BHWC).reshape(-1, height * width, 3, self.heads, channels // self.heads)
        q_BALD, k_BALD, v_BALD = qkv_BL3AD.permute(2, 0, 3, 1, 4).unbind(0)
        rows_BALH, columns_BALW = self._compute_biases(q_BALD, height, width)
        attend = (
            attend_lean
            if torch.is_grad_enabled() and q_BALD.requires_grad and height * width >= MANY
            else attend_biased
        )
        attended_BALD = attend(q_BALD, k_BALD, v_BALD, rows_BALH, columns_BALW)
        attended_BHWC = attended_BALD.transpose(1, 2).reshape(-1, height, width, channels)
        output: Tensor = self.proj(attended_BHWC)
        return output

    def _compute_biases(self, q_BALD: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Compute what the score of each query gains by a key's row and by its column: [B, A, L, H] and [B, A, L, W]."""
        heads, head_channels = q_BALD.shape[1], q_BALD.shape[3]
        q_BAHWD = q_BALD.reshape(-1, heads, height, width, head_channels)
        rows_HHD = gather_relative_positions(self.rel_pos_h, height)
        columns_WWD = gather_relative_positions(self.rel_pos_w, width)
        by_row = q_BAHWD @ rows_HHD.transpose(1, 2)
        by_column = torch.einsum("bahwd,wkd->bahwk", q_BAHWD, columns_WWD)
        return by_row.flatten(2, 3), by_column.flatten(2, 3)


def attend_biased(q_BALD: Tensor, k_BALD: Tensor, v_BALD: Tensor, rows_BALH: Tensor, columns_BALW: Tensor) -> Tensor:
    """Attend with a bias for each query's rows and columns of keys: [B, A, L, D]."""
    bias_BALHW = rows_BALH[..., :, None] + columns_BALW[..., None, :]
    return F.scaled_dot_product_attention(q_BALD, k_BALD, v_BALD, attn_mask=bias_BALHW.flatten(3))


def attend_lean(q_BALD: Tensor, k_BALD: Tensor, v_BALD: Tensor, rows_BALH: Tensor, columns_BALW: Tensor) -> Tensor:
    """Compute the same as ``attend_biased`` without the bias of all pairs, of which the backward pass holds several copies.

    The bias of a pair is a product too: of the query's biases, and of ones where the key's row and column are. So both are further
    channels of queries and keys, and the fused attention needs no mask: a quarter of the memory, a quarter more time.
    """
    channels, height, width = q_BALD.shape[3], rows_BALH.shape[3], columns_BALW.shape[3]
    rows_LH = torch.eye(height, dtype=k_BALD.dtype, device=k_BALD.device).repeat_interleave(width, dim=0)
    columns_LW = torch.eye(width, dtype=k_BALD.dtype, device=k_BALD.device).repeat(height, 1)
    places_BALX = torch.cat([rows_LH, columns_LW], dim=1).expand(*k_BALD.shape[:3], -1)
    query = torch.cat([q_BALD * channels**-0.5, rows_BALH, columns_BALW], dim=3)
    key, value = torch.cat([k_BALD, places_BALX], dim=3), F.pad(v_BALD, (0, height + width))
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)[..., :channels]


def gather_relative_positions(table_LD: Tensor, size: int) -> Tensor:
    """Look up the embedding of every pair of positions on one axis; a table made for another size is interpolated.

    Returns [size, size, D]: entry [i, j] belongs to query i and key j.
    """
    table_LD = resize_relative_positions(table_LD, 2 * size - 1)
    positions = torch.arange(size, device=table_LD.device)
    return table_LD[positions[:, None] - positions[None, :] + size - 1]


def resize_relative_positions(table_LD: Tensor, length: int) -> Tensor:
    """Interpolate a table of relative positions linearly to ``length`` rows, as the official encoder does."""
    if table_LD.shape[0] == length:
        return table_LD
    return F.interpolate(table_LD.T[None], size=length, mode="linear")[0].T


def resize_absolute_positions(positions_1HWC: Tensor, grid_size: int) -> Tensor:
    """Interpolate absolute position embeddings bicubically to a square grid, as ViTDet does."""
    if tuple(positions_1HWC.shape[1:3]) == (grid_size, grid_size):
        return positions_1HWC
    positions_1CHW = positions_1HWC.permute(0, 3, 1, 2)
    resized = F.interpolate(positions_1CHW, size=(grid_size, grid_size), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1)
