"""What several models share: encoders of blocks, layers, and square windows of a feature map, cut and put together again.

Shapes: B images or prompts, C channels, H W rows and columns of a feature map, V windows of all images, K side of a window, S
model input size, X numbers that are kept of an image by an encoder that is cut.
"""

import math
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


class EncoderCut:
    """An image encoder in two: what is kept of images comes from the first half, their embeddings from the second.

    Args:
        encoder: the whole encoder, on any device.
        image_size: S.
        block: the first block of the second half.

    Attributes:
        trunk: the first half as a module, images to activations.
        shapes: of these, without B.
    """

    def __init__(self, encoder: BlockEncoder, image_size: int, block: int) -> None:
        self.block = block
        self.trunk = _Trunk(encoder, block)
        self.shapes = self._measure(image_size)

    @property
    def size(self) -> int:
        """Count the numbers X that are kept of an image."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def late_names(self) -> frozenset[str]:
        """Names of the encoder's entries that the first half does not see."""
        encoder = self.trunk.encoder
        late = {id(module) for module in encoder.list_late(self.block)}
        prefixes = tuple(f"{name}." for name, module in encoder.named_modules() if id(module) in late)
        return frozenset(name for name in encoder.state_dict() if name.startswith(prefixes))

    def encode(self, images_B3SS: Tensor) -> Tensor:
        """Run the first half: [B, X, 1, 1]."""
        activations: tuple[Tensor, ...] = self.trunk(images_B3SS)
        return self.pack(activations)

    def pack(self, activations: Sequence[Tensor]) -> Tensor:
        """Put what the first half gives for each image into one row: [B, X, 1, 1]."""
        return torch.cat([array.flatten(1) for array in activations], dim=1)[:, :, None, None]

    def complete(self, kept_BX11: Tensor) -> tuple[Tensor, ...]:
        """Run the second half: the maps of images."""
        sizes = [math.prod(shape) for shape in self.shapes]
        rows = torch.split(kept_BX11.flatten(1), sizes, dim=1)
        activations = [row.reshape(-1, *shape) for row, shape in zip(rows, self.shapes, strict=True)]
        maps = self.trunk.encoder.run_from(activations, self.block)
        return maps if isinstance(maps, tuple) else (maps,)

    def _measure(self, image_size: int) -> list[tuple[int, ...]]:
        # On the meta device nothing is computed but shapes.
        tensors = {**dict(self.trunk.named_parameters()), **dict(self.trunk.named_buffers())}
        shapeless = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
        images_13SS = torch.empty(1, 3, image_size, image_size, device="meta")
        with torch.no_grad():
            activations = torch.func.functional_call(self.trunk, shapeless, (images_13SS,))
        return [tuple(array.shape[1:]) for array in activations]


class _Trunk(nn.Module):
    def __init__(self, encoder: BlockEncoder, block: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.block = block

    def forward(self, images_B3SS: Tensor) -> tuple[Tensor, ...]:
        return self.encoder.run_until(images_B3SS, self.block)


def widen(values: Tensor) -> Tensor:
    """Bring half precision to float32; float32 and float64 stay what they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


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
