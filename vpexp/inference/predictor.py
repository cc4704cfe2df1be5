"""What every backend offers: embed an image once, then decode any number of prompts on it.

Legend: N prompts, P points a prompt, H W original size, S model size. Prompt coordinates are pixels of the original
image, boxes xyxy.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vpexp.data.annotations import Region, Rle
from vpexp.data.geometry import compute_resized_size, normalize_and_pad, resize_image, scale_points
from vpexp.data.interface import SAM, STRETCH, Interface
from vpexp.data.masks import encode_mask, find_region
from vpexp.data.prompts import POINT_IN, POINT_OUT, Prompts, find_ambiguous, find_unstable, prompts_from_boxes
from vpexp.inference.mask_crops import MaskCrops
from vpexp.inference.upscaling import Upscaling, plan_upscaling

if TYPE_CHECKING:
    from pandas import DataFrame

FindBoxes = Callable[[Any, NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""From a backend's embedding [1, C, S/16, S/16] and the image [1, 3, S, S], normalised and padded, to boxes [K, 4], xyxy in pixels of
the padded square, and scores [K]."""
Classify = Callable[[MaskCrops], NDArray[np.float32]]
"""Probabilities [K, C] of the classes of masks."""

SHOWN = 5
# What one decoder call may hold, in pixels of the model's input; keeps peak memory flat for any number of prompts.
CHUNK_PIXELS = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ImageEmbedding:
    """An encoded image.

    Attributes:
        features: the backend's own form of the maps.
        original_hw: size of the image as it came.
        resized_hw: its size inside the model's padded square.
    """

    features: Any
    original_hw: tuple[int, int]
    resized_hw: tuple[int, int]


@dataclass(frozen=True, slots=True, repr=False)
class Prediction:
    """The masks of N prompts; where three a prompt were asked for, N is followed by an axis of 3.

    Attributes:
        masks: bool [N, H, W], original size.
        iou: float32 [N], the decoder's own estimate of each mask's IoU; the score.
        low_res: float32 [N, S/4, S/4], logits in the padded square.
        regions: for each mask, one after another, the part of the image outside of which it has no pixel, where that is known.
    """

    masks: NDArray[np.bool_]
    iou: NDArray[np.float32]
    low_res: NDArray[np.float32]
    regions: Sequence[Region] | None = None

    def __repr__(self) -> str:
        height, width = self.masks.shape[-2:]
        count = math.prod(self.masks.shape[:-2])
        ious = ", ".join(f"{iou:.2f}" for iou in self.iou.ravel()[:SHOWN].tolist()) + ", ..." * (count > SHOWN)
        return f"Prediction({count} mask{'s' * (count != 1)} of {width} x {height} pixels, predicted IoU {ious or '-'})"

    def to_dataframe(self) -> "DataFrame":
        """List the masks: predicted IoU, area in pixels and bounds (x1, y1, x2, y2), one row each in the order of the prompts."""
        import pandas as pd

        found = [find_region(mask_HW) for mask_HW in self.masks.reshape(-1, *self.masks.shape[-2:])]
        rows = [(region.left, region.top, region.right, region.bottom) for region in found]
        table = pd.DataFrame(rows, columns=["x1", "y1", "x2", "y2"])
        table.insert(0, "predicted_iou", self.iou.ravel())
        table.insert(1, "area", self.masks.reshape(len(rows), -1).sum(axis=1))
        return table

    def plot(self, image_HW3: NDArray[np.uint8]) -> Image.Image:
        """Draw the masks over the image that they are of; a notebook shows the picture."""
        from vpexp.visuals import draw_prediction

        masks = list(self.masks.reshape(-1, *self.masks.shape[-2:]))
        return draw_prediction(image_HW3, masks, [], f"{len(masks)} mask{'s' * (len(masks) != 1)}")

    def encode_masks(self) -> Iterator[Rle]:
        """Compress the masks one after another."""
        masks = self.masks.reshape(-1, *self.masks.shape[-2:])
        regions = [None] * len(masks) if self.regions is None else self.regions
        return (encode_mask(mask_HW, region) for mask_HW, region in zip(masks, regions, strict=True))


def join_predictions(parts: Sequence[Prediction]) -> Prediction:
    """Join the masks of some prompts and of further ones, of one image."""
    regions = [part.regions for part in parts]
    return Prediction(
        np.concatenate([part.masks for part in parts]),
        np.concatenate([part.iou for part in parts]),
        np.concatenate([part.low_res for part in parts]),
        None if None in regions else [region for some in regions for region in some or ()],
    )


@dataclass(frozen=True, slots=True)
class InstanceModel:
    """What finds and names objects for a predictor; see ``vpexp.inference.instances``.

    Attributes:
        find_boxes: the prompter.
        classify: the classifier; None: there is one class.
        labels: class names.
        threshold: lowest score of a mask that is kept, chosen on val.
        max_overlap: of masks whose IoU is higher the better one is kept.
    """

    find_boxes: FindBoxes
    classify: Classify | None
    labels: tuple[str, ...]
    threshold: float
    max_overlap: float


