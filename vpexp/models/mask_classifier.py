"""The class of a mask, from the pixels under and around it.

SAM's embedding is trained to be the same for whatever class; colours and textures are not in it. So classes are read from the image
itself: from statistics of the pixels and of the mask's shape by a linear layer, from features that are learnt on crops, or from
both, whose logits are then added. Where objects of an image are mostly of one class, each mask
is named with regard to what the others of its image look like: the mean of their logits is added, ``agreement`` times.

Legend: K masks, P side of a crop, F features, C classes, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BINS = 16
RADII, ORDERS = 8, 6
RADIUS_STEP = 0.3
"""Distance of rings of the radial profile, in root mean square distances of the mask's pixels from their middle."""
STATISTICS = 6 + 3 * BINS + 6 + RADII + ORDERS + 2 + 2
CONVOLUTIONS = ((1, 2), (2, 2), (3, 2), (4, 1))
"""Channels, in widths, and stride of each."""
REDUCTION = 8
"""Of a side of a crop by all of them."""
SHORTEST = 1e-4
LEAST = 1e-4
"""Of a mask's probabilities, so that no single one decides for all."""


class MaskClassifier(nn.Module):
    """Crops and extents of ``MaskCrops`` to logits [K, C].

    Args:
        classes: C.
        width: channels of the first convolution; 0: no learnt features.
        statistics: whether it reads the statistics of pixels and shape.
    """

    agreement: Tensor

    def __init__(self, classes: int, *, width: int, statistics: bool) -> None:
        super().__init__()
        self.settings = {"classes": classes, "width": width, "statistics": statistics}
        self.register_buffer("agreement", torch.zeros(()))
        self.statistics = nn.Linear(STATISTICS, classes) if statistics else None
        self.convolutions, in_channels = nn.Sequential(), 4
        for factor, stride in CONVOLUTIONS if width else ():
            self.convolutions.append(_build_layer(in_channels, factor * width, stride))
            in_channels = factor * width
        self.output = nn.Sequential(nn.Dropout(0.3), nn.Linear(2 * in_channels + 2, classes)) if width else None

    def forward(self, crops_K4PP: Tensor, extents_K2: Tensor) -> Tensor:
        """Classify all masks of one image, in eval mode, or any masks each by itself, in training; crops are 0 to 255 of any type."""
        crops_K4PP = crops_K4PP.float() / 255
        logits = []
        if self.statistics is not None:
            logits.append(self.statistics(compute_statistics(crops_K4PP, extents_K2)))
        if self.output is not None:
            features_KWpp = self.convolutions(crops_K4PP * 4 - 2)
            cover_K1pp = F.avg_pool2d(crops_K4PP[:, 3:], REDUCTION)
            pooled = [_average(features_KWpp, cover_K1pp), features_KWpp.mean((2, 3)), extents_K2]
            logits.append(self.output(torch.cat(pooled, dim=1)))
        logits_KC: Tensor = sum(logits[1:], logits[0])
        if self.training:
            return logits_KC
        own_KC = logits_KC.softmax(dim=1).clamp(min=LEAST).log()
        return own_KC + self.agreement * own_KC.mean(dim=0, keepdim=True)


