"""Images that are cut into square tiles: where the tiles lie, which objects and prompts belong to which, and what they show.

The tiles of an image are a grid: each axis is divided by itself, so the tile that suits a box best is found axis by axis.
How well a tile holds something is measured by the margin, the smallest distance to any of the tile's edges; where it is
negative, something sticks out.

Legend: N objects or prompts of one image, P points a prompt, A tiles along an axis, T tiles of all images, M their objects.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
from numpy.typing import NDArray

from vpexp.data.annotations import AnnotatedImage, ImagePlace, LazyImages, Region, Rle
from vpexp.data.masks import compute_area, compute_box, move_mask
from vpexp.data.prompts import NO_POINT, POINT_IN, POINT_OUT, Prompts

ROOM = 1.25
"""Side of a window that is made for one prompt, where that is longer than a tile, in lengths of the prompt."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How images are cut.

    Attributes:
        side: of a tile, pixels of the original image.
        overlap: the least share of its side that a tile has in common with the next one, 0 to below 1.
    """

    side: int
    overlap: float

    def plan_axis(self, length: int) -> NDArray[np.int64]:
        """Choose where the tiles of an axis begin: int64 [A].

        The last one ends where the image does. An axis that is no longer than a tile has one, as long as itself.
        """
        if length <= self.side:
            return np.zeros(1, dtype=np.int64)
        step = max(1, int(self.side * (1 - self.overlap) + 1e-9))  # 0.9 is a little less than 9 / 10
        return np.append(np.arange(0, length - self.side, step, dtype=np.int64), length - self.side)

    def plan(self, height: int, width: int) -> list[Region]:
        """Choose the tiles of an image, row by row: every pixel lies in one at least."""
        rows, columns = self.plan_axis(height).tolist(), self.plan_axis(width).tolist()
        high, wide = min(self.side, height), min(self.side, width)
        return [Region(top, left, top + high, left + wide) for top in rows for left in columns]

    def find_tiles(self, boxes_N4: NDArray[np.floating], height: int, width: int) -> "TileChoice":
        """Find the tile of each box that holds it best: with the largest margin; the first of those that are alike.

        Args:
            boxes_N4: xyxy, pixels of the image.
            height: of the image.
            width: of the image.
        """
        lefts_N, margins_N = self._choose(boxes_N4[:, 0], boxes_N4[:, 2], width)
        tops_N, vertical_N = self._choose(boxes_N4[:, 1], boxes_N4[:, 3], height)
        bottoms_N, rights_N = tops_N + min(self.side, height), lefts_N + min(self.side, width)
        windows_N4 = np.stack([tops_N, lefts_N, bottoms_N, rights_N], axis=1)
        return TileChoice(windows_N4, np.minimum(margins_N, vertical_N) >= 0)

    def _choose(
        self, low_N: NDArray[np.floating], high_N: NDArray[np.floating], length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
        """Choose a tile of one axis for each stretch; where it begins, and the margin there."""
        starts_A = self.plan_axis(length)
        ends_A = starts_A + min(self.side, length)
        margins_NA = np.minimum(low_N[:, None] - starts_A, ends_A - high_N[:, None])
        best_N = margins_NA.argmax(axis=1)
        return starts_A[best_N], margins_NA[np.arange(len(best_N)), best_N]


def plan_windows(tiling: Tiling | None, height: int, width: int) -> list[Region]:
    """Choose the tiles of an image; the whole of it where it is not cut."""
    return [Region(0, 0, height, width)] if tiling is None else tiling.plan(height, width)


@dataclass(frozen=True, slots=True)
class TileChoice:
    """A tile for each of N boxes.

    Attributes:
        windows_N4: int64, top, left, bottom and right of the tile.
        is_whole_N: bool, whether all of the box lies in it.
    """

    windows_N4: NDArray[np.int64]
    is_whole_N: NDArray[np.bool_]

    def group(self) -> Iterator[tuple[Region, NDArray[np.int64]]]:
        """Go through the tiles that something was assigned to, row by row, with what that is: int64."""
        windows, group_N = np.unique(self.windows_N4, axis=0, return_inverse=True)
        order = np.argsort(group_N.ravel(), kind="stable")
        ends = np.cumsum(np.bincount(group_N.ravel(), minlength=len(windows)))
        for window_4, members in zip(windows.tolist(), np.split(order, ends[:-1]), strict=bool(len(windows))):
            yield Region(*window_4), members


def assign_objects(image: AnnotatedImage, tiling: Tiling) -> TileChoice:
    """Find the tile of each object that has most of its mask's pixels; of those that have all, the one with the largest margin."""
    choice = tiling.find_tiles(image.boxes_N4, image.height, image.width)
    for index in np.flatnonzero(~choice.is_whole_N).tolist():
        window = _find_fullest(image.masks[index], image.boxes_N4[index], tiling, image)
        choice.windows_N4[index] = window.top, window.left, window.bottom, window.right
    return choice


