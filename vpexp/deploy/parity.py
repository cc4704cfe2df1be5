"""The check that an exported model computes what the trained one does, on a real image, with boxes and points.

Shapes: N prompts, H W size of the original image.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vpexp.data.prompts import Prompts
from vpexp.errors import ExportError
from vpexp.inference.predictor import Predictor

LIMITS = {"FP32": 1e-4, "FP16": 1e-2}
"""Largest share of mask pixels that may flip: one in 10,000; with weights of half the precision one in 100."""
LOGIT_LIMITS = {"FP32": 1e-3, "FP16": 1e-1}
"""Largest difference of a low-resolution logit, in standard deviations of the logits."""
IOU_LIMITS = {"FP32": 1e-3, "FP16": 5e-2}
"""Largest difference of a predicted IoU, by which masks are ranked."""
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
