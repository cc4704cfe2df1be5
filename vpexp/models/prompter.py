"""Boxes of objects from an image and its embedding: what prompts SAM's decoder where nobody does.

A small convolutional head gives, for each cell of 4 x 4 pixels of the model's input (8 x 8 of a large one), how likely the centre of an
object lies in it, and how far the sides of its box are. The embedding, of 16 x 16 pixels a cell, holds what things are, but not where in a cell small ones
lie; so the head also looks at the pixels. It knows no classes: SAM's embedding hardly holds them.

Sources: Zhou et al. 2019 "Objects as points" (centres as peaks of a heat map); Tian et al. 2019 "FCOS" (distances to the four
sides). Prompting SAM by learnt boxes: Chen et al. 2024 "RSPrompter".

Legend: B images, C channels of the embedding, E = S/16 its cells a side, G = S/4 or S/8 the head's cells a side, S model input size,
K boxes, F features.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpexp.data.interface import STRIDE

LARGE = 512
"""Side of the model's input above which the head's cells have 8 pixels a side: 256 x 256 cells would take four times as long."""
GROUPS = 8
PIXEL_CHANNELS = 16
REDUCTION = 4
"""Of a side of the image by the layers that look at its pixels."""
RARE = -3.0
"""First logit of the heat map: a centre is rare."""


class Prompter(nn.Module):
    """From an image and its embedding to boxes of objects.

    Args:
        channels: C.
        cell: pixels of the model's input to a side of the head's cells, 4 or 8; see ``choose_cell``.
        width: channels at stride 16; half of them on the way to a cell, a quarter there.
        depth: residual blocks at stride 16.
        limit: K, boxes an image; the best are kept.
        dropout: share of the embedding's channels that are left out of a training step.
    """

    def __init__(
        self,
        channels: int = 256,
        *,
        cell: int = 4,
        width: int = 128,
        depth: int = 1,
        limit: int = 300,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "cell": cell, "width": width, "depth": depth, "limit": limit}
        self.settings: dict[str, Any] = {**sizes, "dropout": dropout}
        self.cell, self.limit = cell, limit
        fine = width // 4
        self.trunk = nn.Sequential(
            nn.Dropout2d(dropout),
            nn.Conv2d(channels, width, 1, bias=False),
            nn.GroupNorm(GROUPS, width),
            nn.GELU(),
            *[ResidualBlock(width) for _ in range(depth)],
        )
        between = STRIDE // 2
        if cell < between:
            self.trunk.extend([*_enlarge(width, width // 2), ResidualBlock(width // 2), *_enlarge(width // 2, fine)])
        else:
            self.trunk.extend(_enlarge(width, fine))
        self.pixels = nn.Sequential(*_reduce(3, PIXEL_CHANNELS), *_reduce(PIXEL_CHANNELS, PIXEL_CHANNELS))
        self.mix = nn.Conv2d(fine + PIXEL_CHANNELS, fine, 1)
        self.last = ResidualBlock(fine)
        self.outputs = nn.Conv2d(fine, 5, 1)
        nn.init.normal_(self.outputs.weight, std=0.01)
        self.outputs.bias = nn.Parameter(torch.tensor([RARE, 0.0, 0.0, 0.0, 0.0]))

    def compute_maps(self, embeddings_BCEE: Tensor, images_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """Compute what is learnt.

        Args:
            embeddings_BCEE: of the images.
            images_B3SS: normalised and padded, as the encoder takes them.

        Returns:
            Logits of the centres [B, 1, G, G], and the distances from the middle of each cell to the left, upper, right and
            lower side of the box [B, 4, G, G], in cells, above 0.
        """
        maps_B5GG = self.outputs(self.compute_features(embeddings_BCEE, images_B3SS))
        return maps_B5GG[:, :1], F.softplus(maps_B5GG[:, 1:])

    def compute_features(self, embeddings_BCEE: Tensor, images_B3SS: Tensor) -> Tensor:
        """Compute what the maps are made of: [B, F, G, G]."""
        embeddings_BCEE = embeddings_BCEE[:, : self.settings["channels"]]  # finer maps may follow
        pixels_BFGG = self.pixels(F.avg_pool2d(images_B3SS, self.cell // REDUCTION))
        features_BFGG: Tensor = self.last(self.mix(torch.cat([self.trunk(embeddings_BCEE), pixels_BFGG], dim=1)))
        return features_BFGG

    def forward(self, embeddings_BCEE: Tensor, images_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """Find boxes: peaks of the heat map, the best first.

        Args:
            embeddings_BCEE: of the images.
            images_B3SS: normalised and padded, as the encoder takes them.

        Returns:
            Boxes [B, K, 4], xyxy in pixels of the model's input, not clipped; scores [B, K], 0 to 1. Where there are fewer
            than K peaks, the rest has score 0.
        """
        logits_B1GG, distances_B4GG = self.compute_maps(embeddings_BCEE, images_B3SS)
        heat_B1GG = logits_B1GG.sigmoid()
        is_peak_B1GG = F.max_pool2d(heat_B1GG, 3, stride=1, padding=1) == heat_B1GG
        cells = heat_B1GG.shape[-1]
        scores_BK, places_BK = (heat_B1GG * is_peak_B1GG).flatten(1).topk(min(self.limit, cells * cells))
        distances_BK4 = distances_B4GG.flatten(2).transpose(1, 2).gather(1, places_BK[:, :, None].expand(-1, -1, 4))
        middles_BK2 = torch.stack([places_BK % cells, places_BK // cells], dim=2) + 0.5
        corners = (middles_BK2 - distances_BK4[:, :, :2], middles_BK2 + distances_BK4[:, :, 2:])
        return torch.cat(corners, dim=2) * self.cell, scores_BK


def choose_cell(image_size: int) -> int:
    """Choose the side of the head's cells for a model's input size, both in pixels."""
    return 8 if image_size > LARGE else 4


def _enlarge(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    """Build layers that double height and width."""
    enlarge = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
    return enlarge, nn.GroupNorm(GROUPS, out_channels), nn.GELU()


def _reduce(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    """Build layers that halve height and width."""
    reduce = nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False)
    return reduce, nn.GroupNorm(GROUPS, out_channels), nn.GELU()


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut: takes and returns [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.GroupNorm(GROUPS, channels),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.GroupNorm(GROUPS, channels),
        )

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Add what the convolutions give."""
        return F.gelu(features_BCHW + self.layers(features_BCHW))
