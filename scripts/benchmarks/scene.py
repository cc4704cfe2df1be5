"""Images to measure on: drawn like photographs, in size, noise and what a JPEG of them costs, with objects as polygons.

Shapes: H W size of an image in pixels.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

JPEG_QUALITY = 90
CORNERS = 40
CATEGORIES = ("round", "long")
OCTAVES = (4, 16, 64, 256)  # cells of the noise along the longer side


def write_scenes(
    root: Path, images: Mapping[str, int], *, size_hw: tuple[int, int] = (1365, 2048), objects: int = 12, seed: int = 0
) -> Path:
    """Draw a COCO data set.

    Args:
        root: its folder; ``annotations`` and ``images`` are made below it.
        images: how many of each split.
        size_hw: height and width of every image, pixels.
        objects: on every image.
        seed: same seed, same data set.
    """
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    for place, (split, count) in enumerate(images.items()):
        content: dict[str, Any] = {
            "licenses": [],
            "info": {},
            "categories": [{"id": i, "name": name} for i, name in enumerate(CATEGORIES, start=1)],
            "images": [],
            "annotations": [],
        }
        for index in range(count):
            rng = np.random.default_rng([seed, place, index])
            name = f"{split}_{index:04d}.jpg"
            polygons = _draw_outlines(rng, size_hw, objects)
            _paint(rng, size_hw, polygons).save(root / "images" / name, quality=JPEG_QUALITY)
            content["images"].append({"id": index + 1, "file_name": name, "height": size_hw[0], "width": size_hw[1]})
            content["annotations"] += [
                _annotate(len(content["annotations"]) + number, index + 1, polygon, size_hw)
                for number, polygon in enumerate(polygons, start=1)
            ]
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def _draw_outlines(rng: np.random.Generator, size_hw: tuple[int, int], objects: int) -> list[NDArray[np.float64]]:
    """Draw wavy outlines [CORNERS, 2] (x, y); about as large as bunches of grapes on a photograph."""
    height, width = size_hw
    crowding = max(1.0, objects / 12) ** 0.5
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    outlines = []
    for _ in range(objects):
        radius = rng.uniform(0.04, 0.12) * height / crowding
        wave = 1 + sum(rng.uniform(0, 0.12) * np.sin(k * angles + rng.uniform(0, 6.3)) for k in (2, 3, 5))
        stretch = rng.uniform(0.6, 1.4)
        centre = rng.uniform(2 * radius, np.array([width, height]) - 2 * radius)
        points = np.stack([np.cos(angles) * stretch, np.sin(angles) / stretch], axis=1) * (radius * wave)[:, None]
        outlines.append(np.clip(np.round(centre + points, 2), 0, [width, height]))
    return outlines


def _paint(rng: np.random.Generator, size_hw: tuple[int, int], polygons: list[NDArray[np.float64]]) -> Image.Image:
    height, width = size_hw
    canvas = Image.new("RGB", (width, height), tuple(int(value) for value in rng.integers(60, 140, 3)))
    draw = ImageDraw.Draw(canvas)
    for polygon in polygons:
        colour = tuple(int(value) for value in rng.integers(30, 220, 3))
        draw.polygon([(float(x), float(y)) for x, y in polygon], fill=colour)
    light_HW = sum(_draw_noise(rng, cells, size_hw) * 40 / octave for octave, cells in enumerate(OCTAVES, start=1))
    grain_HW3 = rng.normal(0, 4, (height, width, 3))
    pixels_HW3 = np.asarray(canvas, dtype=np.float32) + np.asarray(light_HW)[..., None] + grain_HW3
    return Image.fromarray(pixels_HW3.clip(0, 255).astype(np.uint8))


def _draw_noise(rng: np.random.Generator, cells: int, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Draw smooth noise [H, W] in -1..1."""
    height, width = size_hw
    rows = max(2, round(cells * height / width))
    coarse = Image.fromarray(rng.uniform(-1, 1, (rows, max(2, cells))).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def _annotate(number: int, image_id: int, polygon: NDArray[np.float64], size_hw: tuple[int, int]) -> dict[str, Any]:
    flat = [float(value) for value in polygon.ravel()]
    (rle,) = coco_mask.frPyObjects([flat], *size_hw)
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 1 + number % len(CATEGORIES),
        "segmentation": [flat],
        "area": float(coco_mask.area(rle)),
        "bbox": [float(value) for value in coco_mask.toBbox(rle)],
        "iscrowd": 0,
    }
