"""The check that an exported model computes what the trained one does, on a real image, with boxes and points.

Shapes: N prompts, H W size of the original image; K boxes, C channels, E = S/16 and G = S/4 cells a side, S model input size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vpexp.data.annotations import Rle
from vpexp.data.masks import compute_area
from vpexp.data.prompts import Prompts
from vpexp.errors import ExportError
from vpexp.inference.instances import LOWEST_SCORE
from vpexp.inference.mask_crops import crop_masks
from vpexp.inference.predictor import InstanceModel, Predictor
from vpexp.models.prompter import Prompter, build_boxes

LIMITS = {"FP32": 1e-4, "FP16": 1e-2}
"""Largest share of mask pixels that may flip: one in 10,000; with weights of half the precision one in 100."""
LOGIT_LIMITS = {"FP32": 1e-3, "FP16": 1e-1}
"""Largest difference of a low-resolution logit, in standard deviations of the logits."""
IOU_LIMITS = {"FP32": 1e-3, "FP16": 5e-2}
"""Largest difference of a predicted IoU, by which masks are ranked."""
BOX_LIMITS = {"FP32": 0.5, "FP16": 2.0}
"""Pixels of the model's input that a side of a box may lie elsewhere."""
SCORE_LIMITS = {"FP32": 1e-3, "FP16": 5e-2}
"""Largest difference of a box's score, and of a class's probability."""
FEW_PIXELS = 4
"""So many may always flip: where the logit is zero up to rounding, and objects are small, one is above any share."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far two forms of a model are apart.

    Attributes:
        flipped: share of mask pixels that differ, of the pixels of all masks' boxes (the smallest box around both).
        flipped_of_all: share of all pixels.
        logits: largest difference of the low-resolution logits, in their standard deviations.
        iou: largest difference of the predicted IoU.
        prompts: how many prompts were compared.
        flipped_pixels: how many mask pixels differ.
    """

    flipped: float
    flipped_of_all: float
    logits: float
    iou: float
    prompts: int
    flipped_pixels: int


def measure_parity(
    reference: Predictor, other: Predictor, image_HW3: NDArray[np.uint8], prompts: list[Prompts]
) -> Parity:
    """Compare two predictors on an image, each of them from pixels to masks.

    Args:
        reference: what counts as right.
        other: what is measured.
        image_HW3: RGB uint8.
        prompts: sets of prompts, pixels of the image.
    """
    expected_embedding, embedding = reference.embed(image_HW3), other.embed(image_HW3)
    flipped = inside = pixels = count = 0
    logits = iou = 0.0
    for some in prompts:
        expected = reference.decode_prompts(expected_embedding, some)
        got = other.decode_prompts(embedding, some)
        flipped += int(np.count_nonzero(expected.masks != got.masks))
        inside += sum(_count_box(mask_HW) for mask_HW in expected.masks | got.masks)
        pixels += expected.masks.size
        count += len(some)
        spread = max(float(expected.low_res.std()), 1e-30)
        # Not Python's max, which would lose NaN.
        logits = float(np.maximum(logits, np.abs(expected.low_res - got.low_res).max() / spread))
        iou = float(np.maximum(iou, np.abs(expected.iou - got.iou).max()))
    return Parity(flipped / max(inside, 1), flipped / max(pixels, 1), logits, iou, count, flipped)


def check_parity(parity: Parity, precision: str, what: str) -> None:
    """Refuse a form that is too far from the trained model.

    Raises:
        ExportError: says how far.
    """
    limit, logit_limit, iou_limit = LIMITS[precision], LOGIT_LIMITS[precision], IOU_LIMITS[precision]
    keeps_masks = parity.flipped <= limit or parity.flipped_pixels <= FEW_PIXELS
    # Not >, so that NaN does not pass.
    if keeps_masks and parity.logits <= logit_limit and parity.iou <= iou_limit:
        return
    raise ExportError(
        f"the {what} differs from the trained one, so it was not written: of 10,000 mask pixels {parity.flipped * 1e4:.1f} flip "
        f"(at most {limit * 1e4:g} may), the largest difference of a logit is {parity.logits:.1e} standard deviations "
        f"(at most {logit_limit:g}), of a predicted IoU {parity.iou:.1e} (at most {iou_limit:g})"
    )


def _count_box(mask_HW: NDArray[np.bool_]) -> int:
    rows, columns = np.nonzero(mask_HW.any(axis=1))[0], np.nonzero(mask_HW.any(axis=0))[0]
    return int((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)) if len(rows) else 0


@dataclass(frozen=True, slots=True)
class InstanceParity:
    """How far two forms of what finds and names objects are apart.

    Attributes:
        boxes_px: the furthest that a side of a box lies elsewhere, pixels of the model's input; infinite where a box is missing.
        scores: largest difference of a box's score.
        probabilities: largest difference of a class's probability; 0 where there is one class.
        boxes: how many boxes were compared.
    """

    boxes_px: float
    scores: float
    probabilities: float
    boxes: int