class Predictor(ABC):
    """Image and prompts in, masks out, whatever runs the model.

    Args:
        image_size: side S of the model's square input, pixels.
        multimask: which prompts are answered by the best of three masks: ``auto``, ``always`` or ``never``; see
            ``find_ambiguous``.
        interface: how the model's family takes images and answers.

    Attributes:
        instances: finds and names objects without prompts; None where the model has not learnt to.
    """

    def __init__(self, image_size: int, multimask: str, interface: Interface = SAM) -> None:
        self.image_size = image_size
        self.multimask = multimask
        self.interface = interface
        self.instances: InstanceModel | None = None

    @abstractmethod
    def _encode(self, input_3SS: NDArray[np.float32]) -> Any:
        """Encode a prepared image to the backend's own form of its maps."""

    @abstractmethod
    def _adopt(self, embedding_CHW: NDArray[Any]) -> Any:
        """Bring an embedding to the form that ``_encode`` gives."""

    @abstractmethod
    def read_map(self, embedding: ImageEmbedding) -> NDArray[np.float32]:
        """Read the map of an embedding that prompts attend to: [C, S/16, S/16]."""

    @abstractmethod
    def _run_decoder(self, embedding: ImageEmbedding, prompts: Prompts) -> tuple[NDArray[Any], NDArray[Any]]:
        """Decode prompts in pixels of the resized image: logits [N, 4, S/4, S/4] and predicted IoU [N, 4] of each mask token."""

    def embed(self, image_HW3: NDArray[np.uint8]) -> ImageEmbedding:
        """Encode an RGB image: uint8 [H, W, 3], any size; ValueError for anything else."""
        check_image(image_HW3)
        original_hw = (int(image_HW3.shape[0]), int(image_HW3.shape[1]))
        return ImageEmbedding(self._encode(self.prepare(image_HW3)), original_hw, self._compute_resized(original_hw))

    def prepare(self, image_HW3: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Make an RGB image the model's input [3, S, S]: resized, normalised, then padded where the family pads."""
        return normalize_and_pad(resize_image(image_HW3, self.image_size, self.interface.resize), self.image_size)

    def _compute_resized(self, original_hw: tuple[int, int]) -> tuple[int, int]:
        return compute_resized_size(*original_hw, self.image_size, self.interface.resize)

    def restore(self, embedding_CHW: NDArray[Any], original_hw: tuple[int, int]) -> ImageEmbedding:
        """Take up an embedding [C, S/16, S/16] that this model's encoder made before."""
        return ImageEmbedding(self._adopt(embedding_CHW), original_hw, self._compute_resized(original_hw))

    def plan_upscaling(self, embedding: ImageEmbedding) -> Upscaling:
        """Plan how low-resolution logits become masks of an image, as the family's official code does it."""
        low_res_size = self.image_size // 4
        if self.interface.resize == STRETCH:  # at once, not by way of the model's input
            return plan_upscaling(low_res_size, low_res_size, (low_res_size, low_res_size), embedding.original_hw)
        return plan_upscaling(low_res_size, self.image_size, embedding.resized_hw, embedding.original_hw)

    def decode_prompts(
        self, embedding: ImageEmbedding, prompts: Prompts, *, multimask: bool | None = None
    ) -> Prediction:
        """Decode prompts given in SAM's point form, in chunks that bound memory.

        Args:
            embedding: of the image.
            prompts: pixels of the original image.
            multimask: True: three masks a prompt, those of mask tokens 1 to 3; False: that of token 0 (of SAM 2 where it is
                stable); None: one a prompt, by the rule ``multimask`` of this predictor.
        """
        low_res_size, (height, width) = self.image_size // 4, embedding.original_hw
        check_mask_input(prompts, low_res_size)
        kept = 3 if multimask else 1
        masks = np.zeros((len(prompts), kept, height, width), dtype=np.bool_)
        iou = np.zeros((len(prompts), kept), dtype=np.float32)
        low_res = np.zeros((len(prompts), kept, low_res_size, low_res_size), dtype=np.float32)
        regions: list[Region] = []
        upscaling = self.plan_upscaling(embedding)
        chunk = max(1, CHUNK_PIXELS // self.image_size**2)
        for start in range(0, len(prompts), chunk):
            part = slice(start, start + chunk)
            some = prompts.select(part)
            coords_nP2 = scale_points(some.coords_NP2, embedding.original_hw, embedding.resized_hw)
            resized = Prompts(coords_nP2, some.labels_NP, some.mask_input_Nhw)
            logits_n4hw, iou_n4 = self._run_decoder(embedding, resized)
            ambiguous_n = self._find_ambiguous(some, logits_n4hw, multimask)
            tokens_nk = _choose_tokens(iou_n4, ambiguous_n, multimask)
            iou[part] = np.take_along_axis(iou_n4, tokens_nk, axis=1)
            low_res[part] = logits_n4hw[np.arange(len(some))[:, None], tokens_nk]
        for mask_HW, own_hw in zip(
            masks.reshape(-1, height, width), low_res.reshape(-1, low_res_size, low_res_size), strict=True
        ):
            region = upscaling.find_region(own_hw)
            if region.area:
                np.greater(upscaling.upscale(own_hw, region), 0, out=mask_HW[region.slices])
            regions.append(region)
        if (limit := self.interface.logit_limit) is not None:
            np.clip(low_res, -limit, limit, out=low_res)
        if multimask:
            return Prediction(masks, iou, low_res, regions)
        return Prediction(masks[:, 0], iou[:, 0], low_res[:, 0], regions)

    def _find_ambiguous(self, prompts: Prompts, logits_n4hw: NDArray[Any], multimask: bool | None) -> NDArray[np.bool_]:
        """Find the prompts that are answered by the best of three masks: bool [n]."""
        rule = self.multimask if multimask is None else "never"
        ambiguous_n: NDArray[np.bool_] = find_ambiguous(prompts.labels_NP, prompts.mask_input_Nhw is not None, rule)
        if self.interface.dynamic_multimask and self.multimask != "never":
            ambiguous_n = ambiguous_n | find_unstable(logits_n4hw[:, 0])
        return ambiguous_n

    def decode(
        self,
        embedding: ImageEmbedding,
        *,
        boxes: NDArray[np.float32] | None = None,
        points: NDArray[np.float32] | None = None,
        point_labels: NDArray[np.float32] | None = None,
        mask_input: NDArray[np.float32] | None = None,
        multimask: bool | None = None,
    ) -> Prediction:
        """Decode boxes [N, 4], points [N, P, 2] with labels [N, P], or both together for each of the N prompts.

        ``mask_input`` [N, S/4, S/4] are the ``low_res`` logits of earlier masks, which further points then refine. ``multimask``
        as in ``decode_prompts``.
        """
        prompts = build_prompts(boxes, points, point_labels, mask_input)
        check_places(prompts, embedding.original_hw)
        return self.decode_prompts(embedding, prompts, multimask=multimask)


def _choose_tokens(iou_n4: NDArray[Any], ambiguous_n: NDArray[np.bool_], multimask: bool | None) -> NDArray[np.int64]:
    """Choose the mask tokens whose masks are kept, [n, 3] or [n, 1]: of an ambiguous prompt the best of tokens 1 to 3."""
    if multimask:
        return np.tile(np.arange(1, 4), (len(iou_n4), 1))
    best_n = 1 + iou_n4[:, 1:].argmax(axis=1)
    return np.where(ambiguous_n, best_n, 0)[:, None]


def check_image(image_HW3: Any) -> None:
    """Check what a caller gave as an image.

    Raises:
        ValueError: not a uint8 array [H, W, 3] with at least one pixel.
    """
    if not isinstance(image_HW3, np.ndarray):
        kind = type(image_HW3).__name__
        raise ValueError(  # noqa: TRY004 (one kind of error for all that is wrong with an image)
            f"an image must be a uint8 array [H, W, 3] in RGB, not a {kind}: Engine.predict takes paths and PIL images"
        )
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
        ValueError: neither is given, labels without points are, shapes do not fit, or a box has no area.
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
        _check_boxes(boxes_N4)
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


def _check_boxes(boxes_N4: NDArray[np.float32]) -> None:
    for place, (left, top, right, bottom) in enumerate(boxes_N4.tolist()):
        if not (left < right and top < bottom):
            raise ValueError(
                f"boxes[{place}] is [{left:g}, {top:g}, {right:g}, {bottom:g}]: a box is [x1, y1, x2, y2] with x1 < x2 and y1 < y2"
            )


def check_places(prompts: Prompts, original_hw: tuple[int, int]) -> None:
    """Check that points lie in the image, and that boxes do in part.

    Raises:
        ValueError: one does not; most likely x and y are exchanged, or belong to another size of the image.
    """
    height, width = original_hw
    for place, (coords_P2, labels_P) in enumerate(zip(prompts.coords_NP2, prompts.labels_NP, strict=True)):
        for (x, y), label in zip(coords_P2.tolist(), labels_P.tolist(), strict=True):
            if label in (POINT_IN, POINT_OUT) and not (0 <= x <= width and 0 <= y <= height):
                raise ValueError(
                    f"points[{place}]: ({x:g}, {y:g}) lies outside of the image, which is {width} wide and {height} high"
                )
        box_4 = prompts.find_box(place)
        if box_4 is not None and not (box_4[0] < width and box_4[1] < height and (box_4[2:] > 0).all()):
            raise ValueError(
                f"boxes[{place}] is {box_4.tolist()}: outside of the image, which is {width} wide and {height} high"
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