def _find_fullest(rle: Rle, box_4: NDArray[np.float32], tiling: Tiling, image: AnnotatedImage) -> Region:
    """Find the tile that has most pixels of a mask; of equals, the one whose centre is nearest to that of its box."""
    left, top, right, bottom = box_4.tolist()
    best, best_rank = None, (0, 0.0)
    for tile in tiling.plan(image.height, image.width):
        if tile.left >= right or tile.right <= left or tile.top >= bottom or tile.bottom <= top:
            continue
        distance = abs(tile.left + tile.right - left - right) + abs(tile.top + tile.bottom - top - bottom)
        rank = (compute_area(see_mask(rle, tile)), -distance)
        if best is None or rank > best_rank:
            best, best_rank = tile, rank
    assert best is not None, "a mask has a pixel, and every pixel lies in a tile"
    return best


def place_prompts(prompts: Prompts, tiling: Tiling, height: int, width: int) -> TileChoice:
    """Find a window for each prompt of a user that holds all of its box and points.

    It is the tile with the largest margin. A prompt that no tile holds whole gets a window of its own around it: a tile, or
    where the prompt is longer a square that is a quarter longer than it.

    Returns:
        The windows; ``is_whole_N`` is true where it is a tile of the plan.
    """
    boxes_N4 = measure_prompts(prompts, height, width)
    choice = tiling.find_tiles(boxes_N4, height, width)
    for index in np.flatnonzero(~choice.is_whole_N).tolist():
        left, top, right, bottom = boxes_N4[index].tolist()
        longest = max(right - left, bottom - top)
        side = tiling.side if longest <= tiling.side else int(np.ceil(ROOM * longest))
        spans = [
            _centre(low, high, side, length) for low, high, length in ((top, bottom, height), (left, right, width))
        ]
        choice.windows_N4[index] = spans[0][0], spans[1][0], spans[0][1], spans[1][1]
    return choice


def _centre(low: float, high: float, side: int, length: int) -> tuple[int, int]:
    """Lay a window of one axis around a stretch, inside of the image."""
    size = min(side, length)
    start = min(max(round((low + high - size) / 2), 0), length - size)
    return start, start + size


def measure_prompts(prompts: Prompts, height: int, width: int) -> NDArray[np.float64]:
    """Measure the bounds of each prompt, its box and the pixels of its points: float64 [N, 4], xyxy, inside of the image."""
    used_NP1 = (prompts.labels_NP != NO_POINT)[:, :, None]
    pixels_NP1 = np.isin(prompts.labels_NP, (POINT_IN, POINT_OUT))[:, :, None]
    coords_NP2 = np.where(pixels_NP1, np.floor(prompts.coords_NP2), prompts.coords_NP2).astype(np.float64)
    low_N2 = np.where(used_NP1, coords_NP2, np.inf).min(axis=1)
    high_N2 = np.where(used_NP1, coords_NP2 + pixels_NP1, -np.inf).max(axis=1)
    limits_2 = np.array([width, height], dtype=np.float64)
    return np.concatenate([np.clip(low_N2, 0, limits_2), np.clip(high_N2, 0, limits_2)], axis=1)


def move_prompts(prompts: Prompts, window: Region) -> Prompts:
    """Bring prompts from the image's frame into that of a window."""
    return replace(prompts, coords_NP2=prompts.coords_NP2 - np.array([window.left, window.top], dtype=np.float32))


def see_mask(rle: Rle, window: Region) -> Rle:
    """Take what a window shows of a mask, in the window's frame."""
    return move_mask(rle, window.top, window.left, window.bottom - window.top, window.right - window.left)


def put_back(rle: Rle, window: Region, height: int, width: int) -> Rle:
    """Bring a mask from the frame of a window into that of its image."""
    return move_mask(rle, -window.top, -window.left, height, width)


def touches_seam(rle: Rle, window: Region, height: int, width: int) -> bool:
    """Return whether a mask of a window reaches an edge behind which the image goes on.

    Args:
        rle: the mask in the window's frame, with at least one pixel.
        window: where it lies in the image.
        height: of the image.
        width: of the image.
    """
    left, top, right, bottom = compute_box(rle).astype(int).tolist()
    wide, high = window.right - window.left, window.bottom - window.top
    is_low = (left == 0 < window.left) or (top == 0 < window.top)
    is_high = (right == wide and window.right < width) or (bottom == high and window.bottom < height)
    return bool(is_low or is_high)


