"""COCO and Datumaro's own format: annotations as JSON, a file a split, and ``images/<split>/``.

COCO is written here and not by Datumaro, which turns every mask into polygons between the centres of its pixels, without
holes; here polygons are the outlines of a mask along the edges of its pixels.

Shapes: H W size of a mask, V corners of a polygon.
"""

import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpexp.data.annotations import SCORE_DIGITS, Rle
from vpexp.data.masks import compute_area, compute_box, decode_rle, rasterize_polygons, rle_to_json
from vpexp.data.writers.base import LabelledImage, LabelledObject, group_by_split, place_images
from vpexp.files import write_lines

POLYGON, RLE = "polygon", "rle"
Corner = tuple[int, int]


def write_coco(
    folder: Path, images: Sequence[LabelledImage], categories: Sequence[str], *, shape: str, placing: str
) -> list[str]:
    """Write a data set in COCO's layout.

    Args:
        folder: exists, and is empty.
        images: with their objects.
        categories: names; the first has the id 1.
        shape: ``polygon`` (masks with holes, which polygons cannot have, are written as run lengths) or ``rle``.
        placing: see ``place_images``.
    """
    (folder / "annotations").mkdir()
    ids = {name: number for number, name in enumerate(categories, start=1)}
    entries = [{"id": number, "name": name} for name, number in ids.items()]
    for split, own in group_by_split(images).items():
        place_images(own, folder / "images" / split, placing)
        annotations: list[dict[str, Any]] = []
        listed = []
        for number, image in enumerate(own, start=1):
            listed.append({"id": number, "file_name": image.name, "width": image.width, "height": image.height})
            for one in image.objects:
                placed = {"id": len(annotations) + 1, "image_id": number, "category_id": ids[one.label]}
                annotations.append(placed | build_annotation(one, shape=shape))
        content = {"images": listed, "annotations": annotations, "categories": entries}
        write_lines(folder / "annotations" / f"instances_{split}.json", content)
    return []


def build_annotation(one: LabelledObject, *, shape: str, most_parts: float = math.inf) -> dict[str, Any]:
    """Build what COCO says of a mask: ``segmentation area bbox iscrowd``, and ``score`` where it was predicted.

    Args:
        one: the mask.
        shape: ``polygon`` or ``rle``, see ``write_coco``.
        most_parts: masks of more polygons are written as run lengths too.
    """
    polygons = trace_polygons(one.mask) if shape == POLYGON else None
    if polygons and len(polygons) > most_parts:
        polygons = None
    left, top, right, bottom = compute_box(one.mask).tolist()
    entry: dict[str, Any] = {
        "segmentation": polygons or rle_to_json(one.mask),
        "area": compute_area(one.mask),
        "bbox": [left, top, right - left, bottom - top],
        "iscrowd": 0,
    }
    if one.score is not None:
        entry["score"] = round(one.score, SCORE_DIGITS)
    return entry


def trace_polygons(mask: Rle) -> list[list[int]] | None:
    """Trace a mask as COCO's polygons, along the edges of its pixels; None where they do not give the same mask back."""
    outer, holes = trace_contours(decode_rle(mask))
    if holes:
        return None
    height, width = mask["size"]
    again = rasterize_polygons([corners_V2.ravel().astype(float) for corners_V2 in outer], height, width)
    same: bool = again["counts"] == mask["counts"]
    return [corners_V2.ravel().tolist() for corners_V2 in outer] if same else None


def write_datumaro(
    folder: Path, images: Sequence[LabelledImage], categories: Sequence[str], *, placing: str
) -> list[str]:
    """Write a data set in Datumaro's format: ``annotations/<split>.json`` with run lengths, ``images/<split>/``.

    Args:
        folder: exists, and is empty.
        images: with their objects.
        categories: names, in the order of their numbers.
        placing: see ``place_images``.
    """
    from datumaro.components.annotation import AnnotationType, LabelCategories
    from datumaro.components.dataset import Dataset
    from datumaro.components.media import Image

    kinds = {AnnotationType.label: LabelCategories.from_iterable(categories)}
    items = [_build_item(image, categories) for image in images]
    # The files are placed here, because Datumaro opens and checks each image before it copies it.
    Dataset.from_iterable(items, categories=kinds, media_type=Image).export(str(folder), "datumaro", save_media=False)
    for split, own in group_by_split(images).items():
        place_images(own, folder / "images" / split, placing)
    return []


def _build_item(image: LabelledImage, categories: Sequence[str]) -> Any:
    from datumaro.components.annotation import RleMask
    from datumaro.components.dataset_base import DatasetItem
    from datumaro.components.media import Image

    annotations = []
    for number, one in enumerate(image.objects, start=1):
        attributes: dict[str, Any] = {"is_crowd": False}
        if one.score is not None:
            attributes["score"] = round(one.score, SCORE_DIGITS)
        annotations.append(
            RleMask(one.mask, label=categories.index(one.label), id=number, group=number, attributes=attributes)
        )
    media = Image.from_file(path=image.name, size=(image.height, image.width))
    own_id = PurePosixPath(image.name).with_suffix("").as_posix()
    return DatasetItem(id=own_id, subset=image.split, media=media, annotations=annotations)


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
