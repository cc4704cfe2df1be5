"""Prompts made from annotated masks: drawn at random for training, fixed for evaluation.

Legend: N objects of one image, P = 2 points a prompt, H W size of the original image, h w of the low-resolution logits.
All coordinates are pixels of the original image, x before y. A point names a pixel by its index, as a click does (the model
adds the half pixel to its centre); a box is the outer edges of its pixels.
"""

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vpexp.data.masks import decode_rle
from vpexp.data.types import AnnotatedImage, Rle

POINT_IN = 1.0
BOX_TOP_LEFT = 2.0
BOX_BOTTOM_RIGHT = 3.0
NO_POINT = -1.0  # fills prompts that have fewer points than others; the model masks it out


@dataclass(frozen=True, slots=True)
class PromptRecipe:
    """How prompts are made from masks.

    Attributes:
        type: ``box``, ``point``, or ``both``: training then draws one of the two for each object, evaluation uses boxes.
        jitter: in training each side of the box moves outwards by U(0, jitter) of the box's length along that axis.
        test_jitter: the same in evaluation, fixed by image and object.
        max_per_image: how many objects of an image a training step uses, drawn anew each epoch; None: all.
    """

    type: str = "box"
    jitter: float = 0.0
    test_jitter: float = 0.0
    max_per_image: int | None = None


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
    from scipy import ndimage  # not needed where an exported model is served

    left, top, right, bottom = box_4.astype(int)
    padded_HW = np.pad(decode_rle(rle)[top:bottom, left:right], 1)
    depth_HW = ndimage.distance_transform_edt(padded_HW)
    row, column = np.unravel_index(int(np.argmax(depth_HW)), depth_HW.shape)
    return np.array([left + column - 1, top + row - 1], dtype=np.float32)


def draw_training_prompts(
    image: AnnotatedImage, chosen_N: NDArray[np.int64], recipe: PromptRecipe, rng: np.random.Generator
) -> Prompts:
    """Draw a prompt for each chosen object of an image.

    Args:
        image: the annotations.
        chosen_N: which of its objects.
        recipe: see ``PromptRecipe``.
        rng: decides jitter, points, and box or point for ``both``.
    """
    boxes_N4 = jitter_boxes(image.boxes_N4[chosen_N], recipe.jitter, (image.height, image.width), rng)
    boxes = prompts_from_boxes(boxes_N4)
    if recipe.type == "box":
        return boxes
    points_N2 = np.array([draw_point_inside(image.masks[i], rng) for i in chosen_N], dtype=np.float32).reshape(-1, 2)
    points = prompts_from_points(points_N2)
    if recipe.type == "point":
        return points
    use_box_N = rng.integers(2, size=len(chosen_N)) == 0
    return Prompts(
        np.where(use_box_N[:, None, None], boxes.coords_NP2, points.coords_NP2),
        np.where(use_box_N[:, None], boxes.labels_NP, points.labels_NP),
    )


def build_evaluation_prompts(image: AnnotatedImage, recipe: PromptRecipe) -> Prompts:
    """Build the prompts of all objects of an image, the same at every call.

    Boxes are the tight bounds of the mask (moved outwards by ``test_jitter`` from a seed of the image's name), points the
    pixel deepest inside it. With ``both`` the box wins.
    """
    if recipe.type == "point":
        deepest = [find_deepest_point(rle, box_4) for rle, box_4 in zip(image.masks, image.boxes_N4, strict=True)]
        return prompts_from_points(np.array(deepest, dtype=np.float32).reshape(-1, 2))
    name = image.image_id.encode("utf-8", "surrogatepass")  # file names need not be UTF-8
    rng = np.random.default_rng(zlib.crc32(name))
    return prompts_from_boxes(jitter_boxes(image.boxes_N4, recipe.test_jitter, (image.height, image.width), rng))
