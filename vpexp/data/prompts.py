"""Prompts made from annotated masks: drawn at random for training, fixed for evaluation.

Legend: N objects of one image, P = 2 points a prompt, H W size of the original image, h w of the low-resolution logits.
All coordinates are pixels of the original image, x before y. A point names a pixel by its index, as a click does (the model
adds the half pixel to its centre); a box is the outer edges of its pixels.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vpexp.data.annotations import AnnotatedImage, Rle
from vpexp.data.clicks import Click, find_deepest_pixel
from vpexp.data.masks import decode_rle

if TYPE_CHECKING:  # code that serves a model has no configuration
    from vpexp.config.schema import PromptConfig

POINT_OUT = 0.0
POINT_IN = 1.0
BOX_TOP_LEFT = 2.0
BOX_BOTTOM_RIGHT = 3.0
NO_POINT = -1.0  # fills prompts that have fewer points than others; the model masks it out
NO_CLICK = -1.0
STABLE_LOGIT = 0.05
"""What the threshold of a mask is moved by, up and down, to see whether the mask is stable."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """One prompt an object, in SAM's point form: a box is its two corners.

    Attributes:
        coords_NP2: float32, pixels of the original image.
        labels_NP: float32: 1 in, 0 out, 2 and 3 box corners, -1 no point here.
        mask_input_Nhw: float32, logits of an earlier mask of each prompt that it refines, as a predictor gave them
            (``low_res``: S/4 pixels a side in the model's padded square); None: there are none.
    """

    coords_NP2: NDArray[np.float32]
    labels_NP: NDArray[np.float32]
    mask_input_Nhw: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.labels_NP)

    def select(self, index: slice | NDArray[np.int64]) -> "Prompts":
        """Take some of the prompts."""
        mask_input = None if self.mask_input_Nhw is None else self.mask_input_Nhw[index]
        return Prompts(self.coords_NP2[index], self.labels_NP[index], mask_input)

    def add_clicks(self, clicks: Sequence[Click]) -> "Prompts":
        """Give each prompt one point more; earlier masks, which it was given for, do not go with it."""
        coords_N2 = np.array([[click.column, click.row] for click in clicks], dtype=np.float32).reshape(-1, 2)
        labels_N = np.array([POINT_IN if click.is_inside else POINT_OUT for click in clicks], dtype=np.float32)
        coords_NP2 = np.concatenate([self.coords_NP2, coords_N2[:, None]], axis=1)
        labels_NP = np.concatenate([self.labels_NP, labels_N[:, None]], axis=1)
        used_P = (labels_NP != NO_POINT).any(axis=0)
        return Prompts(coords_NP2[:, used_P], labels_NP[:, used_P])

    def find_box(self, index: int) -> NDArray[np.float32] | None:
        """Find the box of a prompt, wherever it stands among its points: float32 [4], xyxy; None where it has none."""
        labels_P = self.labels_NP[index]
        if not (labels_P == BOX_TOP_LEFT).any():
            return None
        corners = [self.coords_NP2[index, labels_P == corner][0] for corner in (BOX_TOP_LEFT, BOX_BOTTOM_RIGHT)]
        return np.concatenate(corners)


def find_ambiguous(labels_NP: Any, has_mask_N: Any, rule: str) -> Any:
    """Find the prompts that are answered by the best of three masks, mask tokens 1 to 3, and not by the one of token 0.

    A point alone may mean a part, an object or a group of objects. SAM was trained to answer it by three masks, and what is
    clear by one (Kirillov et al. 2023, appendix A).

    Args:
        labels_NP: SAM's point labels; arrays of numpy, tensors of torch and those that are traced will do.
        has_mask_N: not 0 where an earlier mask is given; or one value for all.
        rule: ``auto``: where one point is all that is given, no box, no earlier mask; ``always``; ``never``.

    Returns:
        bool [N].
    """
    points_N = (labels_NP != NO_POINT).sum(1)
    if rule == "auto":
        return (points_N == 1) & (has_mask_N == 0)
    return points_N >= 0 if rule == "always" else points_N < 0


def find_unstable(logits_NHW: Any) -> Any:
    """Find the masks whose outline hangs on the threshold: those that a little higher one would make clearly smaller.

    SAM 2 answers by the best of three masks where the one of token 0 is unstable (``dynamic_multimask_via_stability`` of the
    official code): where those of its pixels that are surely inside are less than 98 % of those that may be.

    Args:
        logits_NHW: low-resolution logits; numpy's, torch's or a traced graph's.

    Returns:
        bool [N]; an empty mask is stable.
    """
    # Numbers, because converters of traced graphs do not count what is true.
    inside_N, possible_N = ((1.0 * (logits_NHW > bound)).sum((1, 2)) for bound in (STABLE_LOGIT, -STABLE_LOGIT))
    # Without a division that rounds: 49 of 50 are stable.
    return 50 * inside_N < 49 * possible_N


def prompts_from_boxes(boxes_N4: NDArray[np.float32]) -> Prompts:
    """Turn boxes (xyxy) into prompts of two labelled corners."""
    count = len(boxes_N4)
    labels_NP = np.tile(np.array([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], dtype=np.float32), (count, 1))
    return Prompts(boxes_N4.reshape(count, 2, 2).astype(np.float32), labels_NP)


def prompts_from_points(points_N2: NDArray[np.float32]) -> Prompts:
    """Turn one foreground point an object into prompts; the second place is empty, as wide as a box."""
    coords_NP2 = np.zeros((len(points_N2), 2, 2), dtype=np.float32)
    coords_NP2[:, 0] = points_N2
    labels_NP = np.tile(np.array([POINT_IN, NO_POINT], dtype=np.float32), (len(points_N2), 1))
    return Prompts(coords_NP2, labels_NP)


def jitter_boxes(
    boxes_N4: NDArray[np.float32], jitter: float, size_HW: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Move each side outwards by U(0, jitter) of the box's length, clipped to the image: a box drawn loosely by hand."""
    if jitter == 0:
        return boxes_N4
    height, width = size_HW
    length_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
    shift_N4 = rng.uniform(0, jitter, boxes_N4.shape) * np.concatenate([-length_N2, length_N2], axis=1)
    limits_4 = np.array([width, height, width, height], dtype=np.float32)
    jittered_N4: NDArray[np.float32] = np.clip(boxes_N4 + shift_N4, 0, limits_4).astype(np.float32)
    return jittered_N4


def draw_point_inside(rle: Rle, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a random pixel of the mask: float32 [2], x y."""
    rows, columns = np.nonzero(decode_rle(rle))
    chosen = int(rng.integers(len(rows)))
    return np.array([columns[chosen], rows[chosen]], dtype=np.float32)


def find_deepest_point(rle: Rle, box_4: NDArray[np.float32]) -> NDArray[np.float32]:
    """Find the pixel farthest from the mask's outline (the image border counts as outline).

    Always inside the mask, holes and concave shapes included; float32 [2], x y. The first pixel in row order wins ties.
    """
    left, top, right, bottom = box_4.astype(int)
    row, column = find_deepest_pixel(decode_rle(rle)[top:bottom, left:right])
    return np.array([left + column, top + row], dtype=np.float32)


def draw_training_prompts(
    image: AnnotatedImage, chosen_N: NDArray[np.int64], recipe: "PromptConfig", rng: np.random.Generator
) -> Prompts:
    """Draw a prompt for each chosen object of an image.

    Args:
        image: the annotations.
        chosen_N: which of its objects.
        recipe: the section ``prompt``.
        rng: decides jitter, points, and box or point for ``both`` and ``clicks``.
    """
    boxes_N4 = jitter_boxes(image.boxes_N4[chosen_N], recipe.jitter, (image.height, image.width), rng)
    boxes = prompts_from_boxes(boxes_N4)
    if recipe.type == "box":
        return boxes
    points_N2 = np.array([draw_point_inside(image.masks[i], rng) for i in chosen_N], dtype=np.float32).reshape(-1, 2)
    points = prompts_from_points(points_N2)
    if recipe.type == "point":
        return points
    if recipe.type == "clicks":
        use_box_N = rng.random(len(chosen_N)) < recipe.box_share
    else:
        use_box_N = rng.integers(2, size=len(chosen_N)) == 0
    return Prompts(
        np.where(use_box_N[:, None, None], boxes.coords_NP2, points.coords_NP2),
        np.where(use_box_N[:, None], boxes.labels_NP, points.labels_NP),
    )


def draw_corrections(count: int, recipe: "PromptConfig", rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw how often each of N objects is corrected by a click before it is learnt from, and where these clicks fall.

    Drawn here, and not in the step that places them on the model's errors, so that a resumed training draws the same.

    Returns:
        float32 [N, R], R 0 unless prompts are clicks: 0 to 1, which of an error's pixels is clicked; -1: no click any more.
    """
    if recipe.type != "clicks":
        return np.zeros((count, 0), dtype=np.float32)
    draws_NR = rng.random((count, recipe.train_rounds), dtype=np.float32)
    rounds_N = rng.integers(recipe.train_rounds + 1, size=count)
    draws_NR[np.arange(recipe.train_rounds) >= rounds_N[:, None]] = NO_CLICK
    return draws_NR


def build_evaluation_prompts(image: AnnotatedImage, recipe: "PromptConfig") -> Prompts:
    """Build the prompts of all objects of an image, the same at every call.

    Boxes are the tight bounds of the mask (moved outwards by ``test_jitter`` from a seed of the image's name), points the
    pixel deepest inside it. With ``both`` the box wins; with ``clicks`` these are the first prompts.
    """
    if recipe.type == "point" or (recipe.type == "clicks" and recipe.first == "point"):
        deepest = [find_deepest_point(rle, box_4) for rle, box_4 in zip(image.masks, image.boxes_N4, strict=True)]
        return prompts_from_points(np.array(deepest, dtype=np.float32).reshape(-1, 2))
    name = image.image_id.encode("utf-8", "surrogatepass")  # file names need not be UTF-8
    rng = np.random.default_rng(zlib.crc32(name))
    return prompts_from_boxes(jitter_boxes(image.boxes_N4, recipe.test_jitter, (image.height, image.width), rng))
