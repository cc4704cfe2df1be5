"""The TinyViT image encoder of MobileSAM: convolutions first, then windowed attention with learnt biases.

Source: Wu et al. 2022 "TinyViT: Fast Pretraining Distillation for Small Vision Transformers" as used by Zhang et al.
2023 "Faster Segment Anything" (MobileSAM). Parameter names are those of the official checkpoint. The last stage keeps
the resolution of the one before it, so that the embedding has a stride of 16 as SAM's decoder expects. The
classification head of TinyViT is left out: SAM never runs it (see ``build_unused_head``).

Shapes: B images, S model input size, H W rows and columns of a feature map, C channels, V windows,
L tokens of a window, A attention heads, D channels of one head.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpexp.models.layers import BlockEncoder, build_neck, merge_windows, partition_windows


class TinyViT(BlockEncoder):
    """Turn images into image embeddings.

    Takes [B, 3, S, S] float, normalised and padded, S a multiple of 16; returns [B, out_channels, S/16, S/16] float.
    Random weights: PyTorch's defaults for convolutions, linear layers normal with standard deviation 0.02, the last
    batch norm of each residual convolution 0, attention biases 0.

    ``unused_classes`` is the width of the classification head that official files carry beside the encoder.

    ``detail_channels``, which the official encoder has not: so many channels of the first stage (stride 4), the second (stride
    8), are added in the neck, see ``Detail``. A narrow encoder has too few channels at stride 16 to hold where in its 16 x 16
    pixels an edge runs.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        window_sizes: Sequence[int],
        mlp_ratio: float = 4.0,
        expand_ratio: float = 4.0,
        out_channels: int = 256,
        unused_classes: int = 0,
        detail_channels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.unused_classes = unused_classes
        self.patch_embed = PatchEmbed(channels[0])
        last = len(channels) - 1
        self.layers = nn.ModuleList()
        for i, depth in enumerate(depths):
            blocks: list[nn.Module] = []
            for _ in range(depth):
                if i == 0:
                    blocks.append(MBConv(channels[0], expand_ratio))
                else:
                    blocks.append(TinyViTBlock(channels[i], heads[i], window_sizes[i], mlp_ratio))
            # The merging before the last stage keeps the resolution.
            merging = PatchMerging(channels[i], channels[i + 1], stride=1 if i + 1 == last else 2) if i < last else None
            self.layers.append(Stage(blocks, merging))
        self.apply(_init_linear)
        self.neck = build_neck(channels[-1], out_channels)
        self.details = nn.ModuleList(
            Detail(channels[i], kept, out_channels, side=4 // 2**i) for i, kept in enumerate(detail_channels)
        )

    def list_blocks(self) -> list[nn.Module]:
        """As of ``BlockEncoder``."""
        return [block for stage in self._stages for block in stage.blocks]

    def run_until(self, images_B3SS: Tensor, block: int) -> tuple[Tensor, ...]:
        """Encode images up to a block: its features [B, C, H, W], then the ``details`` of the stages before, [B, C', S/16, S/16]."""
        features_BCHW = self.patch_embed(images_B3SS.contiguous(memory_format=torch.channels_last))
        return self._run((features_BCHW,), 0, block)

    def run_from(self, activations: Sequence[Tensor], block: int) -> Tensor:
        """As of ``BlockEncoder``."""
        features_BCHW, *details = self._run(activations, block, len(self.list_blocks()))
        embeddings_BCHW: Tensor = self.neck[1:](sum(details, start=self.neck[0](features_BCHW)))
        return embeddings_BCHW

    def list_late(self, block: int) -> list[nn.Module]:
        """As of ``BlockEncoder``; what ends a stage goes with the stage's last block."""
        late: list[nn.Module] = self.list_blocks()[block:]
        for i, stage in enumerate(self._stages):
            if stage.blocks[-1] in late:
                late += [self.details[i]] if i < len(self.details) else []
                late += [stage.downsample] if stage.downsample is not None else []
        return [*late, self.neck]

    @property
    def _stages(self) -> "list[Stage]":
        return [stage for stage in self.layers if isinstance(stage, Stage)]

    def _run(self, activations: Sequence[Tensor], start: int, stop: int) -> tuple[Tensor, ...]:
        """Run the blocks from ``start`` to before ``stop``, with what ends their stages."""
        features_BCHW, *details = activations
        # Channels last in memory: depthwise convolutions run faster, and tokens need no copy.
        features_BCHW = features_BCHW.contiguous(memory_format=torch.channels_last)
        place = 0
        for i, stage in enumerate(self._stages):
            for block in stage.blocks:
                if start <= place < stop:
                    features_BCHW = self._run_block(block, features_BCHW)
                place += 1
            if not start < place <= stop:
                continue
            if i < len(self.details):
                details.append(self.details[i](features_BCHW))
            if stage.downsample is not None:
                features_BCHW = stage.downsample(features_BCHW)
        return (features_BCHW, *details)

    def build_unused_head(self) -> dict[str, Tensor]:
        """Build the classification head's tensors, which the official package wants in a file and never uses."""
        if not self.unused_classes:
            return {}
        first_neck_layer = self.neck[0]
        assert isinstance(first_neck_layer, nn.Conv2d)
        channels = first_neck_layer.in_channels
        return {
            "norm_head.weight": torch.ones(channels),
            "norm_head.bias": torch.zeros(channels),
            "head.weight": torch.zeros(self.unused_classes, channels),
            "head.bias": torch.zeros(self.unused_classes),
        }


class ConvBN(nn.Sequential):
    """Convolution without bias, then batch normalisation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        norm_weight: float = 1.0,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.c = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        nn.init.constant_(self.bn.weight, norm_weight)


class PatchEmbed(nn.Module):
    """Two convolutions of stride 2: [B, 3, S, S] to [B, C, S/4, S/4]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(
            ConvBN(3, channels // 2, kernel_size=3, stride=2),
            nn.GELU(),
            ConvBN(channels // 2, channels, kernel_size=3, stride=2),
        )

    def forward(self, images_B3SS: Tensor) -> Tensor:
        """Embed images."""
        features_BCHW: Tensor = self.seq(images_B3SS)
        return features_BCHW


class MBConv(nn.Module):
    """Residual inverted bottleneck (Sandler et al. 2018) with GELU; takes and returns [B, C, H, W]."""

    def __init__(self, channels: int, expand_ratio: float) -> None:
        super().__init__()
        hidden = int(channels * expand_ratio)
        self.conv1 = ConvBN(channels, hidden)
        self.conv2 = ConvBN(hidden, hidden, kernel_size=3, groups=hidden)
        self.conv3 = ConvBN(hidden, channels, norm_weight=0.0)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Convolve."""
        hidden = F.gelu(self.conv1(features_BCHW))
        hidden = F.gelu(self.conv2(hidden))
        return F.gelu(features_BCHW + self.conv3(hidden))


class PatchMerging(nn.Module):
    """Widen the channels and lower the resolution by ``stride``: [B, C, H, W] to [B, C', H/stride, W/stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(in_channels, out_channels)
        self.conv2 = ConvBN(out_channels, out_channels, kernel_size=3, stride=stride, groups=out_channels)
        self.conv3 = ConvBN(out_channels, out_channels)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Merge."""
        hidden = F.gelu(self.conv1(features_BCHW))
        hidden = F.gelu(self.conv2(hidden))
        merged: Tensor = self.conv3(hidden)
        return merged


class Stage(nn.Module):
    """Blocks of one resolution, and the merging that leads to the next one; each takes and returns [B, C, H, W]."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample


class Detail(nn.Module):
    """Features of a higher resolution at that of the embedding: [B, C, H, W] to [B, C', H/side, W/side].

    Each square of ``side`` places becomes one place that holds the ``kept`` channels of all of them. Starts as zeros.
    """

    def __init__(self, in_channels: int, kept: int, out_channels: int, *, side: int) -> None:
        super().__init__()
        self.side = side
        self.reduce = nn.Conv2d(in_channels, kept, 1)
        self.project = nn.Conv2d(kept * side**2, out_channels, 1, bias=False)
        nn.init.zeros_(self.project.weight)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Bring the places of each square side by side."""
        projected: Tensor = self.project(F.pixel_unshuffle(self.reduce(features_BCHW), self.side))
        return projected


class TinyViTBlock(nn.Module):
    """Attention within windows, a depthwise convolution across them, a perceptron; takes and returns [B, C, H, W]."""

    def __init__(self, channels: int, heads: int, window_size: int, mlp_ratio: float) -> None:
        super().__init__()
        self.window_size = window_size
        self.attn = BiasedAttention(channels, heads, window_size)
        self.local_conv = ConvBN(channels, channels, kernel_size=3, groups=channels)
        self.mlp = NormMLP(channels, int(channels * mlp_ratio))

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Attend and convolve."""
        height, width = features_BCHW.shape[2:]
        features_BHWC = features_BCHW.permute(0, 2, 3, 1)
        windows = partition_windows(features_BHWC, self.window_size)
        # The zeros that fill up windows take part in the attention, as in the official encoder.
        attended = self.attn(windows.flatten(1, 2)).reshape(windows.shape)
        features_BHWC = features_BHWC + merge_windows(attended, height, width)
        features_BHWC = self.local_conv(features_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        features_BHWC = features_BHWC + self.mlp(features_BHWC)
        output: Tensor = features_BHWC.permute(0, 3, 1, 2)
        return output


class BiasedAttention(nn.Module):
    """Pre-norm self-attention in a window; a learnt bias for each head and distance. Takes and returns [V, L, C].

    Source: LeViT (Graham et al. 2021): the bias depends on the absolute row and column distance of query and key.
    """

    distance_index_LL: Tensor

    def __init__(self, channels: int, heads: int, window_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, channels * 3)
        self.proj = nn.Linear(channels, channels)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window_size * window_size))
        # Distances are numbered in the order in which the first row of queries meets them: row distance first.
        rows = torch.arange(window_size).repeat_interleave(window_size)
        columns = torch.arange(window_size).repeat(window_size)
        row_distances = (rows[:, None] - rows[None, :]).abs()
        column_distances = (columns[:, None] - columns[None, :]).abs()
        self.register_buffer("distance_index_LL", row_distances * window_size + column_distances, persistent=False)

    def forward(self, tokens_VLC: Tensor) -> Tensor:
        """Attend within each window."""
        length, channels = tokens_VLC.shape[1:]
        qkv = self.qkv(self.norm(tokens_VLC)).reshape(-1, length, self.heads, 3, channels // self.heads)
        q_VALD, k_VALD, v_VALD = qkv.permute(3, 0, 2, 1, 4).unbind(0)
        bias_ALL = self.attention_biases[:, self.distance_index_LL]
        attended_VALD = F.scaled_dot_product_attention(q_VALD, k_VALD, v_VALD, attn_mask=bias_ALL)
        output: Tensor = self.proj(attended_VALD.transpose(1, 2).reshape(-1, length, channels))
        return output


class NormMLP(nn.Module):
    """Pre-norm perceptron of two layers, on the last axis."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [..., C] to [..., C]."""
        hidden = F.gelu(self.fc1(self.norm(tokens)))
        output: Tensor = self.fc2(hidden)
        return output


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