def _build_layer(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


def _average(values_KFPP: Tensor, cover_K1PP: Tensor) -> Tensor:
    """Average over a mask: [K, F]."""
    return (values_KFPP * cover_K1PP).sum((2, 3)) / cover_K1PP.sum((2, 3)).clamp(min=SHORTEST)


def _spread(values_KFPP: Tensor, cover_K1PP: Tensor) -> Tensor:
    """Compute mean and standard deviation over a mask: [K, 2 F]."""
    mean_KF = _average(values_KFPP, cover_K1PP)
    square_KF = _average((values_KFPP - mean_KF[:, :, None, None]).square(), cover_K1PP)
    return torch.cat([mean_KF, square_KF.clamp(min=0).sqrt()], dim=1)


def compute_statistics(crops_K4PP: Tensor, extents_K2: Tensor) -> Tensor:
    """Compute what a linear layer can name masks by.

    Args:
        crops_K4PP: float, 0 to 1.
        extents_K2: see ``MaskCrops``.

    Returns:
        [K, F]: mean and standard deviation of red, green and blue, histograms of hue, saturation and value, mean and deviation
        of the colours around the mask, its shape, mean length of the brightness's gradient, its share of the crop, the extents.
    """
    color_K3PP, cover_K1PP = crops_K4PP[:, :3], crops_K4PP[:, 3:]
    # every second pixel of every second row holds the same statistics, in a quarter of the time
    few_K3pp, own_K1pp = color_K3PP[:, :, ::2, ::2], cover_K1PP[:, :, ::2, ::2]
    is_inside_K1pp = (few_K3pp.amax(dim=1, keepdim=True) > 0).float()
    grey_K1PP = color_K3PP.mean(dim=1, keepdim=True)
    slopes = (
        grey_K1PP[:, :, 1:-1, 2:] - grey_K1PP[:, :, 1:-1, :-2],
        grey_K1PP[:, :, 2:, 1:-1] - grey_K1PP[:, :, :-2, 1:-1],
    )
    length_K1PP = (slopes[0].square() + slopes[1].square()).sqrt()
    return torch.cat(
        [
            _spread(few_K3pp, own_K1pp),
            _compute_histograms(compute_hsv(few_K3pp), own_K1pp),
            _spread(few_K3pp, (1 - own_K1pp) * is_inside_K1pp),
            _compute_shape(own_K1pp),
            _average(length_K1PP, cover_K1PP[:, :, 1:-1, 1:-1]),
            cover_K1PP.mean((2, 3)),
            extents_K2,
        ],
        dim=1,
    )


def _compute_histograms(hsv_K3PP: Tensor, cover_K1PP: Tensor) -> Tensor:
    """Share the pixels of a mask among bins; one between the middles of two counts for both, and hue is a circle."""
    places_K3PP = hsv_K3PP * BINS - 0.5
    flat_K2PP = places_K3PP[:, 1:].clamp(0, BINS - 1)
    histograms = []
    for number in range(BINS):
        away_K1PP = (places_K3PP[:, :1] - number).abs()
        away_K3PP = torch.cat([torch.minimum(away_K1PP, BINS - away_K1PP), (flat_K2PP - number).abs()], dim=1)
        histograms.append(_average((1 - away_K3PP).clamp(min=0), cover_K1PP))
    return torch.cat(histograms, dim=1)


def _compute_shape(cover_K1PP: Tensor) -> Tensor:
    """Describe a mask alike however it is turned, mirrored and scaled.

    Returns:
        [K, F]: its radial profile, and how far it repeats one to six times around its middle.
    """
    count = torch.arange(cover_K1PP.shape[-1], dtype=cover_K1PP.dtype, device=cover_K1PP.device)
    x_K1PP, y_K1PP = (
        axis - _average(axis, cover_K1PP)[:, :, None, None]
        for axis in (count[None, None, None], count[None, None, :, None])
    )
    square_K1PP = x_K1PP.square() + y_K1PP.square()
    radius_K1PP = square_K1PP.clamp(min=SHORTEST).sqrt()
    size_K111 = _average(square_K1PP, cover_K1PP).clamp(min=SHORTEST).sqrt()[:, :, None, None]
    places_K1PP = (radius_K1PP / (RADIUS_STEP * size_K111)).clamp(max=RADII - 1)
    shape = [_average((1 - (places_K1PP - number).abs()).clamp(min=0), cover_K1PP) for number in range(RADII)]
    x_K1PP, y_K1PP = x_K1PP / radius_K1PP, y_K1PP / radius_K1PP
    cosine_K1PP, sine_K1PP = x_K1PP, y_K1PP
    for _ in range(ORDERS):
        square_K1 = _average(cosine_K1PP, cover_K1PP).square() + _average(sine_K1PP, cover_K1PP).square()
        shape.append(square_K1.clamp(min=SHORTEST**2).sqrt())
        cosine_K1PP, sine_K1PP = (
            cosine_K1PP * x_K1PP - sine_K1PP * y_K1PP,
            cosine_K1PP * y_K1PP + sine_K1PP * x_K1PP,
        )
    return torch.cat(shape, dim=1)


def compute_hsv(color_K3PP: Tensor) -> Tensor:
    """Convert red, green and blue to hue, saturation and value, all 0 to 1."""
    highest, lowest = color_K3PP.amax(dim=1, keepdim=True), color_K3PP.amin(dim=1, keepdim=True)
    spread = (highest - lowest).clamp(min=SHORTEST)
    red, green, blue = color_K3PP[:, :1], color_K3PP[:, 1:2], color_K3PP[:, 2:]
    sixths = torch.where(
        highest == red,
        ((green - blue) / spread) % 6,
        torch.where(highest == green, (blue - red) / spread + 2, (red - green) / spread + 4),
    )
    return torch.cat([sixths / 6, spread / highest.clamp(min=SHORTEST), highest], dim=1)
