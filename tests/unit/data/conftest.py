import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vpexp.data.folder import Folder
from vpexp.data.ledger import SkipLedger
from vpexp.data.readers.base import Subset


def save_image(path, width=20, height=10, mode="RGB", **options):
    """Write an image of noise; the suffix says the format."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def save_mask(path, values, palette=None):
    """Write a mask image: grey, or with a palette given as a flat list."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, dtype=np.uint8))
    if palette is not None:
        image = image.convert("L")
        image.putpalette(palette)
    image.save(path)
    return path


def save_json(path, content):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


SQUARE = [[2, 2, 8, 2, 8, 8, 2, 8]]
"""A polygon of 6 x 6 pixels inside an image of 20 x 10."""


class CocoBuilder:
    """One COCO file in the making."""

    def __init__(self, root):
        self.root = Path(root)
        self.content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cell"}]}

    def image(self, file_name="a.png", *, image_id=None, width=20, height=10, save=True, folder="images", **fields):
        if save:
            save_image(self.root / folder / file_name, width, height)
        image_id = len(self.content["images"]) + 1 if image_id is None else image_id
        entry = {"id": image_id, "file_name": file_name, "width": width, "height": height}
        self.content["images"].append({**entry, **fields})
        return image_id

    def object(self, segmentation=SQUARE, *, image_id=1, category_id=1, drop=(), **fields):
        entry = {
            "id": len(self.content["annotations"]) + 1,
            "image_id": image_id,
            "category_id": category_id,
            "segmentation": segmentation,
            "bbox": [2, 2, 6, 6],
            "area": 36,
            "iscrowd": 0,
            **fields,
        }
        self.content["annotations"].append({key: value for key, value in entry.items() if key not in drop})

    def save(self, name="annotations/instances_train.json"):
        save_json(self.root / name, self.content)
        return self.root


@pytest.fixture
def coco(tmp_path):
    return CocoBuilder(tmp_path)


@pytest.fixture
def read_subset():
    """Read one subset of a folder with a reader; returns it with its ledger."""

    def read(build_reader, root, name="train", **options) -> tuple[Subset, SkipLedger]:
        ledger = SkipLedger(**options)
        return build_reader(Folder(root)).read_subset(name, ledger), ledger

    return read
