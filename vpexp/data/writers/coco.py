"""COCO: ``annotations/instances_<split>.json`` and ``images/<split>/``.

Written here and not by Datumaro, which turns every mask into polygons between the centres of its pixels, without holes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vpexp.data.annotations import SCORE_DIGITS, Rle
from vpexp.data.masks import compute_area, compute_box, decode_rle, rasterize_polygons, rle_to_json
from vpexp.data.polygons import trace_contours
from vpexp.data.writers.images import LabelledImage, LabelledObject, group_by_split, place_images
from vpexp.files import write_lines

POLYGON, RLE = "polygon", "rle"


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


def build_annotation(one: LabelledObject, *, shape: str) -> dict[str, Any]:
    """Build what COCO says of a mask: ``segmentation area bbox iscrowd``, and ``score`` where it was predicted."""
    left, top, right, bottom = compute_box(one.mask).tolist()
    entry: dict[str, Any] = {
        "segmentation": (trace_polygons(one.mask) if shape == POLYGON else None) or rle_to_json(one.mask),
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
