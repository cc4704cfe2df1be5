"""``prompts=grid``: everything in an image, by a grid of single points and the best of the masks that overlap.

Legend: N points.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vpexp.data.prompts import Prompts, prompts_from_points
from vpexp.data.writers.overlap import choose_distinct
from vpexp.inference.segment import FoundMask


def build_grid(height: int, width: int, points_per_side: int) -> Prompts:
    """Build prompts of one point each: the pixels in the middle of the cells of a grid laid over the image.

    Along a side of fewer pixels than points, every pixel is one. Row by row, from the top left.
    """
    xs, ys = (_space_evenly(length, points_per_side) for length in (width, height))
    points_N2 = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
    return prompts_from_points(points_N2.astype(np.float32))


def keep_best(masks: Sequence[FoundMask], max_overlap: float) -> list[FoundMask]:
    """Keep the masks that score best: of two whose IoU is above ``max_overlap`` only the better one.

    The best is kept first, then the best of what is left; of equals, the one whose prompt came first.

    Returns:
        What is kept, best first.
    """
    places = choose_distinct([mask.rle for mask in masks], [mask.score for mask in masks], max_overlap)
    return [masks[place] for place in places]


def _space_evenly(length: int, count: int) -> NDArray[np.int64]:
    """Choose the pixels in the middle of ``count`` equal parts of a side."""
    if count >= length:
        return np.arange(length)
    return ((2 * np.arange(count) + 1) * length) // (2 * count)
