"""From masks to polygons: the outlines of a mask along the edges of its pixels.

Shapes: H W size of the mask, V corners of a polygon.
"""

import numpy as np
from numpy.typing import NDArray

Corner = tuple[int, int]


def trace_contours(mask_HW: NDArray[np.bool_]) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Trace the outlines of a mask; pixels that touch only at a corner belong to different parts.

    Args:
        mask_HW: bool.

    Returns:
        The outer outlines and those of holes, each int64 [V, 2], (x, y) in pixels of the image, where pixel (0, 0)
        covers the square from (0, 0) to (1, 1); only corners, no points within straight lines.
    """
    outer: list[NDArray[np.int64]] = []
    holes: list[NDArray[np.int64]] = []
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    if not len(rows):
        return outer, holes
    # objects are small in their images: look only where the mask is
    corner = np.array([columns[0], rows[0]])
    crop = mask_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    for loop in _link_edges(_list_edges(crop)):
        polygon = np.array(loop, np.int64) + corner
        x, y = polygon[:, 0], polygon[:, 1]
        # the inside lies to the right of every edge and y points down: around holes the loop runs the other way
        signed_area = np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)
        (outer if signed_area > 0 else holes).append(polygon)
    return outer, holes


def _list_edges(mask_HW: NDArray[np.bool_]) -> dict[Corner, list[Corner]]:
    """List the straight edges between inside and outside, the inside to their right: start -> ends."""
    padded = np.pad(mask_HW, 1)
    edges: dict[Corner, list[Corner]] = {}
    for along_x in (True, False):
        grid = padded if along_x else padded.T
        before, after = grid[:-1, 1:-1], grid[1:, 1:-1]
        # what has the inside below it runs to the right, what has it above to the left; along y it is the other way
        for where, forward in ((after & ~before, along_x), (before & ~after, not along_x)):
            change = np.diff(np.pad(where, ((0, 0), (1, 1))).astype(np.int8), axis=1)
            lines, lows = np.nonzero(change == 1)
            highs = np.nonzero(change == -1)[1]
            for line, low, high in zip(lines.tolist(), lows.tolist(), highs.tolist(), strict=True):
                first, last = (low, high) if forward else (high, low)
                start, end = ((first, line), (last, line)) if along_x else ((line, first), (line, last))
                edges.setdefault(start, []).append(end)
    return edges


def _link_edges(edges: dict[Corner, list[Corner]]) -> list[list[Corner]]:
    """Link edges to closed loops; empties ``edges``."""
    loops = []
    while edges:
        start, ends = next(iter(edges.items()))
        first = edge = (start, ends[0])
        loop: list[Corner] = []
        # every edge follows exactly one other: the loop is closed when its first edge comes again
        while not loop or edge != first:
            loop.append(edge[1])
            edge = _pop_next(edges, *edge)
        loops.append(loop)
    return loops


def _pop_next(edges: dict[Corner, list[Corner]], start: Corner, corner: Corner) -> tuple[Corner, Corner]:
    """Take the edge that follows an edge; where two pixels touch at the corner, the one that stays at its pixel."""
    ends = edges[corner]
    dx, dy = corner[0] - start[0], corner[1] - start[1]
    # a turn to the right, (-dy, dx), stays at the pixel
    choice = max(range(len(ends)), key=lambda i: (ends[i][0] - corner[0]) * -dy + (ends[i][1] - corner[1]) * dx)
    end = ends.pop(choice)
    if not ends:
        del edges[corner]
    return corner, end
