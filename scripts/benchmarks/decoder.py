"""The decoder with its prompt encoder: 12 boxes on one image, forward and backward, or forward alone."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from scripts.benchmarks import ours
from scripts.benchmarks.contender import Ready
from scripts.benchmarks.plain_model import build_plain_sam
from scripts.benchmarks.settings import Settings

BOXES = 12
TOLERANCES = {"logits": 1e-4, "iou": 1e-4, "gradients": 1e-4}
CHECKED_GRADIENTS = ("iou_token.weight", "output_upscaling.0.weight", "output_hypernetworks_mlps.0.layers.2.weight")
MOST_CHECKED = 20000  # values of each


class _Inputs:
    """The maps of one embedding, boxes, and what turns masks into one number: the same on both sides."""

    def __init__(self, model: str, image_size: int) -> None:
        rng = np.random.default_rng(0)
        # The last is what prompts attend to; SAM 2 has two finer ones.
        shapes = ((32, 4), (64, 8), (256, 16)) if model.startswith("sam2_") else ((256, 16),)
        self.maps = [
            torch.from_numpy(rng.standard_normal((1, channels, *[image_size // stride] * 2), dtype=np.float32))
            for channels, stride in shapes
        ]
        corners_N22 = np.sort(rng.uniform(0, image_size, (BOXES, 2, 2)), axis=1)
        self.boxes_N4 = torch.from_numpy(corners_N22.reshape(-1, 4).astype(np.float32))
        weights = rng.standard_normal((BOXES, 1, image_size // 4, image_size // 4), dtype=np.float32)
        self.weights_N1HW = torch.from_numpy(weights)

    def reduce(self, logits_N1HW: Tensor, iou_N: Tensor) -> Tensor:
        """Compute a loss that reaches every logit."""
        return (logits_N1HW * self.weights_N1HW).mean() + iou_N.sum()


class Ours(Ready):
    """vpexp's decoder."""

    def __init__(self, settings: Settings) -> None:
        self.sam = ours.build_sam(ours.open_context(settings))
        self.sam.requires_grad_(False).mask_decoder.requires_grad_(True)
        self.inputs = _Inputs(settings.model, self.sam.image_size)
        self.embedding_1CHW = self.sam.pack(self.inputs.maps[::-1])

    def decode(self) -> tuple[Tensor, Tensor]:
        """Decode all boxes."""
        decoded = self.sam.decode(
            self.embedding_1CHW,
            torch.zeros(BOXES, dtype=torch.int64),
            self.inputs.boxes_N4.reshape(-1, 2, 2),
            torch.tensor([[2.0, 3.0]]).repeat(BOXES, 1),
        )
        return decoded.low_res_logits_NKHW, decoded.iou_NK[:, 0]

    def turn(self) -> None:
        """Forward and backward."""
        self.inputs.reduce(*self.decode()).backward()
        self.sam.zero_grad()

    def check(self) -> dict[str, Any]:
        """Compute masks and gradients."""
        logits_N1HW, iou_N = self.decode()
        self.inputs.reduce(logits_N1HW, iou_N).backward()
        named = {name: p.grad for name, p in self.sam.named_parameters() if p.grad is not None}
        self.sam.zero_grad()
        return {"logits": logits_N1HW.detach().numpy(), "iou": iou_N.detach().numpy(), "gradients": _sample(named)}


class OursForward(Ours):
    """The same without the backward pass."""

    def turn(self) -> None:
        """Forward alone."""
        with torch.no_grad():
            self.decode()


class Plain(Ready):
    """The original decoder."""

    def __init__(self, settings: Settings) -> None:
        self.sam = build_plain_sam(settings.model, settings.weights)
        self.inputs = _Inputs(settings.model, self.sam.image_size)

    def decode(self) -> tuple[Tensor, Tensor]:
        """Decode all boxes."""
        maps = self.inputs.maps
        ((logits_N1HW, iou_N),) = self.sam.decode(maps if len(maps) > 1 else maps[0], [self.inputs.boxes_N4])
        return logits_N1HW, iou_N

    def turn(self) -> None:
        """Forward and backward."""
        self.inputs.reduce(*self.decode()).backward()
        self.sam.decoder.zero_grad()

    def check(self) -> dict[str, Any]:
        """Compute masks and gradients."""
        logits_N1HW, iou_N = self.decode()
        self.inputs.reduce(logits_N1HW, iou_N).backward()
        gradients = _sample(self.sam.get_gradients())
        self.sam.decoder.zero_grad()
        return {"logits": logits_N1HW.detach().numpy(), "iou": iou_N.detach().numpy(), "gradients": gradients}


class PlainForward(Plain):
    """The same without the backward pass."""

    def turn(self) -> None:
        """Forward alone."""
        with torch.no_grad():
            self.decode()


def _sample(gradients: dict[str, Tensor]) -> np.ndarray[Any, Any]:
    """Take some values of the gradients at both ends of the decoder, each scaled by its own largest."""
    parts = [gradients[f"mask_decoder.{name}"].flatten()[:MOST_CHECKED] for name in CHECKED_GRADIENTS]
    return torch.cat([part / part.abs().max().clamp(min=1e-12) for part in parts]).numpy()


SIDES = {"ours": Ours, "plain": Plain, "ours_forward": OursForward, "plain_forward": PlainForward}
