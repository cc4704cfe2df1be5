"""What every backend offers: embed an image once, then decode any number of prompts on it.

Legend: N prompts, P points a prompt, H W original size, S model size. Prompt coordinates are pixels of the original
image, boxes xyxy.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vpexp.data.annotations import Rle
from vpexp.data.masks import Region, encode_mask
from vpexp.data.prompts import Prompts, prompts_from_boxes

# What one decoder call may hold of float32 logits at original size; keeps peak memory flat for images of any size.
CHUNK_PIXELS = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ImageEmbedding:
    """An encoded image.

    Attributes:
        features: the backend's own array, [1, 256, S/16, S/16].
        original_hw: size of the image as it came.
        resized_hw: its size inside the model's padded square.
    """

    features: Any
    original_hw: tuple[int, int]
    resized_hw: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The masks of N prompts.

    Attributes:
        masks: bool [N, H, W], original size.
        iou: float32 [N], the decoder's own estimate of each mask's IoU; the score.
        low_res: float32 [N, S/4, S/4], logits in the padded square.
        regions: for each mask the part of the image outside of which it has no pixel, where the backend knows.
    """

    masks: NDArray[np.bool_]
    iou: NDArray[np.float32]
    low_res: NDArray[np.float32]
    regions: Sequence[Region] | None = None

    def encode_masks(self) -> Iterator[Rle]:
        """Compress the masks one after another."""
        regions = [None] * len(self.masks) if self.regions is None else self.regions
        return (encode_mask(mask_HW, region) for mask_HW, region in zip(self.masks, regions, strict=True))


class Predictor(Protocol):
    """Image and prompts in, masks out, whatever runs the model."""

    image_size: int

    def embed(self, image_HW3: NDArray[np.uint8]) -> ImageEmbedding:
        """Encode an RGB image of any size."""
        ...

    def restore(self, embedding_CHW: NDArray[Any], original_hw: tuple[int, int]) -> ImageEmbedding:
        """Take up an embedding [C, S/16, S/16] that this model's encoder made before."""
        ...

    def decode_prompts(self, embedding: ImageEmbedding, prompts: Prompts) -> Prediction:
        """Decode prompts given in SAM's point form."""
        ...

    def decode(
        self,
        embedding: ImageEmbedding,
        *,
        boxes: NDArray[np.float32] | None = None,
        points: NDArray[np.float32] | None = None,
        point_labels: NDArray[np.float32] | None = None,
        mask_input: NDArray[np.float32] | None = None,
    ) -> Prediction:
        """Decode boxes [N, 4], points [N, P, 2] with labels [N, P], or both together for each of the N prompts.

        ``mask_input`` [N, S/4, S/4] are the ``low_res`` logits of earlier masks, which further points then refine.
        """
        ...


def count_prompts_a_call(original_hw: tuple[int, int], image_size: int) -> int:
    """Count the prompts that one call of the decoder takes, so that memory does not grow with their number."""
    return max(1, CHUNK_PIXELS // max(original_hw[0] * original_hw[1], image_size**2))


def check_image(image_HW3: NDArray[np.uint8]) -> None:
    """Check what a caller gave as an image.

    Raises:
        ValueError: not uint8 [H, W, 3] with at least one pixel.
    """
    shape = list(image_HW3.shape)
    if image_HW3.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise ValueError(f"an image must be uint8 [H, W, 3] in RGB, not {image_HW3.dtype} {shape}")


def build_prompts(
    boxes: NDArray[np.float32] | None,
    points: NDArray[np.float32] | None,
    point_labels: NDArray[np.float32] | None,
    mask_input: NDArray[np.float32] | None = None,
) -> Prompts:
    """Bring boxes and points into one point form.

    Args:
        boxes: [N, 4] or None.
        points: [N, P, 2] or None.
        point_labels: [N, P], 1 in, 0 out, -1 ignored; None: all 1.
        mask_input: [N, S/4, S/4], logits of earlier masks; None: there are none.

    Raises:
        ValueError: neither is given, labels without points are, or shapes do not fit.
    """
    parts: list[Prompts] = []
    if points is None and point_labels is not None:
        raise ValueError("point_labels are given without points")
    if points is not None:
        coords_NP2 = np.asarray(points, dtype=np.float32)
        if coords_NP2.ndim != 3 or coords_NP2.shape[2] != 2:
            raise ValueError(f"points must have shape [N, P, 2], not {list(coords_NP2.shape)}")
        labels = np.ones(coords_NP2.shape[:2]) if point_labels is None else np.asarray(point_labels)
        if labels.shape != coords_NP2.shape[:2]:
            raise ValueError(f"point_labels must have shape {list(coords_NP2.shape[:2])}, not {list(labels.shape)}")
        parts.append(Prompts(coords_NP2, labels.astype(np.float32)))
    if boxes is not None:
        boxes_N4 = np.asarray(boxes, dtype=np.float32)
        if boxes_N4.ndim != 2 or boxes_N4.shape[1] != 4:
            raise ValueError(f"boxes must have shape [N, 4], not {list(boxes_N4.shape)}")
        parts.append(prompts_from_boxes(boxes_N4))
    if not parts:
        raise ValueError("give boxes, points, or both")
    if len({len(part) for part in parts}) > 1:
        raise ValueError(f"{len(parts[0])} sets of points do not fit {len(parts[1])} boxes: one of each a prompt")
    return Prompts(
        np.concatenate([part.coords_NP2 for part in parts], axis=1),
        np.concatenate([part.labels_NP for part in parts], axis=1),
        None if mask_input is None else np.asarray(mask_input, dtype=np.float32),
    )


def check_mask_input(prompts: Prompts, low_res_size: int) -> None:
    """Check that there is one earlier mask a prompt, of the size of the model that is to refine it.

    Raises:
        ValueError: some are missing, or they are those of a model of another size.
    """
    if prompts.mask_input_Nhw is None:
        return
    wanted, shape = [len(prompts), low_res_size, low_res_size], list(prompts.mask_input_Nhw.shape)
    if shape != wanted:
        raise ValueError(f"mask_input must have shape {wanted}, not {shape}")
