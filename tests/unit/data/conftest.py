import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vpexp.data.folder import Folder
from vpexp.data.readers.base import Subset
from vpexp.data.skipped import SkipCounts


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
    """Read one subset of a folder with a reader; returns it with its skips."""

    def read(build_reader, root, name="train", **options) -> tuple[Subset, SkipCounts]:
        skips = SkipCounts(**options)
        return build_reader(Folder(root)).read_subset(name, skips), skips

    return read


@pytest.fixture
def write_tiff():
    """Write an uncompressed TIFF of any kind by its specification: the reference that no library has had a hand in."""

    def write(path, *pages, order="<", big=False, colour=1, planar=1, extra=(), **tags):
        offset, count, head = ("Q", "Q", 8) if big else ("I", "H", 4)
        mark = b"II" if order == "<" else b"MM"
        out = bytearray(
            mark + struct.pack(order + "HHHQ", 43, 8, 0, 0) if big else mark + struct.pack(order + "HI", 42, 0)
        )
        link = len(out) - head
        for page in pages:
            height, width, *rest = page.shape
            channels = rest[0] if rest else 1
            data = page.astype(page.dtype.newbyteorder(order))
            planes = [data[:, :, c] for c in range(channels)] if planar == 2 else [data]
            strips = []
            for plane in planes:
                strips.append((len(out), plane.nbytes))
                out += plane.tobytes() + bytes(plane.nbytes % 2)
            kind = {"u": 1, "i": 2, "f": 3}[page.dtype.kind]
            entries = {
                256: ("I", [width]),
                257: ("I", [height]),
                258: ("H", [page.dtype.itemsize * 8] * channels),
                259: ("H", [1]),
                262: ("H", [colour]),
                273: (offset, [place for place, _ in strips]),
                277: ("H", [channels]),
                278: ("I", [height]),
                279: (offset, [size for _, size in strips]),
                284: ("H", [planar]),
                339: ("H", [kind] * channels),
            }
            entries |= {338: ("H", list(extra))} if extra else {}
            entries |= {int(tag.removeprefix("tag")): ("H", [value]) for tag, value in tags.items()}
            packed = b""
            for tag, (letter, values) in sorted(entries.items()):
                raw = struct.pack(order + letter * len(values), *values)
                if len(raw) > head:
                    place = len(out)
                    out += raw
                    raw = struct.pack(order + offset, place)
                packed += struct.pack(order + "HH" + offset, tag, {"H": 3, "I": 4, "Q": 16}[letter], len(values))
                packed += raw.ljust(head, b"\0")
            out[link : link + head] = struct.pack(order + offset, len(out))
            out += struct.pack(order + count, len(entries)) + packed
            link = len(out)
            out += bytes(head)
        Path(path).write_bytes(out)
        return Path(path)

    return write
