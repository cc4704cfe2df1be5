"""Boxes of objects from an image and its embedding: what prompts SAM's decoder where nobody does.

A small convolutional head gives, for each cell of two grids, how likely the centre of an object lies in it, and how far the sides of
its box are: small objects in cells of 4 x 4 pixels of the model's input, large ones in cells of 16 x 16 (8 x 8 and 32 x 32 of a large
input). The embedding, of 16 x 16 pixels a cell, holds what things are, but not where in a cell small ones lie; so the head
also looks at the pixels. It knows no classes: SAM's embedding hardly holds them.

Sources: Zhou et al. 2019 "Objects as points" (centres as peaks of a heat map); Tian et al. 2019 "FCOS" (distances to the four
sides as exponentials, objects shared out among grids by their size). Prompting SAM by learnt boxes: Chen et al. 2024 "RSPrompter".

Legend: B images, C channels of the embedding, E = S/16 its cells a side, G cells a side of a grid, S model input size, K boxes,
F features.
"""

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpexp.data.interface import STRIDE

LARGE = 512
"""Side of the model's input above which the finer cells have 8 pixels a side: 256 x 256 cells would take four times as long."""
COARSER = 4
"""Finer cells to a side of a coarse one."""
SMALL = 12
"""Finer cells that the root of a box's area has, above which an object belongs to the coarse cells."""
GROUPS = 8
PIXEL_CHANNELS = 16
REDUCTION = 4
"""Of a side of the image by the layers that look at its pixels."""
RARE = -3.0
"""First logit of the heat map: a centre is rare."""
FIRST = 0.7
"""First logarithm of a distance, in cells."""
FURTHEST = 6.0
"""Logarithm of a distance, in cells, at most: what is further is outside of any input."""

Maps = tuple[Tensor, Tensor]
"""Of one grid: logits of the centres [B, 1, G, G], and the distances from the middle of each cell to the left, upper, right and lower
side of the box [B, 4, G, G], in cells, above 0."""


