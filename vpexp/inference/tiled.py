"""Segmenting an image tile by tile: each window is encoded once, and what it gives is put back as run lengths.

So memory is that of the image, of one tile and of the compressed masks, however large the image is.

Legend: N prompts, K masks, W windows.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from vpexp.data.annotations import Region, Rle
from vpexp.data.masks import compute_area, compute_box, compute_overlap, merge_rles
from vpexp.data.prompts import Prompts
from vpexp.data.tiles import Tiling, move_prompts, place_prompts, plan_windows, put_back, see_mask, touches_seam
from vpexp.inference.predictor import ImageEmbedding, Prediction, Predictor
from vpexp.inference.segment import FoundMask, GridFilter, Segmentation, build_grid, segment, segment_grid

if TYPE_CHECKING:
    from rich.progress import Progress

    from vpexp.config.schema import PredictConfig

EmbedWindow = Callable[[NDArray[np.uint8], Region], ImageEmbedding]
"""Gives the embedding of a window of an image: its pixels, RGB [h, w, 3], and where they lie."""
Search = Callable[[NDArray[np.uint8], ImageEmbedding], tuple[Prompts, Segmentation]]
"""Finds what is in an image, RGB [h, w, 3], that is encoded: prompts in its pixels, and their masks, best first."""

COVERED = 0.7
"""Share of a mask cut by a seam from which it is a part of a whole mask that a neighbouring tile has."""
SAME_OBJECT = 0.5
"""IoU, where two tiles overlap, from which two masks that seams cut are one object."""


def segment_tiles(
    predictor: Predictor,
    image_HW3: NDArray[np.uint8],
    prompts: Prompts,
    tiling: Tiling,
    *,
    min_score: float,
    embed: EmbedWindow | None = None,
) -> Segmentation:
    """Decode each prompt in the window that holds it; see ``place_prompts`` and ``segment``.

    Args:
        predictor: any backend.
        image_HW3: RGB uint8.
        prompts: pixels of the image.
        tiling: how it is cut.
        min_score: lowest predicted IoU.
        embed: gives the embedding of a window; None: the predictor encodes it.
    """
    height, width, _ = image_HW3.shape
    embed = embed or (lambda part_hw3, _: predictor.embed(part_hw3))
    parts = []
    for window, chosen_N in place_prompts(prompts, tiling, height, width).group():
        embedding = embed(image_HW3[window.slices], window)
        own = move_prompts(prompts.select(chosen_N), window)
        found = segment(predictor, embedding, own, min_score=min_score)
        masks = [
            FoundMask(put_back(mask.rle, window, height, width), mask.score, int(chosen_N[mask.prompt]))
            for mask in found.masks
        ]
        parts.append(replace(found, masks=masks))
    return _add_up(parts, sorted((mask for part in parts for mask in part.masks), key=lambda mask: mask.prompt))


def decode_tiles(predictor: Predictor, image_HW3: NDArray[np.uint8], prompts: Prompts, tiling: Tiling) -> Prediction:
    """Decode each prompt in the window that holds it, to masks that are not compressed; see ``place_prompts``.

    Returns:
        Masks of the image's size; the low-resolution logits are those of the windows.
    """
    height, width, _ = image_HW3.shape
    masks_NHW = np.zeros((len(prompts), height, width), np.bool_)
    iou_N = np.zeros(len(prompts), np.float32)
    low_res_Nhw = np.zeros((len(prompts), predictor.image_size // 4, predictor.image_size // 4), np.float32)
    for window, chosen_N in place_prompts(prompts, tiling, height, width).group():
        own = move_prompts(prompts.select(chosen_N), window)
        found = predictor.decode_prompts(predictor.embed(image_HW3[window.slices]), own)
        masks_NHW[chosen_N, *window.slices] = found.masks
        iou_N[chosen_N], low_res_Nhw[chosen_N] = found.iou, found.low_res
    return Prediction(masks_NHW, iou_N, low_res_Nhw)


def search_image(
    image_HW3: NDArray[np.uint8], tiling: Tiling | None, embed: EmbedWindow, search: Search, filters: GridFilter
) -> tuple[Prompts, Segmentation]:
    """Search an image, tile by tile where it is cut, and keep each object once; see ``join_tiles``.

    Args:
        image_HW3: RGB uint8.
        tiling: how it is cut; None: it is not.
        embed: encodes a tile, or the image.
        search: finds prompts of its own, and their masks, in an image or tile.
        filters: which masks of several tiles are one object's.

    Returns:
        All prompts, pixels of the image, and the masks, best first.
    """
    height, width, _ = image_HW3.shape
    windows = plan_windows(tiling, height, width)
    if len(windows) == 1:
        return search(image_HW3, embed(image_HW3, windows[0]))
    asked: list[Prompts] = []
    parts: list[Segmentation] = []
    found: list[TileMask] = []
    before = 0
    for window in windows:
        pixels_hw3 = image_HW3[window.slices]
        prompts, part = search(pixels_hw3, embed(pixels_hw3, window))
        for mask in part.masks:
            is_cut = touches_seam(mask.rle, window, height, width)
            rle = put_back(mask.rle, window, height, width)
            found.append(TileMask(FoundMask(rle, mask.score, before + mask.prompt), window, is_cut))
        asked.append(move_prompts(prompts, Region(-window.top, -window.left, 0, 0)))
        parts.append(part)
        before += len(prompts)
    kept = join_tiles(found, windows, filters)
    coords, labels = (np.concatenate([getattr(one, name) for one in asked]) for name in ("coords_NP2", "labels_NP"))
    return Prompts(coords, labels), _add_up(parts, kept, overlapping=len(found) - len(kept))


def search_by_grid(
    predictor: Predictor, points_per_side: int, filters: GridFilter, advance: Callable[[int], None]
) -> Search:
    """Build the search by a grid of points; see ``segment_grid``."""

    def search(_: NDArray[np.uint8], embedding: ImageEmbedding) -> tuple[Prompts, Segmentation]:
        grid = build_grid(*embedding.original_hw, points_per_side)
        return grid, segment_grid(predictor, embedding, grid, filters, advance)

    return search


def find_by_grid(
    predictor: Predictor,
    image_HW3: NDArray[np.uint8],
    tiling: Tiling | None,
    settings: "PredictConfig",
    progress: "Progress",
    *,
    embed: EmbedWindow | None = None,
) -> tuple[Prompts, Segmentation]:
    """Find what is in an image by a grid of points on it, or on each of its tiles.

    Args:
        predictor: any backend.
        image_HW3: RGB uint8.
        tiling: how it is cut; None: it is not.
        settings: how many points, and which masks are kept.
        progress: shows the points.
        embed: gives the embedding of a tile, or of the image; None: the predictor encodes it.

    Returns:
        The points, pixels of the image, and the masks, best first.
    """
    filters, side = GridFilter.from_config(settings), settings.points_per_side
    windows = plan_windows(tiling, image_HW3.shape[0], image_HW3.shape[1])
    points = progress.add_task("points of the grid", total=len(windows) * side**2)
    embed = embed or (lambda part_hw3, _: predictor.embed(part_hw3))
    try:
        search = search_by_grid(predictor, side, filters, partial(progress.advance, points))
        return search_image(image_HW3, tiling, embed, search, filters)
    finally:
        progress.remove_task(points)


@dataclass(frozen=True, slots=True)
class TileMask:
    """A mask that a tile gave.

    Attributes:
        mask: in the frame of the image.
        window: the tile.
        is_cut: it reaches an edge of the tile behind which the image goes on, so that more of the object may be there.
    """

    mask: FoundMask
    window: Region
    is_cut: bool

    def look(self, window: Region) -> Rle:
        """Take what lies in a tile."""
        return put_back(see_mask(self.mask.rle, window), window, *self.mask.rle["size"])


def join_tiles(found: Sequence[TileMask], windows: Sequence[Region], filters: GridFilter) -> list[FoundMask]:
    """Keep each object of several tiles once: whole masks before those that a seam cuts, and of either the best first.

    A mask is left out for a better one where ``filters`` have them overlap too much, or where a seam cuts it and a whole one
    covers it. Those that seams cut and that agree where their tiles overlap are parts of one object: their union is kept,
    with the score of the best. One that a seam cuts, though another tile sees more of the object and has no mask that agrees, is
    left out.

    Args:
        found: of all tiles.
        windows: the tiles, also those in which nothing was found.
        filters: see above.

    Returns:
        What is kept, the best score first.
    """
    ordered = sorted(found, key=lambda one: (one.is_cut, -one.mask.score))
    boxes_K4 = np.array([compute_box(one.mask.rle) for one in ordered], dtype=np.float64).reshape(-1, 4)
    neighbours = _list_neighbours(windows)
    kept_places: dict[Region, list[int]] = defaultdict(list)  # of what is kept, by its tile
    groups: dict[int, int] = {}  # of each mask that is kept: an earlier one of the same object, or itself
    for place, one in enumerate(ordered):
        beside = np.array([other for window in neighbours[one.window] for other in kept_places[window]], dtype=np.int64)
        near = beside[_find_touching(boxes_K4[beside], boxes_K4[place])].tolist()
        if any(_is_left_out(ordered[other], one, filters) for other in near):
            continue
        parts = {_find_first(groups, other) for other in near if _is_continued(ordered[other], one)}
        groups[place] = min(parts, default=place)
        for part in parts:
            groups[part] = groups[place]
        kept_places[one.window].append(place)
    firsts = {place: _find_first(groups, place) for place in groups}
    sizes = Counter(firsts.values())
    kept = [
        place
        for place, first in firsts.items()
        if sizes[first] > 1 or not _is_seen_better(ordered[place], boxes_K4[place], neighbours[ordered[place].window])
    ]
    return _unite([ordered[place] for place in kept], [firsts[place] for place in kept])


def _list_neighbours(windows: Sequence[Region]) -> dict[Region, list[Region]]:
    """List for each tile those that it has pixels in common with, and itself: no mask of another overlaps one of its own."""
    corners_W4 = np.array([(window.left, window.top, window.right, window.bottom) for window in windows])
    touching = (np.flatnonzero(_find_touching(corners_W4, corner_4)).tolist() for corner_4 in corners_W4)
    return {window: [windows[index] for index in found] for window, found in zip(windows, touching, strict=True)}


def _find_touching(boxes_K4: NDArray[Any], box_4: NDArray[Any]) -> NDArray[np.bool_]:
    """Find the boxes that have an area in common with one."""
    touching_K2 = (boxes_K4[:, :2] < box_4[2:]) & (boxes_K4[:, 2:] > box_4[:2])
    return touching_K2[:, 0] & touching_K2[:, 1]


def _find_first(groups: Mapping[int, int], place: int) -> int:
    """Find the mask of an object that was kept first."""
    while groups[place] != place:
        place = groups[place]
    return place


def _is_left_out(kept: TileMask, one: TileMask, filters: GridFilter) -> bool:
    """Return whether a mask is left out for one that is kept."""
    shared = compute_overlap(kept.mask.rle, one.mask.rle)
    area = compute_area(one.mask.rle)
    if not shared:
        return False
    if shared > filters.max_overlap * (area + compute_area(kept.mask.rle) - shared):
        return True
    boxes = [coco_mask.toBbox(mask.rle)[None] for mask in (kept.mask, one.mask)]
    if coco_mask.iou(*boxes, [0])[0, 0] > filters.max_box_overlap:
        return True
    return one.is_cut and not kept.is_cut and shared > COVERED * area


def _is_continued(kept: TileMask, one: TileMask) -> bool:
    """Return whether a mask is a part of the same object as one that is kept: both are cut, and agree where both tiles look."""
    if not (kept.is_cut and one.is_cut) or kept.window == one.window:
        return False
    shared = compute_overlap(kept.mask.rle, one.mask.rle)
    union = compute_area(kept.look(one.window)) + compute_area(one.look(kept.window)) - shared
    return shared > SAME_OBJECT * union


def _is_seen_better(one: TileMask, box_4: NDArray[Any], windows: Sequence[Region]) -> bool:
    """Return whether a seam cuts a mask that lies inside of one of other tiles, clear of the edges behind which the image goes on."""
    height, width = one.mask.rle["size"]
    left, top, right, bottom = box_4.tolist()
    return one.is_cut and any(
        (not window.left or window.left < left)
        and (not window.top or window.top < top)
        and (window.right == width or right < window.right)
        and (window.bottom == height or bottom < window.bottom)
        for window in windows
    )


def _unite(masks: Sequence[TileMask], groups: Sequence[int]) -> list[FoundMask]:
    """Unite the masks of each group under the prompt and score of its best; best score first."""
    members: dict[int, list[FoundMask]] = defaultdict(list)
    for one, group in zip(masks, groups, strict=True):
        members[group].append(one.mask)
    united = []
    for parts in members.values():
        best = max(parts, key=lambda mask: mask.score)
        united.append(replace(best, rle=merge_rles([mask.rle for mask in parts])))
    return sorted(united, key=lambda mask: -mask.score)


def _add_up(parts: Sequence[Segmentation], masks: list[FoundMask], overlapping: int = 0) -> Segmentation:
    """Add up what was left out of the windows of an image."""
    return Segmentation(
        masks,
        empty=sum(part.empty for part in parts),
        weak=sum(part.weak for part in parts),
        unstable=sum(part.unstable for part in parts),
        overlapping=overlapping + sum(part.overlapping for part in parts),
    )
