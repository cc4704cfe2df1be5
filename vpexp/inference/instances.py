"""Objects of an image that nobody points at: boxes of the prompter, masks of the decoder, classes of the classifier.

``prompts=auto``: each box of the head (``vpexp.models.prompter``) is a prompt; of masks that overlap the better one stays; what is
left is named by its pixels (``vpexp.models.mask_classifier``).

Legend: K boxes or masks, C classes, H W size of the image, S model size.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vpexp.data.geometry import scale_points
from vpexp.data.masks import compute_area, compute_box, decode_rle
from vpexp.data.prompts import Prompts
from vpexp.data.tiles import Tiling
from vpexp.inference.mask_crops import crop_masks
from vpexp.inference.predictor import ImageEmbedding, InstanceModel, Predictor, build_prompts
from vpexp.inference.segment import FoundMask, GridFilter, Segmentation, keep_best, segment
from vpexp.inference.tiled import EmbedWindow, search_image

if TYPE_CHECKING:
    from pandas import DataFrame
    from PIL import Image

LOWEST_SCORE = 0.05
"""Of a box, for it to be decoded."""
SHORTEST = 0.5
"""Pixels of a side of a box, for it to be decoded."""
NAMED_AT_ONCE = 256
"""Masks whose crops are held at once."""


def find_instances(
    predictor: Predictor,
    image_HW3: NDArray[np.uint8],
    tiling: Tiling | None = None,
    *,
    min_score: float | None = None,
    embed: EmbedWindow | None = None,
) -> tuple[Prompts, Segmentation]:
    """Find and name the objects of an image, tile by tile where it is cut.

    Args:
        predictor: decodes the boxes; its ``instances`` finds and names.
        image_HW3: RGB uint8.
        tiling: how it is cut; None: it is not.
        min_score: lowest score of a mask; None: the model's own.
        embed: gives the embedding of a tile, or of the image; None: the predictor encodes it.

    Returns:
        The boxes as prompts, pixels of the image, and the masks with their classes, best first; scores are those of the boxes
        times the root of the predicted IoU.
    """
    model = predictor.instances
    assert model is not None, "whoever asks looks whether there is one"
    threshold = model.threshold if min_score is None else min_score
    filters = GridFilter(min_score=threshold, max_overlap=model.max_overlap, max_box_overlap=1.0)
    search = partial(_search, model, predictor, threshold)
    embed = embed or (lambda part_hw3, _: predictor.embed(part_hw3))
    prompts, found = search_image(image_HW3, tiling, embed, search, filters)
    return prompts, replace(found, masks=_name(model, image_HW3, found.masks))


def _search(
    model: InstanceModel,
    predictor: Predictor,
    threshold: float,
    image_HW3: NDArray[np.uint8],
    embedding: ImageEmbedding,
) -> tuple[Prompts, Segmentation]:
    """Find the objects of an encoded image; each prompt is a box, and the point in its middle."""
    image_13SS = predictor.prepare(image_HW3)[None]
    boxes_K4, scores_K = _find_boxes(model, image_13SS, embedding, max(threshold, LOWEST_SCORE))
    middles_K12 = (boxes_K4[:, None, :2] + boxes_K4[:, None, 2:]) / np.float32(2)
    prompts = build_prompts(boxes_K4, middles_K12, None)
    if not len(prompts):
        return prompts, Segmentation([])
    found = segment(predictor, embedding, prompts, min_score=0.0)
    scored = [replace(mask, score=float(scores_K[mask.prompt]) * max(mask.score, 0.0) ** 0.5) for mask in found.masks]
    good = [mask for mask in scored if mask.score >= threshold]
    kept = keep_best(good, model.max_overlap)
    left_out = replace(found, weak=len(scored) - len(good), overlapping=len(good) - len(kept))
    return prompts, replace(left_out, masks=kept)


def _name(model: InstanceModel, image_HW3: NDArray[np.uint8], masks: Sequence[FoundMask]) -> list[FoundMask]:
    """Give masks of an image their classes."""
    if model.classify is None or not masks:
        return [replace(mask, label=model.labels[0]) for mask in masks]
    named = []
    for start in range(0, len(masks), NAMED_AT_ONCE):
        some = masks[start : start + NAMED_AT_ONCE]
        probabilities_kC = model.classify(crop_masks(image_HW3, [mask.rle for mask in some]))
        labels_k = probabilities_kC.argmax(axis=1).tolist()
        named += [replace(mask, label=model.labels[label]) for mask, label in zip(some, labels_k, strict=True)]
    return named


def _find_boxes(
    model: InstanceModel, image_13SS: NDArray[np.float32], embedding: ImageEmbedding, min_score: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Find boxes in pixels of the image, clipped to it; those whose middle lies outside are none."""
    boxes_K4, scores_K = model.find_boxes(embedding.features, image_13SS)
    (rows, columns), (height, width) = embedding.resized_hw, embedding.original_hw
    middles_K2 = (boxes_K4[:, :2] + boxes_K4[:, 2:]) / 2
    inside_K = (middles_K2 >= 0).all(axis=1) & (middles_K2 < [columns, rows]).all(axis=1)
    corners_K22 = scale_points(boxes_K4.reshape(-1, 2, 2), embedding.resized_hw, embedding.original_hw)
    boxes_K4 = np.clip(corners_K22, 0, [width, height]).reshape(-1, 4).astype(np.float32)
    is_large_K = (boxes_K4[:, 2:] - boxes_K4[:, :2] >= SHORTEST).all(axis=1)
    kept_K = inside_K & is_large_K & (scores_K >= min_score)
    return boxes_K4[kept_K], scores_K[kept_K]


