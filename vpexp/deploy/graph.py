"""The torch modules that are exported, with the inputs and outputs of the contract, and what their files state of them.

They only call what training and testing call, so that an exported model computes what was tested. OpenVINO's Model API reads
the keys of the metadata, so that a client needs nothing else.

Shapes: N prompts, P points a prompt, M masks given (1 or N), C channels, S model input size, h w = S/4, H W rows and columns
of the embedding (S/16) or of the original image, K boxes or masks.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vpexp.data.geometry import MEAN, STD
from vpexp.data.interface import SAM, Interface
from vpexp.data.masks import encode_mask
from vpexp.data.prompts import find_ambiguous, find_unstable
from vpexp.inference.exported import MODEL_TYPES, PROMPTER
from vpexp.inference.mask_crops import crop_masks
from vpexp.inference.torch_instances import InstanceParts
from vpexp.models.mask_classifier import MaskClassifier
from vpexp.models.mask_decoder import ALL_MASKS, MASK_TOKENS
from vpexp.models.prompter import Prompter
from vpexp.models.sam import Sam, choose_tokens, upscale_logits


class ExportableEncoder(nn.Module):
    """``images`` [1, 3, S, S], normalised and padded, to the maps of the model's interface."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, images_13SS: Tensor) -> tuple[Tensor, ...]:
        """Encode an image."""
        return self.sam.encode_maps(images_13SS)

    def build_example(self) -> tuple[Tensor, ...]:
        """Build inputs to trace with."""
        size = self.sam.image_size
        return (torch.zeros(1, 3, size, size),)


