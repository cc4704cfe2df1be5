"""Images for the peer: from a COCO data set, or drawn. Runs in the peer's interpreter, so it imports nothing of vpexp."""

import json
import math
import random
import sys
from pathlib import Path

CORNERS = 40

Polygon = list[float]  # x, y, x, y, ... in pixels of the image
Scene = tuple[Path, list[Polygon]]


def read_scenes(data: Path, count: int) -> list[Scene]:
    """Read the first images of a COCO data set whose objects are single polygons."""
    content = json.loads((data / "annotations" / "instances_train.json").read_text())
    outlines: dict[int, list[Polygon]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        outlines[annotation["image_id"]] += annotation["segmentation"][:1]
    scenes = [(data / "images" / image["file_name"], outlines[image["id"]]) for image in content["images"]]
    if len(scenes) < count:
        sys.exit(f"{data}: a batch of {count} needs as many images, found {len(scenes)}")
    return scenes[:count]


def draw_scenes(folder: Path, count: int, *, size_hw: tuple[int, int], objects: int) -> list[Scene]:
    """Draw images of a size in pixels into a folder: ellipses on noise."""
    import numpy as np
    from PIL import Image, ImageDraw

    scenes = []
    for index in range(count):
        noise_HW3 = np.random.default_rng(index).normal(110, 12, (*size_hw, 3))
        image = Image.fromarray(noise_HW3.clip(0, 255).astype(np.uint8))
        outlines = draw_outlines(random.Random(index), size_hw, objects)  # noqa: S311
        for outline in outlines:
            ImageDraw.Draw(image).polygon(outline, fill=(200, 120, 60))
        image.save(folder / f"{index}.jpg", quality=90)
        scenes.append((folder / f"{index}.jpg", outlines))
    return scenes


def draw_outlines(chance: random.Random, size_hw: tuple[int, int], objects: int) -> list[Polygon]:
    """Draw ellipses that lie within the image, 4 to 12 % of its height in radius where they are 12."""
    height, width = size_hw
    crowding = max(1.0, objects / 12) ** 0.5
    outlines = []
    for _ in range(objects):
        radii = [chance.uniform(0.04, 0.12) * height / crowding for _ in range(2)]
        x, y = chance.uniform(radii[0], width - radii[0]), chance.uniform(radii[1], height - radii[1])
        angles = [2 * math.pi * corner / CORNERS for corner in range(CORNERS)]
        corners = [(x + radii[0] * math.cos(angle), y + radii[1] * math.sin(angle)) for angle in angles]
        outlines.append([value for corner in corners for value in corner])
    return outlines
