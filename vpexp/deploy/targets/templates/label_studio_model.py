"""A Label Studio ML backend: clicks and boxes of the page become a brush mask. Written by vpexp."""

from functools import lru_cache
from typing import Any
from uuid import uuid4

import numpy as np
from label_studio_ml.model import LabelStudioMLBase
from label_studio_sdk.converter import brush
from model_handler import ModelHandler
from PIL import Image, ImageOps

MODEL = ModelHandler()
IMAGES_KEPT = 16


@lru_cache(maxsize=IMAGES_KEPT)
def embed(file: str) -> tuple[Any, tuple[int, int]]:
    """Encode an image as viewers show it; returns the embedding, and width and height."""
    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened)
    return MODEL.embed(image), image.size


class SegmentAnything(LabelStudioMLBase):  # type: ignore[misc]  # the library has no types
    """Answers smart points and rectangles of an image."""

    def setup(self) -> None:
        """Name the model."""
        self.set("model_version", MODEL.version)

    def predict(self, tasks: list[dict[str, Any]], context: dict[str, Any] | None = None, **_: Any) -> list[Any]:
        """Answer what was clicked and drawn on one image; without it there is nothing to answer."""
        marks = (context or {}).get("result")
        if not marks:
            return []
        from_name, to_name, key = self.get_first_tag_occurence("BrushLabels", "Image")
        file = self.get_local_path(tasks[0]["data"][key], task_id=tasks[0].get("id"))
        embedding, size = embed(str(file))
        points, labels = read_marks(marks, size)
        mask, score = MODEL.segment(embedding, size, points, labels)
        last = marks[-1]
        result = {
            "id": str(uuid4())[:8],
            "from_name": from_name,
            "to_name": to_name,
            "original_width": size[0],
            "original_height": size[1],
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": brush.mask2rle(mask.astype(np.uint8) * 255),
                "brushlabels": last["value"][last["type"]],
            },
            "score": score,
            "type": "brushlabels",
            "readonly": False,
        }
        return [{"result": [result], "model_version": MODEL.version, "score": score}]


def read_marks(marks: list[dict[str, Any]], size: tuple[int, int]) -> tuple[list[list[float]], list[int]]:
    """Read points and boxes, in percent of the image, as points in pixels with labels."""
    points: list[list[float]] = []
    labels: list[int] = []
    for mark in marks:
        value, scale = mark["value"], np.array(size) / 100
        corner = np.array([value["x"], value["y"]]) * scale
        if mark["type"] == "rectanglelabels":
            points += [corner.tolist(), (corner + np.array([value["width"], value["height"]]) * scale).tolist()]
            labels += [2, 3]
        else:
            points.append(corner.tolist())
            labels.append(int(mark.get("is_positive", 1)))
    return points, labels
