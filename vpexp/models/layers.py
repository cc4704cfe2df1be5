"""Layers that several parts of SAM share, and square windows of a feature map, cut and put together again.

Shapes: B images or prompts, C channels, H W rows and columns of a feature map, V windows of all images, K side of a window.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class BlockEncoder(nn.Module, ABC):
    """An image encoder of blocks in a row that can be left before one of them and gone on with from there.

    Attributes:
        gradient_checkpointing: whether blocks are computed again in the backward pass instead of being remembered (Chen et al. 2016).
    """

    gradient_checkpointing = False

    @abstractmethod
    def list_blocks(self) -> list[nn.Module]:
        """List the blocks in their order."""

    @abstractmethod
    def run_until(self, images_B3SS: Tensor, block: int) -> tuple[Tensor, ...]:
        """Encode images up to a block, counted from 0; as many as there are runs all of them.

        Returns:
            What the rest needs: float tensors, B first.
        """

    @abstractmethod
    def run_from(self, activations: Sequence[Tensor], block: int) -> Any:
        """Go on from what ``run_until`` gave for the same block, to what the encoder returns."""

    @abstractmethod
    def list_late(self, block: int) -> list[nn.Module]:
        """List the modules that run after ``run_until``, and whose weights that does not see."""

    def forward(self, images_B3SS: Tensor) -> Any:
        """Encode images."""
        return self.run_from(self.run_until(images_B3SS, 0), 0)

    def _run_block(self, block: nn.Module, features: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            features = checkpoint(block, features, use_reentrant=False)
        else:
            features = block(features)
        return features


class LayerNorm2d(nn.Module):
    """Layer normalisation over the channels of a feature map, each position by itself.

    Takes and returns [B, C, H, W]. Source: ConvNeXt (Liu et al. 2022), as SAM uses it.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Normalise [B, C, H, W]."""
        # One fused layer_norm on the channels-last view is faster than mean and variance by hand, and exports as one op.
        features_BHWC = features_BCHW.permute(0, 2, 3, 1)
        normalised = F.layer_norm(features_BHWC, self.weight.shape, self.weight, self.bias, self.eps)
        return normalised.permute(0, 3, 1, 2)


class MLPBlock(nn.Module):
    """The two-layer perceptron of a transformer block, on the last axis."""

    def __init__(self, channels: int, hidden_channels: int, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.lin1 = nn.Linear(channels, hidden_channels)
        self.lin2 = nn.Linear(hidden_channels, channels)
        self.act = activation()

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [..., C] to [..., C]."""
        hidden: Tensor = self.act(self.lin1(tokens))
        output: Tensor = self.lin2(hidden)
        return output


class MLP(nn.Module):
    """A perceptron of several layers with ReLU between them, on the last axis (the heads of the mask decoder)."""

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int, depth: int) -> None:
        super().__init__()
        widths = [in_channels, *[hidden_channels] * (depth - 1), out_channels]
        self.layers = nn.ModuleList(nn.Linear(widths[i], widths[i + 1]) for i in range(depth))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [..., in_channels] to [..., out_channels]."""
        for i, layer in enumerate(self.layers):
            tokens = layer(tokens)
            if i < len(self.layers) - 1:
                tokens = F.relu(tokens)
        return tokens


def build_neck(in_channels: int, out_channels: int) -> nn.Sequential:
    """Build the neck that brings an encoder's last feature map to the width of the image embedding."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False),
        LayerNorm2d(out_channels),
        nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(out_channels),
    )


def partition_windows(features_BHWC: Tensor, window_size: int) -> Tensor:
    """Cut feature maps into windows that do not overlap; zeros fill up the right and bottom edge.

    Returns [V, K, K, C], the windows of an image row by row, image after image.
    """
    _, height, width, channels = features_BHWC.shape
    # No remainders of negative numbers: converters of traced graphs disagree on their sign.
    rows, columns = _count_windows(height, window_size), _count_windows(width, window_size)
    pad_bottom, pad_right = rows * window_size - height, columns * window_size - width
    if pad_bottom or pad_right:
        features_BHWC = F.pad(features_BHWC, (0, 0, 0, pad_right, 0, pad_bottom))
    windows = features_BHWC.reshape(-1, rows, window_size, columns, window_size, channels)
    return windows.transpose(2, 3).reshape(-1, window_size, window_size, channels)


def merge_windows(windows_VKKC: Tensor, height: int, width: int) -> Tensor:
    """Put windows of ``partition_windows`` together again, without the filling.

    Returns [B, H, W, C].
    """
    window_size, channels = windows_VKKC.shape[1], windows_VKKC.shape[3]
    rows, columns = _count_windows(height, window_size), _count_windows(width, window_size)
    features = windows_VKKC.reshape(-1, rows, columns, window_size, window_size, channels)
    features = features.transpose(2, 3).reshape(-1, rows * window_size, columns * window_size, channels)
    return features[:, :height, :width]


def _count_windows(length: int, window_size: int) -> int:
    return (length + window_size - 1) // window_size