class ExportableDecoder(nn.Module):
    """All prompts of an image to masks of the original size; see ``forward``.

    Args:
        sam: the model.
        multimask: which prompts are answered by the best of three masks; see ``find_ambiguous``.
    """

    def __init__(self, sam: Sam, multimask: str) -> None:
        super().__init__()
        self.sam = sam
        self.multimask = multimask

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Decode prompts: first the maps of an image, then the five inputs of prompts.

        ``point_coords`` float32 are pixels of the resized image, ``point_labels`` float32 are 1 inside, 0 outside, 2
        and 3 box corners, -1 no point. ``mask_input`` are logits of earlier masks, counted where ``has_mask_input`` is
        1. ``orig_size`` int64 is height and width of the original image. Returns logits [N, 1, height, width], the
        predicted IoU [N, 1], and logits [N, 1, S/4, S/4] in the padded square; the last two of all four mask tokens, [N, 4, ...],
        follow.
        """
        *maps_and_prompts, orig_size_12 = inputs
        low_res_N1hw, iou_N1, tokens_N4hw, ious_N4 = self.decode(*maps_and_prompts)
        upscaled_NHW = upscale_logits(
            low_res_N1hw,
            image_size=self.sam.image_size,
            resized_hw=_compute_resized_size(orig_size_12, self.sam.image_size),
            original_hw=(orig_size_12[0, 0], orig_size_12[0, 1]),  # type: ignore[arg-type]  # traced: sizes are tensors
            resize=self.sam.interface.resize,
        )
        if (limit := self.sam.interface.logit_limit) is not None:
            low_res_N1hw = low_res_N1hw.clamp(-limit, limit)
        return upscaled_NHW[:, None], iou_N1, low_res_N1hw, tokens_N4hw, ious_N4

    def decode(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Decode the inputs of ``forward`` but the last: logits [N, 1, h, w] and IoU [N, 1], and those of all four mask tokens."""
        *maps, point_coords_NP2, point_labels_NP, mask_input_M1hw, has_mask_input_M1 = inputs
        features_1CHW, detail = self.sam.split(self.sam.pack(maps))
        image_MCHW = add_mask(self.sam, features_1CHW, mask_input_M1hw, has_mask_input_M1[:, :, None, None])
        decoded = self.sam.decode_points(image_MCHW, point_coords_NP2, point_labels_NP, detail=detail, masks=ALL_MASKS)
        tokens_N4hw, ious_N4 = decoded.low_res_logits_NKHW, decoded.iou_NK
        chosen_N4 = self._choose_tokens(tokens_N4hw, ious_N4, point_labels_NP, has_mask_input_M1)
        # Products with 0 and 1: exact, and faster than gathering.
        low_res_N1hw = torch.unflatten(chosen_N4[:, None] @ tokens_N4hw.flatten(2), 2, tokens_N4hw.shape[2:])
        return low_res_N1hw, (chosen_N4 * ious_N4).sum(dim=1, keepdim=True), tokens_N4hw, ious_N4

    def _choose_tokens(
        self, tokens_N4hw: Tensor, ious_N4: Tensor, point_labels_NP: Tensor, has_mask_input_M1: Tensor
    ) -> Tensor:
        """Choose each prompt's mask token as ``Predictor.decode_prompts`` does: 1 for that one, 0 for the others, [N, 4]."""
        ambiguous_N = find_ambiguous(point_labels_NP, has_mask_input_M1[:, 0], self.multimask)
        if self.sam.interface.dynamic_multimask and self.multimask != "never":
            ambiguous_N = ambiguous_N | find_unstable(tokens_N4hw[:, 0])
        token_N = choose_tokens(ious_N4, ambiguous_N)
        return (torch.arange(MASK_TOKENS) == token_N[:, None]).to(ious_N4.dtype)

    def build_example(self) -> tuple[Tensor, ...]:
        """Build inputs to trace with: three boxes on an image that is not square."""
        size = self.sam.image_size
        return (
            *(torch.zeros(1, *one.get_shape(size)) for one in self.sam.interface.maps),
            torch.tensor([[[0.0, 0.0], [size / 2, size / 2]]]).expand(3, -1, -1).contiguous(),
            torch.tensor([[2.0, 3.0]]).expand(3, -1).contiguous(),
            torch.zeros(1, 1, size // 4, size // 4),
            torch.zeros(1, 1),
            torch.tensor([[size - size // 4, size]]),
        )

    def list_shapes(self) -> list[list[int]]:
        """List the shapes of the inputs; -1: any length."""
        low = self.sam.image_size // 4
        maps = [[1, *one.get_shape(self.sam.image_size)] for one in self.sam.interface.maps]
        return [*maps, [-1, -1, 2], [-1, -1], [-1, 1, low, low], [-1, 1], [1, 2]]


class ExportablePrompter(nn.Module):
    """Boxes of objects from an embedding and its image.

    From the first map of an embedding [1, C, S/16, S/16] and ``images`` [1, 3, S, S] as the encoder takes it, to ``boxes`` [K, 4], xyxy in
    the padded square's pixels, and ``scores`` [K].

    Args:
        prompter: finds the boxes, and chooses the best.
        sam: the model whose embeddings it takes.
    """

    def __init__(self, prompter: Prompter, sam: Sam) -> None:
        super().__init__()
        self.prompter = prompter
        size = sam.image_size
        self.shapes = (1, *sam.interface.maps[0].get_shape(size)), (1, 3, size, size)

    def forward(self, image_embeddings_1CHW: Tensor, images_13SS: Tensor) -> tuple[Tensor, Tensor]:
        """Find boxes, the best first."""
        boxes_1K4, scores_1K = self.prompter(image_embeddings_1CHW, images_13SS)
        return boxes_1K4[0], scores_1K[0]

    def build_example(self) -> tuple[Tensor, ...]:
        """Build inputs to trace with."""
        return tuple(torch.zeros(shape) for shape in self.shapes)


class ExportableClassifier(nn.Module):
    """``crops`` and ``extents`` of ``MaskCrops`` to ``probabilities`` [K, classes]."""

    def __init__(self, classifier: MaskClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, crops_K4PP: Tensor, extents_KF: Tensor) -> Tensor:
        """Classify masks."""
        logits_KC: Tensor = self.classifier(crops_K4PP, extents_KF)
        return logits_KC.softmax(1)

    def build_example(self) -> tuple[Tensor, ...]:
        """Build inputs to trace with: two masks."""
        crops = crop_masks(np.zeros((8, 8, 3), np.uint8), [encode_mask(np.ones((8, 8), np.bool_))] * 2)
        return torch.from_numpy(crops.crops_K4PP), torch.from_numpy(crops.extents_K2)


def add_mask(sam: Sam, image_1CHW: Tensor, mask_input_M1hw: Tensor, has_mask_M111: Tensor) -> Tensor:
    """Add embedded masks to an embedding, [M, C, H, W]; ``has_mask_M111`` is 1 where a mask counts, 0 elsewhere."""
    dense_MCHW = has_mask_M111 * sam.prompt_encoder.embed_masks(mask_input_M1hw)
    return image_1CHW + (dense_MCHW + (1 - has_mask_M111) * sam.prompt_encoder.embed_masks(None))


def _compute_resized_size(orig_size_12: Tensor, image_size: int) -> Any:
    """Compute height and width inside the square as ``compute_resized_size`` does, in whole numbers.

    Integers, because a traced graph computes in float32, where halves would be lost.
    """
    longest = orig_size_12.max()
    resized_12 = (2 * image_size * orig_size_12 + longest) // (2 * longest)
    resized_12 = resized_12.clamp(min=1)
    return resized_12[0, 0], resized_12[0, 1]


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """What is known of the model that is exported.

    Attributes:
        model_name: name in the table of ``stage=models``.
        image_size: side of the model's square input, pixels.
        labels: class names of the data that it was trained on.
        source_hash: hash of the weights, the same in all parts.
        multimask: which prompts are answered by the best of three masks; see ``find_ambiguous``.
        tile: side of the tiles that it was trained on, pixels of the original image; None: it was shown whole images.
        tile_overlap: share of a tile's side that the next one has too.
        instances: what finds and names objects without prompts; None: nothing does.
    """

    model_name: str
    image_size: int
    labels: Sequence[str]
    source_hash: str
    multimask: str
    tile: int | None = None
    tile_overlap: float = 0.25
    instances: InstanceParts | None = None


def build_model_info(info: ExportInfo, part: str, precision: str, interface: Interface = SAM) -> dict[str, str]:
    """Build the entries of ``rt_info/model_info``.

    The first ones are Model API's. Its lists are separated by blanks, so that blanks inside a label become underscores
    there; ``label_names`` keeps them. ``pad_value`` is 0 after normalisation: the graph pads by itself.

    Args:
        info: the model.
        part: image_encoder, decoder, prompter or classifier.
        precision: FP32, FP16 or INT8.
        interface: how the model's family takes images and answers.
    """
    from importlib.metadata import version

    own = {}
    if part == PROMPTER and (parts := info.instances) is not None:
        own = {
            "threshold": str(parts.threshold),
            "max_overlap": str(parts.max_overlap),
            "classifier": str(parts.classifier is not None),
        }
    labels = info.labels if info.instances is None else info.instances.labels
    return {
        "model_type": MODEL_TYPES[part],
        "task_type": "visual_prompting",
        "mean_values": " ".join(map(str, MEAN)),
        "scale_values": " ".join(map(str, STD)),
        **interface.describe(),
        "pad_value": "0",
        "reverse_input_channels": "False",
        "image_size": str(info.image_size),
        "labels": " ".join("_".join(label.split()) for label in labels),
        "label_names": json.dumps(list(labels)),
        "model_name": info.model_name,
        "precision": precision,
        "source_hash": info.source_hash,
        "multimask": info.multimask,
        **({} if info.tile is None else {"tile": str(info.tile), "tile_overlap": str(info.tile_overlap)}),
        **own,
        "vpexp_version": version("vpexp"),
    }
