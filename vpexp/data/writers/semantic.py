"""Common semantic segmentation: ``<split>/images``, ``<split>/masks`` whose pixels are classes, ``dataset_meta.json``."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vpexp.data.masks import compute_box, decode_rle
from vpexp.data.readers.label_images import META_FILE
from vpexp.data.writers.images import LabelledImage, group_by_split, place_images, prepare_place
from vpexp.data.writers.label_images import number_classes, paint, save_numbers, write_meta

SCORES = ("image", "label", "x0", "y0", "x1", "y1", "score")


def write_semantic(
    folder: Path, images: Sequence[LabelledImage], categories: Sequence[str], *, placing: str
) -> list[str]:
    """Write a data set of class masks; scores, which masks cannot hold, go to ``<split>/scores.csv``.

    Args:
        folder: exists, and is empty.
        images: with objects that share no pixel; those of one class that touch will be read as one.
        categories: names; the first has the pixel value 1.
        placing: see ``place_images``.

    Raises:
        DataError: more classes than a mask has values.
    """
    for split, own in group_by_split(images).items():
        place_images(own, folder / split / "images", placing)
        (folder / split / "masks").mkdir()
        for image in own:
            classes_HW = paint(image, number_classes(image.objects, categories))
            save_numbers(classes_HW, prepare_place(folder / split / "masks", image.name, ".png"))
        write_meta(folder / split / META_FILE, categories)
        _write_scores(folder / split / "scores.csv", own)
    losses = np.sum([_count_losses(image) for image in images], axis=0).tolist()
    losses_described = (
        "objects touch another of their class: class masks make one of them",
        "objects have several parts: class masks make one object of each",
    )
    return [f"{count} {what}" for count, what in zip(losses, losses_described, strict=True) if count]


def _count_losses(image: LabelledImage) -> tuple[int, int]:
    """Count the objects that connected parts of a class mask do not give back: those that touch, those of many parts."""
    from scipy import ndimage  # not needed where an exported model is served

    merged = parted = 0
    for label in {one.label for one in image.objects}:
        masks = [decode_rle(one.mask) for one in image.objects if one.label == label]
        parts_HW, _ = ndimage.label(np.any(masks, axis=0), structure=np.ones((3, 3)))
        claims = [set(np.unique(parts_HW[mask_HW]).tolist()) for mask_HW in masks]
        merged += sum(any(own & other for other in claims[:place]) for place, own in enumerate(claims))
        parted += sum(len(own) > 1 for own in claims)
    return merged, parted


def _write_scores(path: Path, images: Sequence[LabelledImage]) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(SCORES)
        for image in images:
            for one in image.objects:
                rows.writerow([image.name, one.label, *compute_box(one.mask).astype(int).tolist(), one.score])