class Prompter(nn.Module):
    """From an image and its embedding to boxes of objects.

    Args:
        channels: C.
        cell: pixels of the model's input to a side of the finer cells, 4 or 8; see ``choose_cell``.
        width: channels at stride 16; half of them on the way to a finer cell, a quarter there.
        depth: residual blocks at stride 16, before both grids.
        limit: K, boxes an image; the best are kept.
        dropout: share of the embedding's channels that are left out of a training step.

    Attributes:
        cells: pixels to a side of the cells of both grids, the finer first.
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
        self.cells, self.limit = (cell, COARSER * cell), limit
        steps = int(math.log2(STRIDE // cell))
        widths = [width, *[width // 2**step for step in range(1, steps)], width // 4]
        looks = [PIXEL_CHANNELS * 2**step for step in range(steps + 1)]
        self.embedding = nn.Sequential(
            nn.Dropout2d(dropout), nn.Conv2d(channels, width, 1, bias=False), nn.GroupNorm(GROUPS, width), nn.GELU()
        )
        first = nn.Sequential(*_reduce(3, PIXEL_CHANNELS), *_reduce(PIXEL_CHANNELS, PIXEL_CHANNELS))
        coarser = [nn.Sequential(*_reduce(some, more), ResidualBlock(more)) for some, more in pairwise(looks)]
        self.pixels = nn.ModuleList([first, *coarser])
        self.joins = nn.ModuleList([nn.Conv2d(*pair, 1) for pair in zip(reversed(looks), widths, strict=True)])
        self.blocks = nn.Sequential(*[ResidualBlock(width) for _ in range(depth)])
        self.enlarge = nn.ModuleList([nn.Sequential(*_enlarge(*pair)) for pair in pairwise(widths)])
        self.refine = nn.ModuleList([ResidualBlock(channels) for channels in widths[1:]])
        self.coarse = ResidualBlock(width)
        self.outputs = nn.ModuleList([_build_output(widths[-1]), _build_output(width)])

    def compute_maps(self, embeddings_BCEE: Tensor, images_B3SS: Tensor) -> list[Maps]:
        """Compute what is learnt, the finer grid first.

        Args:
            embeddings_BCEE: of the images.
            images_B3SS: normalised and padded, as the encoder takes them.
        """
        features = self.compute_features(embeddings_BCEE, images_B3SS)
        maps_2B5GG = [output(features_BFGG) for output, features_BFGG in zip(self.outputs, features, strict=True)]
        return [(maps_B5GG[:, :1], maps_B5GG[:, 1:].clamp(max=FURTHEST).exp()) for maps_B5GG in maps_2B5GG]

    def compute_features(self, embeddings_BCEE: Tensor, images_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """Compute what the maps are made of: [B, F, G, G] of each grid."""
        look_BFGG, looks = F.avg_pool2d(images_B3SS, self.cells[0] // REDUCTION), []
        for layer in self.pixels:
            look_BFGG = layer(look_BFGG)
            looks.append(look_BFGG)
        known_BFEE = self.embedding(embeddings_BCEE[:, : self.settings["channels"]])  # finer maps may follow
        trunk_BFEE = self.blocks(known_BFEE + self.joins[0](looks.pop()))
        fine_BFGG: Tensor = trunk_BFEE
        for enlarge, join, refine in zip(self.enlarge, self.joins[1:], self.refine, strict=True):
            fine_BFGG = refine(enlarge(fine_BFGG) + join(looks.pop()))
        coarse_BFGG: Tensor = self.coarse(F.avg_pool2d(trunk_BFEE, self.cells[1] // STRIDE))
        return fine_BFGG, coarse_BFGG

    def forward(self, embeddings_BCEE: Tensor, images_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """Find boxes: peaks of the heat maps, the best first.

        Args:
            embeddings_BCEE: of the images.
            images_B3SS: normalised and padded, as the encoder takes them.

        Returns:
            Boxes [B, K, 4], xyxy in pixels of the model's input, not clipped; scores [B, K], 0 to 1. Where there are fewer
            than K peaks, the rest has score 0.
        """
        boxes, scores = [], []
        for cell, (logits_B1GG, distances_B4GG) in zip(
            self.cells, self.compute_maps(embeddings_BCEE, images_B3SS), strict=True
        ):
            heat_B1GG = logits_B1GG.sigmoid()
            is_peak_B1GG = F.max_pool2d(heat_B1GG, 3, stride=1, padding=1) == heat_B1GG
            scores.append((heat_B1GG * is_peak_B1GG).flatten(1))
            boxes.append(build_boxes(distances_B4GG, cell))
        scores_BM, boxes_BM4 = torch.cat(scores, dim=1), torch.cat(boxes, dim=1)
        scores_BK, places_BK = scores_BM.topk(min(self.limit, scores_BM.shape[1]))
        return boxes_BM4.gather(1, places_BK[:, :, None].expand(-1, -1, 4)), scores_BK


def build_boxes(distances_B4GG: Tensor, cell: int) -> Tensor:
    """Build the boxes of all cells, row by row: [B, G * G, 4], xyxy in pixels, of distances in cells of ``cell`` pixels."""
    cells = distances_B4GG.shape[-1]
    middles_G = torch.arange(cells, dtype=distances_B4GG.dtype, device=distances_B4GG.device) + 0.5
    ys_GG, xs_GG = torch.meshgrid(middles_G, middles_G, indexing="ij")
    left_BGG, top_BGG, right_BGG, bottom_BGG = distances_B4GG.unbind(1)
    corners = xs_GG - left_BGG, ys_GG - top_BGG, xs_GG + right_BGG, ys_GG + bottom_BGG
    return torch.stack(corners, dim=-1).flatten(1, 2) * cell


def choose_cell(image_size: int) -> int:
    """Choose the side of the finer cells for a model's input size, both in pixels."""
    return 8 if image_size > LARGE else 4


def _build_output(channels: int) -> nn.Conv2d:
    """Build the convolution that gives a grid's maps: a logit and the logarithms of four distances."""
    output = nn.Conv2d(channels, 5, 1)
    nn.init.normal_(output.weight, std=0.01)
    output.bias = nn.Parameter(torch.tensor([RARE, FIRST, FIRST, FIRST, FIRST]))
    return output


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
