"""What the model proposes to keep of an image: what it finds, less what is kept already and what was rejected.

Nothing of it is written. What was found is remembered by image and model; what was rejected as long as the server runs.

Legend: K proposals, M masks that they are compared with.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from cachetools import LRUCache, cachedmethod
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from vpexp.data.annotations import Rle
from vpexp.data.masks import compute_area, compute_overlap
from vpexp.demo.pictures import read_stamp
from vpexp.demo.session import LabelSession, Model
from vpexp.demo.store import SAME_OBJECT, LabelStore, NewMask
from vpexp.inference.coco_results import describe_prompt

REMEMBERED = 256  # images whose proposals are held
DOUBTFUL = 0.5
"""Share of the lowest score of what is found at once, from which it is proposed: the page's slider begins there."""
COVERED = 0.8
"""Share of the pixels of a proposal in kept masks of its label, above which it is of an object that is kept."""
REJECTED = 0.8
"""IoU with what was rejected above which a proposal is the same again."""


@dataclass(frozen=True, slots=True)
class Proposed:
    """What is proposed for an image.

    Attributes:
        masks: best first.
        threshold: the score from which the model counts what it finds.
        version: of the model.
    """

    masks: list[NewMask]
    threshold: float
    version: int


class Proposals:
    """Proposes masks.

    Args:
        session: finds them.
        store: what is kept.
    """

    def __init__(self, session: LabelSession, store: LabelStore) -> None:
        self._session = session
        self._store = store
        self._found: LRUCache[object, list[NewMask]] = LRUCache(REMEMBERED)
        self._waiting = threading.Condition()
        self._rejected: dict[str, list[Rle]] = {}

    def propose(self, index: int) -> Proposed:
        """Propose masks of an image, none that is covered by kept ones.

        Raises:
            ImageFileError: the image cannot be read.
        """
        model = self._session.model
        found = self.find(index, model)
        if not found:
            return Proposed([], self._session.find_threshold(model), model.version)
        name, size = self._session.images[index].name, found[0].rle["size"]
        labels = {number: str(entry["name"]) for number, entry in self._store.labels.categories.items()}
        kept = [(labels[m.entry["category_id"]], rle) for m, rle in self._store.list_rles(name, *size) if rle]
        is_free_K = ~_is_covered(found, kept) & ~(_compute_overlaps(found, self._rejected.get(name, [])) > REJECTED)
        masks = [mask for mask, is_free in zip(found, is_free_K.tolist(), strict=True) if is_free]
        return Proposed(masks, self._session.find_threshold(model), model.version)

    def find(self, index: int, model: Model) -> list[NewMask]:
        """Find all that a model would propose, kept or not; best first."""
        return self._find(index, read_stamp(self._session.images[index].path), model)

    @cachedmethod(
        attrgetter("_found"),
        key=lambda _, index, stamp, model: (index, stamp, model.version),
        condition=attrgetter("_waiting"),
    )
    def _find(self, index: int, stamp: str, model: Model) -> list[NewMask]:
        del stamp
        lowest = DOUBTFUL * self._session.find_threshold(model)
        prompts, found = self._session.find(index, model, lowest)
        masks = []
        for one in found:
            prompt = describe_prompt(prompts, one.prompt)
            del prompt["index"]
            masks.append(NewMask(str(one.label), one.rle, one.score, prompt))
        return masks

    def reject(self, index: int, rle: Rle) -> None:
        """Propose a mask no more."""
        self._rejected.setdefault(self._session.images[index].name, []).append(rle)

    def take_back(self, index: int, rle: Rle) -> None:
        """Propose a mask again that was rejected."""
        name = self._session.images[index].name
        self._rejected[name] = [other for other in self._rejected.get(name, []) if other != rle]


def _compute_overlaps(masks: Sequence[NewMask], others: Sequence[Rle]) -> NDArray[np.float64]:
    """Compute the highest IoU of each mask with any of the others: [K]."""
    if not others:
        return np.zeros(len(masks))
    ious_KM: NDArray[np.float64] = coco_mask.iou([mask.rle for mask in masks], list(others), [0] * len(others))
    highest_K: NDArray[np.float64] = ious_KM.max(axis=1)
    return highest_K


def _is_covered(masks: Sequence[NewMask], kept: Sequence[tuple[str, Rle]]) -> NDArray[np.bool_]:
    """Find the masks that are of an object that is kept: the same, or nearly all of it under kept masks of its label: [K]."""
    covered_K = _compute_overlaps(masks, [rle for _, rle in kept]) > SAME_OBJECT
    merged = {
        label: coco_mask.merge([rle for other, rle in kept if other == label]) for label in {name for name, _ in kept}
    }
    for place, mask in enumerate(masks):
        if mask.label in merged and not covered_K[place]:
            covered_K[place] = compute_overlap(mask.rle, merged[mask.label]) > COVERED * compute_area(mask.rle)
    return covered_K
