"""Prompt obedience: what a model answers to prompts on background.

A model that was fine-tuned on few kinds of objects may return an object wherever it is asked. Boxes of the sizes that the objects have,
laid where no object is, and points in the background, must not: what comes back there is compared with the annotated objects.

Legend: N objects of one image, M prompts on its background, H W original size.
"""

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from vpexp.data.annotations import AnnotatedImage, Region, Rle, spread_places
from vpexp.data.masks import compute_overlap, encode_region, merge_rles
from vpexp.data.prompts import Prompts, prompts_from_boxes, prompts_from_points

HIT = 0.5
"""IoU with an annotated object from which a mask is that object."""
TRIES = 30
"""Places that are tried for a prompt; where all of them touch an object, the prompt is left out."""
ROOM = 0.01
"""Distance of a point to objects, at least, as a share of the image's longer side."""
MILLIONTHS = 1_000_000


@dataclass(frozen=True, slots=True)
class BackgroundPrompts:
    """Prompts where no object is.

    Attributes:
        boxes_M4: float32, xyxy, pixels of the image.
        points_M2: float32, x y; as many as fit, not those of the boxes.
    """

    boxes_M4: NDArray[np.float32]
    points_M2: NDArray[np.float32]

    def list_prompts(self) -> dict[str, Prompts]:
        """List both kinds as prompts; a kind that no place was found for is left out."""
        kinds = {"box": prompts_from_boxes(self.boxes_M4), "point": prompts_from_points(self.points_M2)}
        return {kind: prompts for kind, prompts in kinds.items() if len(prompts)}


def draw_background_prompts(image: AnnotatedImage, most: int) -> BackgroundPrompts:
    """Draw a box as large as each object's, and a point, where no object is; the same at every call.

    None of their pixels is one of an object; a point keeps some distance.

    Args:
        image: with all of its objects, at least one.
        most: objects, from all over the list, whose sizes are taken.
    """
    chosen = spread_places(len(image), most)
    rng = np.random.default_rng(zlib.crc32(image.image_id.encode("utf-8", "surrogatepass")))
    objects = merge_rles(image.masks)
    margin = max(1, round(ROOM * max(image.height, image.width)))
    boxes, points = [], []
    for box_4 in image.boxes_N4[chosen]:
        width, height = (box_4[2:] - box_4[:2]).astype(int).tolist()
        region = _find_free(objects, height, width, rng)
        if region is not None:
            boxes.append([region.left, region.top, region.right, region.bottom])
        side = 2 * margin + 1
        region = _find_free(objects, side, side, rng)
        if region is not None:
            points.append([region.left + margin, region.top + margin])
    return BackgroundPrompts(
        np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(points, dtype=np.float32).reshape(-1, 2)
    )


def _find_free(objects: Rle, height: int, width: int, rng: np.random.Generator) -> Region | None:
    """Find a place of a size in the image that has no pixel of an object; None where no try finds one."""
    image_height, image_width = objects["size"]
    if height > image_height or width > image_width:
        return None
    for _ in range(TRIES):
        top, left = int(rng.integers(image_height - height + 1)), int(rng.integers(image_width - width + 1))
        region = Region(top, left, top + height, left + width)
        if compute_overlap(objects, encode_region(region, image_height, image_width)) == 0:
            return region
    return None


class BackgroundCounts:
    """Counts what prompts on background returned.

    Attributes:
        sums: by measure (``box_hits``, ``point_hits``: share of the prompts whose mask is an annotated object; ``box_iou``: IoU of the
            mask with the box that it was asked for by) and image: sum, and twice how many prompts, in millionths, so that the jackknife
            of F1 is that of their mean.
    """

    def __init__(self) -> None:
        self.sums: dict[str, dict[str, tuple[int, int, int]]] = {}

    def update(self, kind: str, prompts: Prompts, masks: list[Rle], image: AnnotatedImage, image_id: str) -> None:
        """Add the answers of an image or a tile to prompts of a kind, box or point."""
        ious_MN = np.asarray(coco_mask.iou(masks, list(image.masks), [0] * len(image.masks)))
        self._add(f"{kind}_hits", image_id, float((ious_MN.max(axis=1) >= HIT).sum()), len(masks))
        if kind == "box":
            own = [encode_region(_to_region(prompts, index), image.height, image.width) for index in range(len(masks))]
            ious = [float(coco_mask.iou([mask], [box], [0])[0, 0]) for mask, box in zip(masks, own, strict=True)]
            self._add("box_iou", image_id, sum(ious), len(masks))

    def _add(self, measure: str, image_id: str, total: float, count: int) -> None:
        by_image = self.sums.setdefault(measure, {})
        before = by_image.get(image_id, (0, 0, 0))
        parts = (round(MILLIONTHS * total), MILLIONTHS * count, MILLIONTHS * count)
        by_image[image_id] = (before[0] + parts[0], before[1] + parts[1], before[2] + parts[2])


def _to_region(prompts: Prompts, index: int) -> Region:
    left, top, right, bottom = prompts.coords_NP2[index].ravel().astype(int).tolist()
    return Region(top, left, bottom, right)
