"""What the prompter is taught: the objects of images and tiles, what its maps should be there, and the loss.

Sources: the focal loss of heat maps, Law & Deng 2018 "CornerNet"; the logarithm of the IoU of boxes, Yu et al. 2016 "UnitBox".

Legend: B views of a step, N objects of one view, G cells a side of a grid of the prompter, S model input size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vpexp.data.annotations import AnnotatedImage, ImagePlace, Region
from vpexp.data.geometry import compute_resized_size, scale_boxes
from vpexp.data.interface import FIT
from vpexp.data.tiles import Tiling, plan_windows
from vpexp.evaluation.instances import NONE
from vpexp.models.prompter import SMALL, Maps

VISIBLE = 0.25
"""Share of its box that a tile must show of an object to teach and to test it."""
SPREAD = 6.0
"""The heat of a centre falls with a standard deviation of this part of the box's side, along each side."""
NARROWEST = 0.6
"""Cells of the standard deviation, at least."""
NEAR = 0.3
"""Heat from which a cell learns the box."""
BOX_WEIGHT = 2.0
SWAPPED_SIDES = {"columns": (2, 1, 0, 3), "rows": (0, 3, 2, 1)}
"""Which distance becomes the left, upper, right and lower one where an image is mirrored."""


@dataclass(frozen=True, slots=True)
class View:
    """An image or a tile, and the objects in it.

    Attributes:
        place: where its pixels are.
        boxes_N4: float32, xyxy, pixels of the model's input.
        resized_hw: its size there.
    """

    place: ImagePlace
    boxes_N4: NDArray[np.float32]
    resized_hw: tuple[int, int]


def list_views(
    images: Sequence[AnnotatedImage],
    tiling: Tiling | None,
    image_size: int,
    *,
    margin: float = 0.0,
    resize: str = FIT,
) -> list[View]:
    """List images, or all their tiles, with and without objects.

    Args:
        images: whole.
        tiling: how they are cut; None: they are not.
        image_size: S.
        margin: share of a box's length that each side is moved outwards by: as loose as the boxes that the decoder was taught
            with.
        resize: how an image becomes the square, see ``compute_resized_size``.
    """
    views = []
    for image in images:
        boxes_N4 = _enlarge(image.boxes_N4, margin)
        for window in plan_windows(tiling, image.height, image.width):
            size = window.bottom - window.top, window.right - window.left
            resized_hw = compute_resized_size(*size, image_size, resize)
            boxes_n4 = scale_boxes(_clip_boxes(boxes_N4, window), size, resized_hw)
            views.append(View(image.locate(window), boxes_n4, resized_hw))
    return views


def _enlarge(boxes_N4: NDArray[np.float32], margin: float) -> NDArray[np.float32]:
    moves_N2 = np.float32(margin) * (boxes_N4[:, 2:] - boxes_N4[:, :2])
    return np.concatenate([boxes_N4[:, :2] - moves_N2, boxes_N4[:, 2:] + moves_N2], axis=1)


def _clip_boxes(boxes_N4: NDArray[np.float32], window: Region) -> NDArray[np.float32]:
    """Take what a window shows of boxes, in its own frame; those of which it shows too little are left out."""
    corner_4 = np.array([window.left, window.top] * 2, np.float32)
    end_4 = np.array([window.right, window.bottom] * 2, np.float32)
    clipped_N4 = np.clip(boxes_N4, corner_4, end_4)
    shown_N, whole_N = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (clipped_N4, boxes_N4))
    kept_n4: NDArray[np.float32] = clipped_N4[shown_N >= VISIBLE * whole_N] - corner_4
    return kept_n4


@dataclass(frozen=True, slots=True)
class Targets:
    """What the maps of one grid should be, of B views.

    Attributes:
        heat_BGG: 1 at the cell of each centre, falling around it.
        distances_B4GG: from the middle of a cell to the sides of the box whose heat is highest there, in cells.
        weights_BGG: how much a cell learns of it: 1 for each object, all its cells together.
        inside_BGG: 1 where a cell lies in the image.
    """

    heat_BGG: Tensor
    distances_B4GG: Tensor
    weights_BGG: Tensor
    inside_BGG: Tensor

    def to(self, device: torch.device) -> "Targets":
        """Move them to a device."""
        return Targets(*(getattr(self, field.name).to(device) for field in fields(self)))

    def mirror(self, how: str) -> "Targets":
        """Mirror them."""
        heat, distances, weights, inside = (mirror(getattr(self, field.name), how) for field in fields(self))
        return Targets(heat, distances[:, SWAPPED_SIDES[how]], weights, inside)


def build_targets(views: Sequence[View], image_size: int, cells: Sequence[int]) -> list[Targets]:
    """Build the targets of views, of each grid those of the objects that are as large as it is for.

    Args:
        views: B of them.
        image_size: S.
        cells: pixels to a side of the cells of both grids, the finer first.
    """
    boxes = [_divide_boxes(view.boxes_N4, cells[0]) for view in views]
    return [
        _build_grid(views, grid_boxes, image_size, cell)
        for cell, grid_boxes in zip(cells, zip(*boxes, strict=True), strict=True)
    ]


