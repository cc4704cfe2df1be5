"""The prompt encoder of SAM: points, boxes and masks become embeddings.

Source: Kirillov et al. 2023 "Segment Anything", appendix A; positional encoding with random Fourier features
(Tancik et al. 2020). Parameter names are those of the official checkpoints.

Shapes: N prompts, P points of a prompt, C channels, S model input size, H W = S/16 rows and columns of the embedding,
M masks given (1 or N).
"""

import math

import torch
from torch import Tensor, nn

from vpexp.models.layers import LayerNorm2d

# Labels of points, as the official ONNX models number them.
NOT_A_POINT, BACKGROUND_POINT, FOREGROUND_POINT, TOP_LEFT_CORNER, BOTTOM_RIGHT_CORNER = -1, 0, 1, 2, 3


class PromptEncoder(nn.Module):
    """Embed prompts for the mask decoder."""

    def __init__(self, *, image_size: int, embedding_size: int, channels: int = 256, mask_channels: int = 16) -> None:
        super().__init__()
        self.image_size = image_size
        self.embedding_size = embedding_size
        self.pe_layer = RandomFourierFeatures(channels // 2)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, channels) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, channels)
        self.no_mask_embed = nn.Embedding(1, channels)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_channels // 4, kernel_size=2, stride=2),
            LayerNorm2d(mask_channels // 4),
            nn.GELU(),
            nn.Conv2d(mask_channels // 4, mask_channels, kernel_size=2, stride=2),
            LayerNorm2d(mask_channels),
            nn.GELU(),
            nn.Conv2d(mask_channels, channels, kernel_size=1),
        )

    def embed_points(self, point_coords_NP2: Tensor, point_labels_NP: Tensor) -> Tensor:
        """Embed points and box corners.

        Coordinates are pixels of the resized image (the half pixel to the pixel's centre is added here); labels are
        1 inside the object, 0 outside, 2 and 3 the box's corners, -1 not a point. Returns [N, P, C].
        """
        positions_NPC = self.pe_layer((point_coords_NP2.float() + 0.5) / self.image_size)
        labels_NP = point_labels_NP.long()
        label_embeddings_4C = torch.cat(list(self.point_embeddings.parameters()))
        embeddings_NPC = positions_NPC + label_embeddings_4C[labels_NP.clamp(min=0)]
        return torch.where((labels_NP < 0)[..., None], self.not_a_point_embed.weight, embeddings_NPC)

    def embed_masks(self, mask_input_M1HW: Tensor | None) -> Tensor:
        """Embed low-resolution masks [M, 1, S/4, S/4] (logits); returns [M, C, S/16, S/16], without masks [1, C, 1, 1]."""
        if mask_input_M1HW is None:
            return self.no_mask_embed.weight[..., None, None]
        embeddings_MCHW: Tensor = self.mask_downscaling(mask_input_M1HW)
        return embeddings_MCHW

    def compute_image_positions(self) -> Tensor:
        """Encode the position of every cell of the image embedding; returns [1, C, S/16, S/16]."""
        device = self.no_mask_embed.weight.device
        centres = (torch.arange(self.embedding_size, device=device, dtype=torch.float32) + 0.5) / self.embedding_size
        y_HW, x_HW = torch.meshgrid(centres, centres, indexing="ij")
        positions_HWC: Tensor = self.pe_layer(torch.stack([x_HW, y_HW], dim=-1))
        return positions_HWC.permute(2, 0, 1)[None]


class RandomFourierFeatures(nn.Module):
    """Encode positions, x and y as parts of the image's side, by sines and cosines of random frequencies."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, frequencies: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, frequencies))

    def forward(self, positions_xy: Tensor) -> Tensor:
        """Encode positions [..., 2] from 0 to 1; returns [..., 2 x frequencies]."""
        # Sums of products instead of a matrix product: mixed precision and INT8 would round a matrix product's input.
        x, y = (2 * positions_xy - 1).chunk(2, dim=-1)
        frequencies_x, frequencies_y = self.positional_encoding_gaussian_matrix.unbind(0)
        angles = 2 * math.pi * (x * frequencies_x + y * frequencies_y)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)
