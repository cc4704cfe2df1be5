"""Object masks as COCO run-length encodings, and the one rasteriser of polygons (pycocotools).

A run-length encoding goes down column after column. All that it holds are the places where a mask's value changes along
that path; they are found by comparing each row with the one above it, in the rows and columns where the mask has pixels,
so compressing a mask costs what its outline costs, and not the size of its image. Reference: ``rleEncode`` and
``rleToString`` of pycocotools, whose bytes these are.

Legend: H W original size in pixels, E places where the value changes, K masks, R runs, P parts of runs, each in one column.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from vpexp.data.annotations import Region, Rle, read_number, read_whole

_ROWS_AND_COLUMNS = 2
_FAR_OUTSIDE = 10
"""Polygons may leave the image; a point further away than this many image sizes is a mistake (and would make the
rasteriser, which walks along every edge, take gigabytes)."""

_SHORTEST_POLYGON = 6
_BITS = 5
_LONGEST_NUMBER = 12  # characters: 60 bits
_FIRST_DIFFERENCE = 3
"""From this run on, the string holds how much longer a run is than the one before the last."""

_FEWEST_PIXELS_A_CHANGE = 50
"""Where values change more often than this, walking through all pixels is faster than ordering the changes."""


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


class MaskError(ValueError):
    """A polygon or run-length encoding that is no mask; the message is the reason, in a few words."""


def encode_mask(mask_HW: NDArray[np.bool_], region: Region | None = None) -> Rle:
    """Compress a mask.

    Args:
        mask_HW: bool or 0/1, [H, W].
        region: where its pixels lie, if that is known; there may be none outside of it.
    """
    region = find_region(mask_HW) if region is None else region
    height, width = mask_HW.shape
    return encode_part(np.asarray(mask_HW[region.slices], dtype=np.bool_), region, height, width)


def decode_rle(rle: Rle) -> NDArray[np.bool_]:
    """Expand a compressed mask to bool [H, W]."""
    return np.asarray(coco_mask.decode(rle), dtype=np.bool_)


def move_mask(rle: Rle, top: int, left: int, height: int, width: int) -> Rle:
    """Look at a mask in another frame, without expanding it; what lies outside of the frame is cut off.

    A window of an image is the frame (window.top, window.left, ...), and the image is the frame (-window.top, -window.left,
    ...) of what was found in the window.

    Args:
        rle: the mask.
        top: the row of the mask's image that the frame begins at; it may be negative.
        left: the same of columns.
        height: rows of the frame.
        width: columns of the frame.
    """
    rows = int(rle["size"][0])
    ends = np.cumsum(_parse_compressed_counts(rle["counts"]), dtype=np.int64)
    starts_R, ends_R = ends[:-1:2], ends[1::2]  # of the runs of object pixels
    starts_R, ends_R = starts_R[ends_R > starts_R], ends_R[ends_R > starts_R]
    first_R, last_R = starts_R // rows, (ends_R - 1) // rows
    pieces_R = last_R - first_R + 1  # a run may go on in the columns that follow
    run_P = np.repeat(np.arange(len(pieces_R)), pieces_R)
    column_P = first_R[run_P] + np.arange(len(run_P)) - np.repeat(np.cumsum(pieces_R) - pieces_R, pieces_R)
    upper_P = np.maximum(np.maximum(starts_R[run_P] - column_P * rows, 0) - top, 0)
    lower_P = np.minimum(np.minimum(ends_R[run_P] - column_P * rows, rows) - top, height)
    column_P -= left
    inside_P = (upper_P < lower_P) & (column_P >= 0) & (column_P < width)
    places = np.stack([upper_P, lower_P], axis=1)[inside_P] + column_P[inside_P, None] * height
    return compress_changes(places.ravel(), height, width)


def compute_area(rle: Rle) -> int:
    """Count the pixels of a mask without expanding it."""
    return int(coco_mask.area(rle))


def compute_overlap(first: Rle, second: Rle) -> int:
    """Count the pixels that two masks of one size share, without expanding either."""
    return int(coco_mask.area(coco_mask.merge([first, second], intersect=True)))


def compute_box(rle: Rle) -> NDArray[np.float32]:
    """Compute the tight bounds of a mask without expanding it.

    Returns:
        float32 [4], xyxy, ``[x0, y0, x1, y1)`` in pixels; zeros for an empty mask.
    """
    x, y, width, height = coco_mask.toBbox(rle)
    return np.array([x, y, x + width, y + height], dtype=np.float32)


def encode_label_map(label_map_HW: NDArray[np.integer]) -> dict[int, Rle]:
    """Compress every value of a label map as one mask, in one pass over the pixels.

    Args:
        label_map_HW: Integers, [H, W].

    Returns:
        Value -> mask of the pixels that have it, ordered by value.
    """
    height, width = label_map_HW.shape
    column_major = label_map_HW.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(column_major[1:] != column_major[:-1]) + 1])
    ends = np.append(starts[1:], column_major.size)
    run_values = column_major[starts]
    order = np.argsort(run_values, kind="stable")
    values, first = np.unique(run_values[order], return_index=True)
    masks = {}
    for value, runs in zip(values, np.split(order, first[1:]), strict=True):
        counts = np.empty(2 * len(runs), dtype=np.int64)
        counts[0::2] = starts[runs] - np.concatenate([[0], ends[runs][:-1]])
        counts[1::2] = ends[runs] - starts[runs]
        rest = column_major.size - ends[runs][-1]
        masks[int(value)] = _compress(counts.tolist() + ([int(rest)] if rest else []), height, width)
    return masks


def polygons_to_rle(polygons: Sequence[Sequence[float]], height: int, width: int, *, decimals: int | None = 2) -> Rle:
    """Rasterise the parts of one object into one mask, exactly as pycocotools does.

    Args:
        polygons: One flat list ``[x0, y0, x1, y1, ...]`` a part, pixels of the original image; what lies outside the
            image is cut off.
        height: Rows of the image.
        width: Columns of the image.
        decimals: Points are rounded to so many decimals first, because libraries that keep them as float32 would
            otherwise move pixels; None takes them as they are.

    Raises:
        MaskError: No part, a part with an odd number of values or fewer than three points, values that are no finite
            numbers, or points absurdly far outside the image.
    """
    parts = [check_polygon(polygon, height, width) for polygon in polygons]
    if not parts:
        raise MaskError("polygon without points")
    if decimals is not None:
        parts = [np.round(part, decimals) for part in parts]
    return rasterize_polygons(parts, height, width)


def rasterize_polygons(parts: Sequence[NDArray[np.float64]], height: int, width: int) -> Rle:
    """Rasterise parts that ``check_polygon`` found good into one mask."""
    return merge_rles(coco_mask.frPyObjects([part.tolist() for part in parts], height, width))


def merge_rles(parts: Sequence[Rle]) -> Rle:
    """Unite masks of one size into one: a pixel of any of them is a pixel of it."""
    merged: Rle = coco_mask.merge(list(parts)) if len(parts) > 1 else parts[0]
    return merged


def check_polygon(polygon: Sequence[float], height: int, width: int) -> NDArray[np.float64]:
    """Check one polygon part and return its values as float64.

    Raises:
        MaskError: See `polygons_to_rle`.
    """
    try:
        is_plain = not isinstance(polygon, list) or not any(isinstance(value, str | bool) for value in polygon)
        numbers = polygon if is_plain else [math.nan if (n := read_number(v)) is None else n for v in polygon]
        values = np.asarray(numbers, dtype=np.float64)
    except (OverflowError, TypeError, ValueError) as error:
        raise MaskError("polygon with values that are no numbers") from error
    if values.ndim != 1 or not np.isfinite(values).all():
        raise MaskError("polygon with values that are no numbers")
    if values.size % 2:
        raise MaskError("polygon with an odd number of values")
    if values.size < _SHORTEST_POLYGON:
        raise MaskError("polygon with fewer than 3 points")
    if np.abs(values).max() > _FAR_OUTSIDE * (height + width) + 1000:
        raise MaskError("polygon far outside the image")
    return values


def check_rle(rle: Any, height: int, width: int) -> Rle:
    """Check a run-length encoding as annotation files hold it, and return it compressed.

    Both forms are taken: a list of counts, and COCO's compressed string.

    Raises:
        MaskError: Not an encoding, of another size than the image, or damaged.
    """
    if not isinstance(rle, dict) or "counts" not in rle or "size" not in rle:
        raise MaskError("segmentation of unknown kind")
    size = [read_whole(side) for side in rle["size"]] if isinstance(rle["size"], list | tuple) else []
    if len(size) != _ROWS_AND_COLUMNS or None in size:
        raise MaskError("damaged RLE")
    if size != [height, width]:
        raise MaskError("RLE size differs from the image's")
    counts = _read_counts(rle["counts"])
    if any(count < 0 for count in counts) or sum(counts) != height * width:
        raise MaskError("damaged RLE")
    return _compress(_merge_empty_runs(counts), height, width)


def rle_to_json(rle: Rle) -> dict[str, Any]:
    """Write a compressed mask as JSON holds it: the counts are text."""
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def _read_counts(counts: Any) -> list[int]:
    """Read the run lengths of either form of an encoding."""
    if isinstance(counts, list):
        runs = [count for count in map(read_whole, counts) if count is not None]
        if len(runs) < len(counts):
            raise MaskError("damaged RLE")
        return runs
    if isinstance(counts, str):
        try:
            counts = counts.encode("ascii")
        except UnicodeEncodeError as error:
            raise MaskError("damaged RLE") from error
    if not isinstance(counts, bytes):
        raise MaskError("damaged RLE")
    parsed: list[int] = _parse_compressed_counts(counts).tolist()
    return parsed


def _parse_compressed_counts(counts: bytes) -> NDArray[np.int64]:
    """Parse COCO's compressed counts, see ``_write_runs``.

    Done here, and not by pycocotools, because its parser trusts the string and reads past the end of a damaged one.
    """
    characters = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((characters & 0x20) == 0)
    starts = np.concatenate([[0], ends + 1])
    lengths = np.diff(starts)
    if (characters < 0).any() or (characters >= 64).any() or starts[-1] != len(characters):
        raise MaskError("damaged RLE")
    if not lengths.size:
        return lengths
    if lengths.max() > _LONGEST_NUMBER:
        raise MaskError("damaged RLE")
    shifts = _BITS * (np.arange(len(characters)) - np.repeat(starts[:-1], lengths))
    runs: NDArray[np.int64] = np.add.reduceat((characters & 0x1F) << shifts, starts[:-1])
    runs -= ((characters[ends] & 0x10) >> 4) << (_BITS * lengths)  # of negative numbers
    for start in (1, 2):
        runs[start::2] = np.cumsum(runs[start::2])
    return runs


def _merge_empty_runs(counts: list[int]) -> list[int]:
    """Join the runs around an empty one, so that the bounds are computed from pixels that exist."""
    if 0 not in counts[1:]:
        return counts
    merged: list[int] = [0]
    for index, count in enumerate(counts):
        if count == 0:
            continue
        if index % 2 == (len(merged) - 1) % 2:
            merged[-1] += count
        else:
            merged.append(count)
    return merged


def _compress(counts: list[int], height: int, width: int) -> Rle:
    rle: Rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return rle


def choose_distinct(masks: Sequence[Rle], scores: Sequence[float], max_iou: float) -> list[int]:
    """Choose masks of different objects: of two whose IoU is above ``max_iou`` only the one that scores better.

    The best is kept first, then the best of what is left; of equals, the one that comes first.

    Returns:
        Places of what is kept, best first.
    """
    left = sorted(range(len(masks)), key=lambda place: -scores[place])
    kept: list[int] = []
    while left:
        best, *left = left
        kept.append(best)
        if left:
            # One row of the matrix at a time: all pairs of a fine grid would take gigabytes.
            overlap_K = coco_mask.iou([masks[place] for place in left], [masks[best]], [0])[:, 0]
            left = [place for place, overlap in zip(left, overlap_K.tolist(), strict=True) if overlap <= max_iou]
    return kept