def cut_tile(image: AnnotatedImage, window: Region, objects_N: NDArray[np.int64]) -> AnnotatedImage:
    """Take a tile of an image and some of its objects, cut at the tile's edges; each must have a pixel there."""
    if window == Region(0, 0, image.height, image.width):
        return image.select(np.isin(np.arange(len(image)), objects_N))
    masks = tuple(see_mask(image.masks[index], window) for index in objects_N.tolist())
    return AnnotatedImage(
        image_id=f"{image.image_id} at {window.left},{window.top}",
        path=image.path,
        height=window.bottom - window.top,
        width=window.right - window.left,
        masks=masks,
        boxes_N4=np.array([compute_box(mask) for mask in masks], dtype=np.float32).reshape(-1, 4),
        labels_N=image.labels_N[objects_N],
        object_ids=tuple(image.object_ids[index] for index in objects_N.tolist()),
        exif_transpose=image.exif_transpose,
        window=window,
    )


@dataclass(frozen=True, slots=True, eq=False)
class TiledImages(LazyImages):
    """The tiles of some images that objects were assigned to, each object to one; made when they are asked for.

    Attributes:
        whole: the images, each with an object at least.
        tile_ends_I: int64, where the tiles of each image end among all tiles.
        windows_T4: int64, top, left, bottom and right.
        object_ends_T: int64, where the objects of each tile end among those of all tiles.
        objects_M: int64, the object's place in its image.
        cut_objects: how many objects no tile holds whole.
    """

    whole: Sequence[AnnotatedImage]
    tile_ends_I: NDArray[np.int64]
    windows_T4: NDArray[np.int64]
    object_ends_T: NDArray[np.int64]
    objects_M: NDArray[np.int64]
    cut_objects: int

    @classmethod
    def cut(cls, images: Sequence[AnnotatedImage], tiling: Tiling) -> "TiledImages":
        """Assign the objects of all images, none of which may be without one, to tiles."""
        windows: list[tuple[int, int, int, int]] = []
        tile_counts, object_counts, objects, cut_objects = [], [], [np.zeros(0, np.int64)], 0
        for image in images:
            choice = assign_objects(image, tiling)
            cut_objects += int((~choice.is_whole_N).sum())
            before = len(windows)
            for window, members in choice.group():
                windows.append((window.top, window.left, window.bottom, window.right))
                object_counts.append(len(members))
                objects.append(members)
            tile_counts.append(len(windows) - before)
        return cls(
            whole=images,
            tile_ends_I=np.cumsum(tile_counts, dtype=np.int64),
            windows_T4=np.array(windows, dtype=np.int64).reshape(-1, 4),
            object_ends_T=np.cumsum(object_counts, dtype=np.int64),
            objects_M=np.concatenate(objects),
            cut_objects=cut_objects,
        )

    def __len__(self) -> int:
        return len(self.windows_T4)

    @overload  # what follows is one function
    def __getitem__(self, index: int) -> AnnotatedImage: ...
    @overload
    def __getitem__(self, index: slice) -> list[AnnotatedImage]: ...
    def __getitem__(self, index: int | slice) -> AnnotatedImage | list[AnnotatedImage]:
        """Make a tile, or a range of them."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        tile = range(len(self))[index]
        image = self.whole[int(np.searchsorted(self.tile_ends_I, tile, side="right"))]
        return cut_tile(image, self._get_window(tile), self._get_objects(tile))

    @property
    def object_counts(self) -> NDArray[np.int64]:
        """Count the objects of each tile: int64."""
        counts: NDArray[np.int64] = np.diff(self.object_ends_T, prepend=0)
        return counts

    @property
    def places(self) -> list[ImagePlace]:
        """List where the pixels of each tile come from; of one that is all of its image, the image's own."""
        places = []
        for row, image in enumerate(self.whole):
            places += [image.locate(self._get_window(tile)) for tile in self._list_tiles(row)]
        return places

    def cut_image(self, row: int) -> tuple[AnnotatedImage, list[tuple[AnnotatedImage, NDArray[np.int64]]]]:
        """Make an image and its tiles, each with the places of its objects in the image."""
        image = self.whole[row]
        chosen = [(self._get_window(tile), self._get_objects(tile)) for tile in self._list_tiles(row)]
        return image, [(cut_tile(image, window, objects_N), objects_N) for window, objects_N in chosen]

    def _list_tiles(self, row: int) -> range:
        return range(int(self.tile_ends_I[row - 1]) if row else 0, int(self.tile_ends_I[row]))

    def _get_window(self, tile: int) -> Region:
        return Region(*self.windows_T4[tile].tolist())

    def _get_objects(self, tile: int) -> NDArray[np.int64]:
        return self.objects_M[int(self.object_ends_T[tile - 1]) if tile else 0 : int(self.object_ends_T[tile])]
