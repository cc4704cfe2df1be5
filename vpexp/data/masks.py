"""Object masks as COCO run-length encodings, and the one rasteriser of polygons (pycocotools).

Shapes: H W original size in pixels.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from vpexp.data.numbers import read_number, read_whole
from vpexp.data.run_lengths import Region, encode_part, find_region
from vpexp.data.types import Rle

_ROWS_AND_COLUMNS = 2
_FAR_OUTSIDE = 10
"""Polygons may leave the image; a point further away than this many image sizes is a mistake (and would make the
rasteriser, which walks along every edge, take gigabytes)."""
_SHORTEST_POLYGON = 6


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
    return _parse_compressed_counts(counts)


def _parse_compressed_counts(counts: bytes) -> list[int]:
    """Parse COCO's compressed counts: 5 bits a character, low bits first, each run from the third on as a difference.

    Done here, and not by pycocotools, because its parser trusts the string and reads past the end of a damaged one.
    """
    runs: list[int] = []
    value = shift = 0
    for byte in counts:
        chunk = byte - 48
        if not 0 <= chunk < 64:
            raise MaskError("damaged RLE")
        value |= (chunk & 0x1F) << shift
        shift += 5
        if chunk & 0x20:
            continue
        if chunk & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > _ROWS_AND_COLUMNS else value)
        value = shift = 0
    if shift:
        raise MaskError("damaged RLE")
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
