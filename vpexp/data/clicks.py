"""Where a person who corrects a mask would click next: on the largest error.

Legend: h w size of a part of an image that holds both masks.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Click:
    """A click on a pixel.

    Attributes:
        row: of the pixel.
        column: of the pixel.
        is_inside: it says that the pixel belongs to the object; otherwise that it does not.
    """

    row: int
    column: int
    is_inside: bool


def find_next_click(predicted_hw: NDArray[np.bool_], annotated_hw: NDArray[np.bool_]) -> Click | None:
    """Find the centre of the largest error of a mask.

    The errors are the connected components (of pixels that share a side) of what the mask misses and of what it has too much;
    the centre of the largest is its pixel farthest from its outline, so always inside of it. Of errors of one size a missed
    one comes first, and then the one whose first pixel does, in row order. This is the simulated user of Xu et al. 2016
    "Deep interactive object selection"; that of Sofiiuk et al. 2021 (RITM) takes the deepest pixel of all errors instead.

    Args:
        predicted_hw: bool, [h, w]. What lies outside of this part is no error, and its border counts as outline.
        annotated_hw: bool, [h, w].

    Returns:
        None where the masks are equal.
    """
    missed, extra = (
        _find_largest_component(errors_hw) for errors_hw in (annotated_hw & ~predicted_hw, predicted_hw & ~annotated_hw)
    )
    is_inside = missed.size >= extra.size
    largest = missed if is_inside else extra
    if not largest.size:
        return None
    row, column = find_deepest_pixel(largest.part_hw)
    return Click(largest.top + row, largest.left + column, is_inside)


def draw_next_click(predicted_hw: NDArray[np.bool_], annotated_hw: NDArray[np.bool_], draw: float) -> Click | None:
    """Draw a click on an error of a mask, as training does: the rule of RITM's iterative training.

    Of what is missed and what is too much, the one that is deeper somewhere is clicked, at any of its pixels that are more than
    half as deep.

    Args:
        predicted_hw: as for ``find_next_click``.
        annotated_hw: as for ``find_next_click``.
        draw: 0 to 1, chooses among these pixels.

    Returns:
        None where the masks are equal.
    """
    region = _find_bounds(predicted_hw != annotated_hw)
    if region is None:
        return None
    predicted_hw, annotated_hw = predicted_hw[region], annotated_hw[region]
    missed_hw, extra_hw = (_measure_depth(e) for e in (annotated_hw & ~predicted_hw, predicted_hw & ~annotated_hw))
    is_inside = bool(missed_hw.max() >= extra_hw.max())
    depth_hw = missed_hw if is_inside else extra_hw
    rows, columns = np.nonzero(depth_hw > depth_hw.max() / 2)
    chosen = min(int(draw * len(rows)), len(rows) - 1)
    return Click(region[0].start + int(rows[chosen]), region[1].start + int(columns[chosen]), is_inside)


def find_deepest_pixel(mask_hw: NDArray[np.bool_]) -> tuple[int, int]:
    """Find the pixel farthest from the outline of a mask that has one, as row and column; the first in row order wins ties."""
    depth_hw = _measure_depth(mask_hw)
    row, column = np.unravel_index(int(np.argmax(depth_hw)), depth_hw.shape)
    return int(row), int(column)


@dataclass(frozen=True, slots=True)
class _Component:
    """A connected component: its pixels in its bounds, and how many they are."""

    part_hw: NDArray[np.bool_]
    top: int
    left: int
    size: int


def _find_largest_component(mask_hw: NDArray[np.bool_]) -> _Component:
    from scipy import ndimage  # not needed where an exported model is served

    bounds = _find_bounds(mask_hw)
    if bounds is None:
        return _Component(mask_hw, 0, 0, 0)
    labels_hw, count = ndimage.label(mask_hw[bounds])  # numbered in the order of their first pixels
    sizes = np.bincount(labels_hw.ravel(), minlength=count + 1)
    largest = 1 + int(np.argmax(sizes[1:]))
    rows, columns = ndimage.find_objects(labels_hw, max_label=largest)[largest - 1]
    part_hw = labels_hw[rows, columns] == largest
    return _Component(part_hw, bounds[0].start + rows.start, bounds[1].start + columns.start, int(sizes[largest]))


def _find_bounds(mask_hw: NDArray[np.bool_]) -> tuple[slice, slice] | None:
    rows = np.flatnonzero(mask_hw.any(axis=1))
    if not rows.size:
        return None
    columns = np.flatnonzero(mask_hw.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _measure_depth(mask_hw: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Measure how far each pixel of a mask lies from its outline; the border counts as outline."""
    from scipy import ndimage

    depth_hw: NDArray[np.float64] = ndimage.distance_transform_edt(np.pad(mask_hw, 1))[1:-1, 1:-1]
    return depth_hw
