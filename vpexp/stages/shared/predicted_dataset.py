"""The data set that ``stage=predict`` makes of its masks: ``output.format=coco``."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from vpexp.config.compose import quote_value, quote_word
from vpexp.config.schema import OutputConfig
from vpexp.console import format_count, log_line
from vpexp.data.annotations import Rle
from vpexp.data.masks import choose_distinct, compute_area
from vpexp.data.writers.base import SYMLINK, LabelledImage, LabelledObject, NameGiver, check_target, write_dataset
from vpexp.inference.predict_plan import PredictionPlan, PredictionTask
from vpexp.inference.segment import FoundMask
from vpexp.registry import FORMATS

REPEATED = "repeating a better mask"
COVERED = "covered by better masks"
UNLABELLED = "images without a mask"


class LabelCollector:
    """Collects the masks of images, and writes them as a data set.

    Args:
        settings: the section ``output``.
        folder: where the data set goes unless ``output.folder`` says otherwise.
        plan: what is to be predicted.

    Raises:
        ConfigError, DataError: the data set could not be written there, or in that format.
    """

    def __init__(self, settings: OutputConfig, folder: Path, plan: PredictionPlan) -> None:
        assert settings.format is not None, "null writes no data set"
        self.settings, self._format = settings, FORMATS[settings.format]
        self.folder = Path(settings.folder).expanduser() if settings.folder else folder
        self.images: list[LabelledImage] = []
        self.left_out: Counter[str] = Counter()
        self._categories = plan.categories
        self._names = NameGiver(settings.format)
        check_target(self.folder, settings.format, plan.list_used())

    def add(self, task: PredictionTask, size_HW: tuple[int, int], masks: Sequence[FoundMask]) -> None:
        """Add the masks of an image: those that it had, and those that were found."""
        objects = [] if task.annotated is None else self._list_annotated(task)
        objects += [LabelledObject(mask.rle, str(mask.label), max(mask.score, 0.0)) for mask in masks]
        distinct = drop_repeated(objects, self.settings.max_iou) if self.settings.max_iou < 1 else objects
        self.left_out[REPEATED] += len(objects) - len(distinct)
        cuts = self.settings.overlap == "cut" or not self._format.overlaps
        cut = cut_overlaps(distinct) if cuts else distinct
        self.left_out[COVERED] += len(distinct) - len(cut)
        self.left_out[UNLABELLED] += not cut
        if cut:
            split = task.split or self.settings.split
            name = self._names.choose(task.file_name, split)
            self.images.append(LabelledImage(name, task.image.path, *size_HW, split, tuple(cut)))

    def write(self) -> None:
        """Write the data set, and say where it is and how to train on it."""
        if not self.images:
            log_line(f"no data set is written to {self.folder}: no image has a mask", style="yellow")
            return
        notes = write_dataset(self.folder, self.settings, self.images, self._categories)
        described = self.describe()
        counts = (
            f"{format_count(described['images'], 'image')}, {format_count(described['objects'], 'mask')}, "
            f"{described['predicted']} of them predicted"
        )
        log_line(f"data set: {self.folder} ({self.settings.format}; {counts})")
        left_out = [f"{count} {reason}" for reason, count in self.left_out.items() if count]
        if left_out:
            log_line(f"left out of it: {', '.join(left_out)}")
        if renamed := self._names.renamed:
            old, new = renamed[0]
            notes.append(f"images renamed, because the format needs other names: {len(renamed)} ({old} is {new})")
        for note in notes:
            log_line(note, style="yellow")
        outside = " data.allow_outside=true" if self.settings.images == SYMLINK else ""
        root = quote_word(f"data.root={quote_value(self.folder)}")
        log_line(f"train on it: python -m vpexp stage=train data=auto {root}{outside}")

    def describe(self) -> dict[str, Any]:
        """Describe in numbers what the data set holds."""
        objects = [one for image in self.images for one in image.objects]
        return {
            "folder": str(self.folder),
            "format": self.settings.format,
            "images": len(self.images),
            "objects": len(objects),
            "predicted": sum(one.score is not None for one in objects),
            "left_out": {reason: count for reason, count in self.left_out.items() if count},
        }

    def _list_annotated(self, task: PredictionTask) -> list[LabelledObject]:
        assert task.annotated is not None
        masks, labels_N = task.annotated.masks, task.annotated.labels_N.tolist()
        return [LabelledObject(mask, self._categories[label]) for mask, label in zip(masks, labels_N, strict=True)]


def drop_repeated(objects: Sequence[LabelledObject], max_iou: float) -> list[LabelledObject]:
    """Drop predicted masks of an object that has a better one; all that people annotated stays, and is better than any."""
    given = [one.mask for one in objects if one.score is None]
    found = [place for place, one in enumerate(objects) if one.score is not None]
    if given and found:
        overlap_K = coco_mask.iou([objects[place].mask for place in found], given, [0] * len(given)).max(axis=1)
        found = [place for place, overlap in zip(found, overlap_K.tolist(), strict=True) if overlap <= max_iou]
    kept = choose_distinct(
        [objects[place].mask for place in found], [_rank(objects[place]) for place in found], max_iou
    )
    chosen = {found[place] for place in kept}
    return [one for place, one in enumerate(objects) if one.score is None or place in chosen]


def cut_overlaps(objects: Sequence[LabelledObject]) -> list[LabelledObject]:
    """Give each pixel to one mask: annotated before predicted, then the better score, then the smaller mask.

    Returns:
        What has pixels left, in the order given.
    """
    order = sorted(range(len(objects)), key=lambda place: (-_rank(objects[place]), compute_area(objects[place].mask)))
    taken: Rle | None = None
    cut: dict[int, LabelledObject] = {}
    for place in order:
        mask = objects[place].mask
        if taken is not None:
            mask = _subtract(mask, taken)
        if compute_area(mask):
            cut[place] = replace(objects[place], mask=mask)
            taken = mask if taken is None else coco_mask.merge([taken, mask])
    return [cut[place] for place in sorted(cut)]


def _rank(one: LabelledObject) -> float:
    return math.inf if one.score is None else one.score


def _subtract(mask: Rle, taken: Rle) -> Rle:
    """Take away the pixels of another mask, where there are any."""
    if not compute_area(coco_mask.merge([mask, taken], intersect=True)):
        return mask
    left_HW = coco_mask.decode(mask) & ~coco_mask.decode(taken).astype(bool)
    rest: Rle = coco_mask.encode(np.asfortranarray(left_HW))
    return rest
