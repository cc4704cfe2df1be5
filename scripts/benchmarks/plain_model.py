"""The original models behind one door: transformers' SamModel and Sam2Model, or MobileSAM's encoder and segment-anything's decoder.

Nothing of vpexp is in them; ``tests/references`` imports the packages without torchvision and timm.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tests.references import official, transformers_sam, transformers_sam2

TINY_VITS = {
    "sam_tiny_vit": {
        "image_size": 1024,
        "channels": (64, 128, 160, 320),
        "depths": (2, 2, 6, 2),
        "heads": (2, 4, 5, 10),
        "window_sizes": (7, 7, 14, 7),
    },
    "sam_micro": {
        "image_size": 256,
        "channels": (32, 64, 96, 320),
        "depths": (1, 1, 5, 1),
        "heads": (1, 2, 3, 10),
        "window_sizes": (8, 8, 16, 16),
    },
}
VIT_B = {
    "image_size": 1024,
    "channels": 768,
    "depth": 12,
    "heads": 12,
    "window_size": 14,
    "global_attention_blocks": (2, 5, 8, 11),
}
SAM2_SIZE = 1024
# Of MobileSAM's classifier, which no SAM uses.
NOT_IN_SAM = frozenset(("image_encoder.norm_head.weight", "image_encoder.norm_head.bias"))
DETAILS = "image_encoder.details."
"""Of sam_micro, which MobileSAM has not; random weights add nothing by them."""


class PlainSam(ABC):
    """An original model, in eval mode; only its decoder learns.

    Attributes:
        stretches: whether its images are stretched to the square, not padded.
    """

    stretches = False

    def __init__(self, module: nn.Module, image_size: int) -> None:
        self.module = module.eval().requires_grad_(False)
        self.image_size = image_size
        self.decoder: nn.Module = module.mask_decoder
        self.decoder.requires_grad_(True)

    @abstractmethod
    def encode(self, images_B3SS: Tensor) -> Any:
        """Encode normalised and padded images without a gradient: [B, 256, S/16, S/16], of SAM 2 all maps, the finest first."""

    @abstractmethod
    def decode(self, embeddings_BCHW: Any, boxes: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Decode all boxes [N, 4] of each image, pixels of the resized image, in one call an image or one for all.

        Returns:
            Logits [N, 1, S/4, S/4] and predicted IoU [N] of each image.
        """

    def get_gradients(self) -> dict[str, Tensor]:
        """Get the gradients of the decoder under the official names."""
        return {
            f"mask_decoder.{name}": parameter.grad
            for name, parameter in self.decoder.named_parameters()
            if parameter.grad is not None
        }


class OfficialSam(PlainSam):
    """MobileSAM's TinyViT with the decoder of segment-anything."""

    def __init__(self, model: str, weights: Path) -> None:
        settings = TINY_VITS[model]
        encoder = official.build_official_tiny_vit(**settings)
        sam = official.build_official_sam(encoder, settings["image_size"])
        state = torch.load(weights, weights_only=True)
        if any(value.any() for name, value in state.items() if name.startswith(DETAILS) and ".project." in name):
            raise ValueError(f"{weights} does not fit the official model, which has no {DETAILS}*")
        known = {name: value for name, value in state.items() if not name.startswith(DETAILS)}
        missing, unexpected = sam.load_state_dict(known, strict=False)
        left_out = {name for name in missing if name not in NOT_IN_SAM and "pixel_" not in name}
        if left_out or unexpected:
            raise ValueError(f"{weights} does not fit the official model: {sorted(left_out)[:3]} {unexpected[:3]}")
        super().__init__(sam, settings["image_size"])

    @torch.no_grad()
    def encode(self, images_B3SS: Tensor) -> Tensor:
        """See ``PlainSam``."""
        return official.run_official_tiny_vit(self.module.image_encoder, images_B3SS)

    def decode(self, embeddings_BCHW: Tensor, boxes: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """See ``PlainSam``; the official decoder takes one image a call."""
        decoded = [
            official.decode_official(self.module, embedding_CHW[None], boxes=boxes_N4)
            for embedding_CHW, boxes_N4 in zip(embeddings_BCHW, boxes, strict=True)
        ]
        return [(logits, iou[:, 0]) for logits, iou in decoded]


class TransformersModel(PlainSam):
    """A model of transformers."""

    def decode(self, embeddings_BCHW: Any, boxes: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """See ``PlainSam``; images of as many boxes go through in one call."""
        boxes_BN4 = torch.stack(list(boxes))
        output = self.module(image_embeddings=embeddings_BCHW, input_boxes=boxes_BN4, multimask_output=False)
        return [(logits, iou[:, 0]) for logits, iou in zip(output.pred_masks, output.iou_scores, strict=True)]


class TransformersSam(TransformersModel):
    """``transformers.SamModel`` with its ViT-B."""

    def __init__(self, weights: Path) -> None:
        model = transformers_sam.build_transformers_sam(**VIT_B)
        state = torch.load(weights, weights_only=True)
        with torch.no_grad():
            for name, tensor in transformers_sam.get_official_state(model).items():
                tensor.copy_(state[f"{name}"] if name in state else state[f"prompt_encoder.{name}"])
        transformers_sam.share_frequencies(model)
        super().__init__(model, VIT_B["image_size"])

    def encode(self, images_B3SS: Tensor) -> Tensor:
        """See ``PlainSam``."""
        return self.module.get_image_embeddings(images_B3SS)

    def get_gradients(self) -> dict[str, Tensor]:
        """See ``PlainSam``."""
        gradients = super().get_gradients()
        return transformers_sam.get_official_state(SimpleNamespace(state_dict=lambda: gradients))


class TransformersSam2(TransformersModel):
    """``transformers.Sam2Model``, answering by mask token 0 as in training."""

    stretches = True

    def __init__(self, model: str, weights: Path) -> None:
        module = transformers_sam2.build_transformers_sam2(model, SAM2_SIZE)
        state = torch.load(weights, weights_only=True)["model"]
        with torch.no_grad():
            for name, tensor in transformers_sam2.get_official_state(module).items():
                tensor.copy_(state[name])
        transformers_sam.share_frequencies(module)
        module.mask_decoder.dynamic_multimask_via_stability = False
        super().__init__(module, SAM2_SIZE)

    def encode(self, images_B3SS: Tensor) -> list[Tensor]:
        """See ``PlainSam``."""
        maps: list[Tensor] = self.module.get_image_embeddings(images_B3SS)
        return maps

    def get_gradients(self) -> dict[str, Tensor]:
        """See ``PlainSam``."""
        gradients = super().get_gradients()
        named = transformers_sam2.get_official_state(SimpleNamespace(state_dict=lambda: gradients))
        return {name.removeprefix("sam_"): gradient for name, gradient in named.items()}


def build_plain_sam(model: str, weights: Path) -> PlainSam:
    """Build the original of a model and load the same weights that ours has."""
    if model.startswith("sam2_"):
        return TransformersSam2(model, weights)
    return TransformersSam(weights) if model == "sam_vit_b" else OfficialSam(model, weights)
