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
from vpexp.evaluation.instances import NONE, find_best_threshold, match
from vpexp.inference.coco_results import describe_prompt

REMEMBERED = 256  # images whose proposals are held
DOUBTFUL = 0.25
"""Share of the score from which the model counts what it finds, from which masks are proposed where the page's slider is pulled down."""
JUDGED = 5
"""Images that were labelled last, by whose proposals the slider's value is chosen."""
FEWEST = 20
"""Proposals on them, at least; of fewer nothing is chosen."""
COVERED = 0.8
"""Share of the pixels of a proposal in kept masks of its label, above which it is of an object that is kept."""
REJECTED = 0.8
"""IoU with what was rejected above which a proposal is the same again."""


@dataclass(frozen=True, slots=True)
class Proposed:
    """What is proposed for an image.

    Attributes:
        masks: best first.
        threshold: the score from which they are shown at first, see ``Proposals.choose_threshold``.
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
        self._first: dict[str, list[NewMask]] = {}  # of images on which nothing was kept then

    def propose(self, index: int) -> Proposed:
        """Propose masks of an image, none that is covered by kept ones.

        Raises:
            ImageFileError: the image cannot be read.
        """
        model, name = self._session.model, self._session.images[index].name
        found = self.find(index, model)
        if name not in self._store.labels.labelled:
            self._first.setdefault(name, found)
        threshold = self.choose_threshold(model, name)
        if not found:
            return Proposed([], threshold, model.version)
        size = found[0].rle["size"]
        labels = {number: str(entry["name"]) for number, entry in self._store.labels.categories.items()}
        kept = [(labels[m.entry["category_id"]], rle) for m, rle in self._store.list_rles(name, *size) if rle]
        is_free_K = ~_is_covered(found, kept) & ~(_compute_overlaps(found, self._rejected.get(name, [])) > REJECTED)
        masks = [mask for mask, is_free in zip(found, is_free_K.tolist(), strict=True) if is_free]
        return Proposed(masks, threshold, model.version)

    def choose_threshold(self, model: Model, name: str) -> float:
        """Choose the score from which proposals are shown at first: the best one for the images that were labelled last.

        It has the best F1 of what was proposed for them while nothing was kept on them, against what is kept: no model is judged by
        what it has learnt. As configured, or the model's own, where that is too little.

        Args:
            model: whose proposals are shown.
            name: of their image, which may not be labelled whole yet.
        """
        usual, labelled = self._session.find_threshold(model), set(self._store.labels.labelled) - {name}
        judged = [one for one in self._first if one in labelled][-JUDGED:]
        if self._session.has_min_score or sum(len(self._first[one]) for one in judged) < FEWEST:
            return usual
        pairs = [self._judge(one) for one in judged]
        objects = sum(count for *_, count in pairs)
        scores_M, hits_M = (np.concatenate([pair[place] for pair in pairs]) for place in (0, 1))
        order_M = np.argsort(-scores_M, kind="stable")
        hits_M = np.cumsum(hits_M[order_M])
        precision_M, recall_M = hits_M / np.arange(1, len(hits_M) + 1), hits_M / max(1, objects)
        best = find_best_threshold(np.stack([scores_M[order_M], precision_M, recall_M], axis=1))
        return max(best, DOUBTFUL * usual)

    def _judge(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.bool_], int]:
        """Compare what was first proposed for an image with what is kept: scores [K], hits [K], and how many masks are kept."""
        found = self._first[name]
        kept = [rle for _, rle in self._store.list_rles(name, *found[0].rle["size"]) if rle] if found else []
        scores_K = np.array([mask.score or 0.0 for mask in found])
        if not kept:
            return scores_K, np.zeros(len(found), np.bool_), 0
        ious_KN: NDArray[np.float64] = coco_mask.iou([mask.rle for mask in found], kept, [0] * len(kept))
        return scores_K, match(ious_KN, SAME_OBJECT) != NONE, len(kept)

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
