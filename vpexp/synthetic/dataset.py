"""Drawn images on disk, as a COCO data set laid out like Embrapa WGISD.

    <root>/<scene and parameters>/images/train_0000.jpg ...
                                  annotations/instances_{train,val,test}.json
                                  synthetic.json        what it was drawn with; written last

Shapes: H W size of an image in pixels.
"""

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PilImage

from vpexp.config.schema import SyntheticConfig
from vpexp.console import show_progress
from vpexp.data.masks import encode_mask
from vpexp.data.writers.base import LabelledObject
from vpexp.data.writers.json_files import POLYGON, build_annotation
from vpexp.errors import DataError
from vpexp.synthetic import SCENES, Scene

MANIFEST = "synthetic.json"
VERSION = 1
"""Of the drawings: raise it when the same parameters give other files."""
JPEG_QUALITY = 92
MAX_PARTS = 4
"""Objects of more parts are written as run lengths, like those with holes, instead of as polygons."""


def write_synthetic_dataset(root: Path | str, settings: SyntheticConfig) -> Path:
    """Draw a data set below ``root``, or find the one drawn with these parameters before.

    The same parameters give the same bytes, and an image depends on nothing but scene, size, seed, split and its
    own number: more training images change no test image. Every set of parameters has a folder of its own, which
    appears complete or not at all; several processes may ask for it at once. Nothing is ever deleted.

    Args:
        root: folder that holds the drawn data sets; made where it is missing.
        settings: the section ``data.synthetic``; splits of 0 images have no annotation file.

    Returns:
        The folder of the data set, which ``format=coco`` reads.

    Raises:
        DataError: if the folder cannot be written, or is there and was not drawn by vpexp.
    """
    scene, side, seed = settings.scene, settings.image_size, settings.seed
    counts = {"train": settings.train, "val": settings.val, "test": settings.test}
    manifest = {"version": VERSION, "scene": scene, "height": side, "width": side, **counts, "seed": seed}
    name = f"{scene}_v{VERSION}_{side}x{side}_{'-'.join(map(str, counts.values()))}_seed{seed}"
    folder = Path(root) / name
    if _is_complete(folder, manifest):
        return folder
    draft = folder.with_name(f".{name}.{uuid.uuid4().hex}")
    try:
        draft.mkdir(parents=True)
        _write_files(draft, scene, (side, side), counts, seed)
        _write_json(draft / MANIFEST, manifest)
        _publish(draft, folder, manifest)
    except OSError as error:
        raise DataError(f"{folder}: cannot write drawn images there ({error.strerror}): set data.root") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _is_complete(folder: Path, manifest: dict[str, Any]) -> bool:
    """Return whether a folder holds the data set; False if it is not there, DataError if it is someone else's."""
    if not folder.exists():
        return False
    try:
        found = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if found != manifest:
        raise DataError(
            f"{folder}: is there but was not drawn by vpexp ({MANIFEST} missing or different): move it away"
        )
    return True


def _publish(draft: Path, folder: Path, manifest: dict[str, Any]) -> None:
    """Give a finished draft its name, unless another process was first: then its files are the same."""
    try:
        # an empty folder would be replaced silently, any other is refused by the system
        if not folder.exists():
            draft.rename(folder)
    except OSError:
        if not folder.exists():
            raise
    _is_complete(folder, manifest)


def _write_files(folder: Path, scene: str, size: tuple[int, int], counts: dict[str, int], seed: int) -> None:
    """Draw and write images and annotations of all splits."""
    (folder / "images").mkdir()
    (folder / "annotations").mkdir()
    names = [(split, index) for split, count in counts.items() for index in range(count)]
    contents = {split: _start_annotations(scene) for split, count in counts.items() if count}
    for split, index in show_progress(names, f"Drawing {scene} images"):
        # every image has its own stream of random numbers, seeded by its split and number
        stream = np.random.SeedSequence(entropy=seed, spawn_key=(list(counts).index(split), index))
        drawn = SCENES[scene].draw(np.random.default_rng(stream), *size)
        file_name = f"{split}_{index:04d}.jpg"
        PilImage.fromarray(drawn.image_HW3).save(folder / "images" / file_name, quality=JPEG_QUALITY)
        _append_image(contents[split], file_name, drawn)
    for split, content in contents.items():
        _write_json(folder / "annotations" / f"instances_{split}.json", content)


def _start_annotations(scene: str) -> dict[str, Any]:
    """Build the COCO file of a split without images."""
    categories = [
        {"id": number, "name": name, "supercategory": scene}
        for number, name in enumerate(SCENES[scene].categories, start=1)
    ]
    info = {"description": f"{scene}: images drawn by vpexp", "version": str(VERSION)}
    return {"info": info, "images": [], "annotations": [], "categories": categories}


def _append_image(content: dict[str, Any], file_name: str, scene: Scene) -> None:
    """Add an image and its objects to the content of a COCO file; ids count from 1."""
    height, width = scene.image_HW3.shape[:2]
    image_id = len(content["images"]) + 1
    content["images"].append({"id": image_id, "file_name": file_name, "width": width, "height": height})
    for mask_HW, label in zip(scene.masks, scene.labels, strict=True):
        placed = {"id": len(content["annotations"]) + 1, "image_id": image_id, "category_id": label + 1}
        shown = LabelledObject(encode_mask(mask_HW), content["categories"][label]["name"])
        content["annotations"].append(placed | build_annotation(shown, shape=POLYGON, most_parts=MAX_PARTS))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", "utf-8")