@dataclass(frozen=True, slots=True, repr=False)
class Instances:
    """The objects that were found in an image, best first.

    Attributes:
        found: their masks, compressed, with scores and classes.
        size_hw: of the image.
    """

    found: Sequence[FoundMask]
    size_hw: tuple[int, int]

    def __len__(self) -> int:
        return len(self.found)

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {label}" for label, count in Counter(self.labels).most_common())
        return f"Instances({counts or 'nothing found'})"

    @property
    def masks(self) -> NDArray[np.bool_]:
        """Expand the masks: [K, H, W]; as many bytes as that. ``found[k].rle`` is compressed."""
        masks_KHW = np.zeros((len(self), *self.size_hw), np.bool_)
        for place, one in enumerate(self.found):
            masks_KHW[place] = decode_rle(one.rle)
        return masks_KHW

    @property
    def labels(self) -> list[str]:
        """List their classes."""
        return [str(one.label) for one in self.found]

    @property
    def scores(self) -> NDArray[np.float32]:
        """List their scores: [K]."""
        return np.array([one.score for one in self.found], np.float32)

    @property
    def boxes(self) -> NDArray[np.float32]:
        """Compute the bounds of the masks: [K, 4], xyxy in pixels of the image."""
        return np.array([compute_box(one.rle) for one in self.found], np.float32).reshape(-1, 4)

    def to_dataframe(self) -> "DataFrame":
        """List the objects: class, score, area in pixels and bounds (x1, y1, x2, y2), one row each."""
        import pandas as pd

        table = pd.DataFrame(self.boxes, columns=["x1", "y1", "x2", "y2"])
        table.insert(0, "label", self.labels)
        table.insert(1, "score", self.scores)
        table.insert(2, "area", [compute_area(one.rle) for one in self.found])
        return table

    def plot(self, image_HW3: NDArray[np.uint8]) -> "Image.Image":
        """Draw the masks over the image that they are of, each class in a colour of its own; a notebook shows the picture."""
        from vpexp.visuals import choose_colors, draw_prediction

        classes = sorted(set(self.labels))
        colors = choose_colors(np.array([classes.index(label) for label in self.labels], dtype=np.int64), len(classes))
        return draw_prediction(image_HW3, (one.rle for one in self.found), [], repr(self), colors=colors)
