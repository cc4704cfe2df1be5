"""Compressing masks as COCO run lengths, at a cost that follows the outline of an object and not the size of its image.

A run-length encoding goes down column after column. All that it holds are the places where a mask's value changes along
that path; they are found by comparing each row with the one above it, in the rows and columns where the mask has pixels.

Legend: H W size of the image, E places where the value changes. Reference: ``rleEncode`` and ``rleToString`` of pycocotools,
whose bytes these are.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from vpexp.data.types import Rle

_BITS = 5
_FIRST_DIFFERENCE = 3
"""From this run on, the string holds how much longer a run is than the one before the last."""

_FEWEST_PIXELS_A_CHANGE = 50
"""Where values change more often than this, walking through all pixels is faster than ordering the changes."""


@dataclass(frozen=True, slots=True)
class Region:
    """A part of an image, in whole pixels, its right and bottom edge left out; nothing where two edges are the same."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Say how to index an array [H, W] with it."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def area(self) -> int:
        """Count its pixels."""
        return (self.bottom - self.top) * (self.right - self.left)


NOWHERE = Region(0, 0, 0, 0)


def find_region(mask_HW: NDArray[np.bool_]) -> Region:
    """Find the tight bounds of a mask: bool [H, W]."""
    rows = np.flatnonzero(mask_HW.any(axis=1))
    if not rows.size:
        return NOWHERE
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask_HW[top:bottom].any(axis=0))
    return Region(top, int(columns[0]), bottom, int(columns[-1]) + 1)


def encode_part(part_hw: NDArray[np.bool_], region: Region, height: int, width: int) -> Rle:
    """Compress a mask of which one part is given, and which has no pixel outside of it.

    Args:
        part_hw: bool, the mask's pixels inside the region.
        region: where the part lies.
        height: H.
        width: W.
    """
    if not region.area:
        return compress_changes(np.zeros(0, dtype=np.int64), height, width)
    part_height, part_width = part_hw.shape
    changes_hw = np.empty((part_height + 1, part_width), dtype=np.bool_)
    changes_hw[0], changes_hw[-1] = part_hw[0], part_hw[-1]
    np.not_equal(part_hw[1:], part_hw[:-1], out=changes_hw[1:-1])
    if np.count_nonzero(changes_hw) * _FEWEST_PIXELS_A_CHANGE > height * width:
        return _encode_noise(part_hw, region, height, width)
    rows_E, columns_E = np.divmod(np.flatnonzero(changes_hw), part_width)
    places_E = (columns_E + region.left) * height + (rows_E + region.top)
    places_E.sort()
    return compress_changes(places_E, height, width)


def _encode_noise(part_hw: NDArray[np.bool_], region: Region, height: int, width: int) -> Rle:
    mask_HW = np.zeros((height, width), dtype=np.uint8, order="F")
    mask_HW[region.slices] = part_hw
    rle: Rle = coco_mask.encode(mask_HW)
    return rle


def encode_region(region: Region, height: int, width: int) -> Rle:
    """Compress the mask of all pixels of a region."""
    if not region.area:
        return compress_changes(np.zeros(0, dtype=np.int64), height, width)
    columns = np.arange(region.left, region.right, dtype=np.int64) * height
    places_E = np.stack([columns + region.top, columns + region.bottom], axis=1).ravel()
    return compress_changes(places_E, height, width)


def compress_changes(places_E: NDArray[np.int64], height: int, width: int) -> Rle:
    """Compress a mask given by the places where its value changes.

    Args:
        places_E: places along the columns in rising order, the first pixel of the image being 0: where the first object
            run begins, where it ends, and so on. A place that occurs twice is an end and the next beginning, and counts
            as none.
        height: H.
        width: W.
    """
    is_twice = places_E[1:] == places_E[:-1]
    if is_twice.any():
        is_single = np.ones(len(places_E), dtype=np.bool_)
        is_single[1:] &= ~is_twice
        is_single[:-1] &= ~is_twice
        places_E = places_E[is_single]
    total = height * width
    end = [] if places_E.size and places_E[-1] == total else [total]
    marks = np.concatenate([[0], places_E, end]).astype(np.int64)
    runs: NDArray[np.int64] = marks[1:] - marks[:-1]
    return {"size": [height, width], "counts": _write_runs(runs)}


def _write_runs(runs: NDArray[np.int64]) -> bytes:
    """Write run lengths as COCO's string: 5 bits a character, low bits first, a sixth bit where more follow."""
    values = runs.copy()
    values[_FIRST_DIFFERENCE:] -= runs[_FIRST_DIFFERENCE - 2 : -2]
    characters: list[NDArray[np.uint8]] = []
    used: list[NDArray[np.bool_]] = []
    goes_on = np.ones(len(values), dtype=np.bool_)
    while goes_on.any():
        low = values & 0x1F
        values >>= _BITS
        used.append(goes_on)
        goes_on = goes_on & np.where(low & 0x10, values != -1, values != 0)
        characters.append((low + (goes_on.astype(np.int64) << _BITS) + 48).astype(np.uint8))
    return np.stack(characters, axis=1)[np.stack(used, axis=1)].tobytes()