def _divide_boxes(boxes_N4: NDArray[np.float32], cell: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Divide boxes into those of the finer and those of the coarse cells; ``cell`` is the side of a finer one."""
    is_large_N = np.prod(boxes_N4[:, 2:] - boxes_N4[:, :2], axis=1) > (SMALL * cell) ** 2
    return boxes_N4[~is_large_N], boxes_N4[is_large_N]


def _build_grid(views: Sequence[View], boxes: Sequence[NDArray[np.float32]], image_size: int, cell: int) -> Targets:
    """Build the targets of one grid, from the boxes of each view that belong to it."""
    cells = image_size // cell
    heat_BGG = np.zeros((len(views), cells, cells), np.float32)
    distances_B4GG = np.zeros((len(views), 4, cells, cells), np.float32)
    weights_BGG, inside_BGG = np.zeros_like(heat_BGG), np.zeros_like(heat_BGG)
    for place, (view, boxes_N4) in enumerate(zip(views, boxes, strict=True)):
        rows, columns = (math.ceil(length / cell) for length in view.resized_hw)
        inside_BGG[place, :rows, :columns] = 1
        owners_GG = np.full((cells, cells), NONE)
        for number, box_4 in enumerate(boxes_N4 / cell):
            _draw_object(number, box_4, heat_BGG[place], distances_B4GG[place], weights_BGG[place], owners_GG)
        is_owned_GG = owners_GG != NONE
        owners_k, weights_k = owners_GG[is_owned_GG], weights_BGG[place][is_owned_GG]
        weights_BGG[place][is_owned_GG] = weights_k / np.bincount(owners_k, weights_k)[owners_k]
    return Targets(*map(torch.from_numpy, (heat_BGG, distances_B4GG, weights_BGG, inside_BGG)))


def _draw_object(  # noqa: PLR0917 (four maps)
    number: int,
    box_4: NDArray[np.float32],
    heat_GG: NDArray[np.float32],
    distances_4GG: NDArray[np.float32],
    weights_GG: NDArray[np.float32],
    owners_GG: NDArray[np.int64],
) -> None:
    """Draw an object's heat, and distances around its centre; each cell keeps those of the object that it is hottest of."""
    cells = len(heat_GG)
    middle_2 = (box_4[:2] + box_4[2:]) / 2
    centre_2 = np.minimum(middle_2.astype(int), cells - 1)
    spread_2 = np.maximum((box_4[2:] - box_4[:2]) / SPREAD, NARROWEST)
    reach_2 = np.ceil(3 * spread_2).astype(int)
    left, top = np.maximum(centre_2 - reach_2, 0).tolist()
    right, bottom = np.minimum(centre_2 + reach_2 + 1, cells).tolist()
    xs, ys = np.arange(left, right, dtype=np.float32), np.arange(top, bottom, dtype=np.float32)[:, None]
    part = (slice(top, bottom), slice(left, right))
    own_gg = np.exp(-(((xs - centre_2[0]) / spread_2[0]) ** 2 + ((ys - centre_2[1]) / spread_2[1]) ** 2) / 2)
    heat_GG[part] = np.maximum(heat_GG[part], own_gg)
    takes_gg = (own_gg > NEAR) & (own_gg > weights_GG[part])
    sides = (xs + 0.5 - box_4[0], ys + 0.5 - box_4[1], box_4[2] - xs - 0.5, box_4[3] - ys - 0.5)
    for axis, side in enumerate(sides):
        distances_4GG[axis][part] = np.where(takes_gg, side, distances_4GG[axis][part])
    weights_GG[part] = np.where(takes_gg, own_gg, weights_GG[part])
    owners_GG[part] = np.where(takes_gg, number, owners_GG[part])


def compute_loss(maps: Sequence[Maps], targets: Sequence[Targets]) -> Tensor:
    """Compute the loss of the maps of all grids, an object each counting 1: focal loss of the heat, logarithm of the boxes' IoU."""
    objects = sum((one.heat_BGG == 1).sum() for one in targets)
    losses = [_compute_grid_loss(*grid, wanted) for grid, wanted in zip(maps, targets, strict=True)]
    return torch.stack(losses).sum() / torch.as_tensor(objects).clamp(min=1)


def _compute_grid_loss(logits_B1GG: Tensor, distances_B4GG: Tensor, targets: Targets) -> Tensor:
    heat_BGG, logits_BGG = targets.heat_BGG, logits_B1GG[:, 0]
    probability_BGG = logits_BGG.sigmoid().clamp(1e-5, 1 - 1e-5)
    is_centre_BGG = (heat_BGG == 1).float()
    hits = is_centre_BGG * (1 - probability_BGG).square() * probability_BGG.log()
    misses = (1 - is_centre_BGG) * (1 - heat_BGG).pow(4) * probability_BGG.square() * (1 - probability_BGG).log()
    focal = -((hits + misses) * targets.inside_BGG).sum()
    log_iou_BGG = compute_log_iou(distances_B4GG, targets.distances_B4GG)
    return focal - BOX_WEIGHT * (log_iou_BGG * targets.weights_BGG).sum()


def compute_log_iou(first_B4GG: Tensor, second_B4GG: Tensor) -> Tensor:
    """Compute the logarithm of the IoU of boxes given by the distances of one point to their sides: [B, G, G], 0 or below.

    A box that is too small or too large by a factor is pulled alike, however large it is.
    """
    (left_a, top_a, right_a, bottom_a), (left_b, top_b, right_b, bottom_b) = first_B4GG.unbind(1), second_B4GG.unbind(1)
    wide = (torch.minimum(left_a, left_b) + torch.minimum(right_a, right_b)).clamp(min=1e-3)
    high = (torch.minimum(top_a, top_b) + torch.minimum(bottom_a, bottom_b)).clamp(min=1e-3)
    shared = wide * high
    union = (left_a + right_a) * (top_a + bottom_a) + (left_b + right_b) * (top_b + bottom_b) - shared
    return (shared / union.clamp(min=1e-6)).clamp(1e-4, 1).log()


def mirror(maps: Tensor, how: str) -> Tensor:
    """Mirror maps [..., H, W]."""
    return maps.flip(-1 if how == "columns" else -2)