def measure_instance_parity(
    prompter: Prompter,
    reference: Predictor,
    other: Predictor,
    image_HW3: NDArray[np.uint8],
    *,
    prompts: Prompts,
    precision: str,
) -> InstanceParity:
    """Compare what two predictors find in an image, and how they name masks of it.

    Args:
        prompter: the reference's.
        reference: what counts as right, by torch.
        other: what is measured.
        image_HW3: RGB uint8.
        prompts: of the masks that are named, pixels of the image.
        precision: FP32 or FP16; peaks that are higher than their neighbours by less than its limit may be found or not.
    """
    expected_embedding, embedding = reference.embed(image_HW3), other.embed(image_HW3)
    assert reference.instances is not None
    assert other.instances is not None
    slack = SCORE_LIMITS[precision]
    image_13SS = other.prepare(image_HW3)[None]
    peaks = _list_peaks(prompter, expected_embedding.features, torch.from_numpy(image_13SS), slack)
    found_K5 = np.column_stack(other.instances.find_boxes(embedding.features, image_13SS))
    boxes_px, scores, count = _compare_boxes(*peaks, found_K5, slack)
    masks = [rle for rle in reference.decode_prompts(expected_embedding, prompts).encode_masks() if compute_area(rle)]
    probabilities = _compare_classes(reference.instances, other.instances, image_HW3, masks)
    return InstanceParity(boxes_px, scores, probabilities, count)


def check_instance_parity(parity: InstanceParity, precision: str, what: str) -> None:
    """Refuse a form whose boxes or classes are too far from the trained model's.

    Raises:
        ExportError: says how far.
    """
    limit, score_limit = BOX_LIMITS[precision], SCORE_LIMITS[precision]
    # Not >, so that NaN does not pass.
    if parity.boxes_px <= limit and parity.scores <= score_limit and parity.probabilities <= score_limit:
        return
    raise ExportError(
        f"the {what} finds other objects than the trained one, so it was not written: of {parity.boxes} boxes the furthest is "
        f"{parity.boxes_px:.2f} pixels off (at most {limit:g} may be), the largest difference of a score is {parity.scores:.1e}, "
        f"of a class's probability {parity.probabilities:.1e} (at most {score_limit:g})"
    )


@torch.no_grad()
def _list_peaks(
    prompter: Prompter, embedding_1CEE: Tensor, image_13SS: Tensor, slack: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """List the boxes of all cells that are peaks by more than ``slack``, and of those that rounding could make one.

    Returns:
        Both as [M, 5]: xyxy in pixels of the model's input, and the score.
    """
    certain, possible = [], []
    for cell, (logits_11GG, distances_14GG) in zip(
        prompter.cells, prompter.compute_maps(embedding_1CEE.float(), image_13SS), strict=True
    ):
        heat_11GG = logits_11GG.sigmoid()
        highest_M, second_M = F.unfold(heat_11GG, 3, padding=1)[0].topk(2, dim=0).values
        heat_M = heat_11GG.flatten()
        cells_M5 = torch.cat([build_boxes(distances_14GG, cell)[0], heat_M[:, None]], dim=1)
        certain.append(cells_M5[(heat_M == highest_M) & (highest_M - second_M > slack)])
        possible.append(cells_M5[heat_M >= highest_M - slack])
    return torch.cat(certain).cpu().numpy(), torch.cat(possible).cpu().numpy()


def _compare_boxes(
    certain_J5: NDArray[np.float32], possible_L5: NDArray[np.float32], found_K5: NDArray[np.float32], slack: float
) -> tuple[float, float, int]:
    """Compare found boxes with the nearest of the possible ones, and the certain ones with the nearest that was found.

    Where cells are as high as each other, rounding decides which of them is a peak, and where scores are alike, which comes
    first: so neither ranks nor all peaks are compared.

    Returns:
        The largest differences of a side and of a score, and how many boxes were compared.
    """
    # Of more peaks than the head may give the last ones are left out; of fewer the rest has score 0.
    lowest = max(LOWEST_SCORE, float(found_K5[-1, 4]) + slack)
    found_K5 = found_K5[found_K5[:, 4] != 0]
    gaps = [
        _measure_gap(asked_n5, known_m5)
        for asked_n5, known_m5 in (
            (certain_J5[certain_J5[:, 4] >= lowest], found_K5),
            (found_K5[~(found_K5[:, 4] < LOWEST_SCORE)], possible_L5),  # NaN is compared
        )
        if len(asked_n5)
    ]
    boxes_px, scores = np.max([gap[:2] for gap in gaps], axis=0, initial=0.0) if gaps else (0.0, 0.0)
    return float(boxes_px), float(scores), max((gap[2] for gap in gaps), default=0)


def _measure_gap(asked_n5: NDArray[np.float32], known_m5: NDArray[np.float32]) -> tuple[float, float, int]:
    """Measure the largest differences of the sides and scores of boxes from those of the nearest known ones."""
    if not len(known_m5):
        return np.inf, 1.0, len(asked_n5)
    distances_nm = np.abs(asked_n5[:, None, :4] - known_m5[None, :, :4]).max(axis=2)
    nearest_n = distances_nm.argmin(axis=1)
    scores_n = np.abs(asked_n5[:, 4] - known_m5[nearest_n, 4])
    return float(distances_nm.min(axis=1).max()), float(scores_n.max()), len(asked_n5)


def _compare_classes(
    reference: InstanceModel, other: InstanceModel, image_HW3: NDArray[np.uint8], masks: Sequence[Rle]
) -> float:
    """Measure the largest difference of the probability of a class of masks; 0 where there is one class, or no mask."""
    if reference.classify is None or not masks:
        return 0.0
    assert other.classify is not None
    crops = crop_masks(image_HW3, masks)
    return float(np.abs(reference.classify(crops) - other.classify(crops)).max())
