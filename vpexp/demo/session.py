"""The model behind the page: an image is encoded when it opens, every click is answered by the decoder.

An answer is a function of the model, of the image and of the steps taken so far (points and a box, in order), and of nothing
else: whoever asks again, after an undo, in another window or after a restart, gets the same mask. A click alone may mean several
things and has three masks; which of them is meant is part of the step. What was answered before is remembered, also when
another model has been taken up since, so that what a page shows is what it keeps.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from operator import attrgetter
from typing import Any

import numpy as np
from cachetools import LRUCache, cachedmethod
from numpy.typing import NDArray

from vpexp.data.annotations import Region, Rle
from vpexp.data.image_source import SourceImage
from vpexp.data.images import read_image
from vpexp.data.masks import compute_area
from vpexp.data.prompts import Prompts
from vpexp.data.tiles import Tiling
from vpexp.demo.pictures import PictureChangedError, read_stamp
from vpexp.demo.steps import MASKS, Point, Steps, build_arguments
from vpexp.demo.turns import Turns, build_helper
from vpexp.inference.instances import find_instances
from vpexp.inference.predictor import ImageEmbedding, Prediction, Predictor, join_predictions
from vpexp.inference.segment import FoundMask

PIXELS_AT_ONCE = 1024 * 1024
"""Pixels of the model's input of the prompts that are decoded ahead between two clicks: one prompt at 1024 px. On a CPU more of them
are no faster."""
REMEMBERED = 64  # answers; each holds the low-resolution logits, 256 kB for a model of 1024 px


class ModelChangedError(Exception):
    """The mask that a page shows is of a model that has been replaced, and is not remembered any more."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that answers.

    Attributes:
        predictor: any backend.
        version: how many were taken up before it.
    """

    predictor: Predictor
    version: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The mask of one object so far.

    Attributes:
        rle: the mask; it may be empty.
        iou: its predicted IoU.
        low_res_hw: float32, the logits that the next step refines.
        scores: of a point alone: the predicted IoU of each of its three masks; else none.
        choice: which of the three it is, 1 to 3; 0: none of them.
        version: of the model that gave it.
    """

    rle: Rle
    iou: float
    low_res_hw: NDArray[np.float32]
    scores: tuple[float, ...] = ()
    choice: int = 0
    version: int = 0

    @property
    def area(self) -> int:
        """Count the pixels of the mask."""
        return compute_area(self.rle)


class LabelSession:
    """Encodes images and decodes steps for any number of pages at once.

    One call of the encoder runs at a time, and one of the decoder, and a click does not wait for the image that another page
    opens. What is done ahead of a page (the next image, what is found in one, the order) has the decoder for a few prompts at a time,
    and lets the clicks go first that came meanwhile.

    Args:
        predictor: any backend.
        images: those of the source.
        kept: how many embeddings are kept; the one that was not used for longest goes first.
        tiling: how images are cut where the model finds objects by itself; None: they are not.
        min_score: lowest score of what it finds; None: the model's own.
    """

    def __init__(
        self,
        predictor: Predictor,
        images: Sequence[SourceImage],
        *,
        kept: int,
        tiling: Tiling | None = None,
        min_score: float | None = None,
    ) -> None:
        self.images = images
        self.model = Model(predictor, 0)
        self._tiling = tiling
        self._min_score = min_score
        self._embeddings: LRUCache[Any, ImageEmbedding] = LRUCache(kept)
        self._answers: LRUCache[Any, Answer] = LRUCache(REMEMBERED)
        self._waiting = threading.Condition()  # for the same image or answer, that somebody else has asked for
        self._opened: dict[int, str] = {}  # what the file of an image was when a page opened it
        self._encoding, self._decoding = Turns(), Turns()
        self._helper = build_helper("ahead")
        self._finding = threading.Lock()
        self.asked = time.monotonic()  # when a page asked for anything last
        self.last_opened: int | None = None

    def open(self, index: int, *, ahead: bool = False) -> str:
        """Note what the file of an image is now, as a page shows it, or will show it next (``ahead``), and return that."""
        self.asked = time.monotonic()
        self._opened[index] = read_stamp(self.images[index].path)
        if not ahead:
            self.last_opened = index
        return self._opened[index]

    def check(self, index: int, stamp: str | None) -> None:
        """Check that the file of an image is what the page shows that asks: ``stamp``, or what was opened last.

        Raises:
            PictureChangedError: it was exchanged; clicks on one picture are no mask of another.
            ImageFileError: it is not there any more.
        """
        self.asked = time.monotonic()
        now = read_stamp(self.images[index].path)
        if now != (stamp or self._opened.setdefault(index, now)):
            raise PictureChangedError(f"{self.images[index].name} was exchanged since it was opened: open it again")

    def take_up(self, predictor: Predictor) -> None:
        """Answer with another model from now on; its encoder is the same, so that embeddings stay."""
        self.model = Model(predictor, self.model.version + 1)

    def encode(self, index: int, *, ahead: bool = False) -> ImageEmbedding:
        """Encode an image, unless its embedding is still there; ``ahead``: no page shows it yet.

        Raises:
            ImageFileError: the image cannot be read.
        """
        stamp = read_stamp(self.images[index].path)
        self._opened.setdefault(index, stamp)
        return self._encode_file(index, stamp, ahead=ahead)

    @cachedmethod(
        attrgetter("_embeddings"), key=lambda _, index, stamp, **__: (index, stamp), condition=attrgetter("_waiting")
    )
    def _encode_file(self, index: int, stamp: str, *, ahead: bool) -> ImageEmbedding:
        del stamp
        image_HW3 = read_image(self.images[index].path)
        return self._embed_ahead(image_HW3) if ahead else self._embed(image_HW3)

    def _embed(self, image_HW3: NDArray[np.uint8], *, ahead: bool = False) -> ImageEmbedding:
        with self._encoding.take(ahead=ahead):
            return self.model.predictor.embed(image_HW3)

    def _embed_ahead(self, image_HW3: NDArray[np.uint8]) -> ImageEmbedding:
        return self._helper.submit(self._embed, image_HW3, ahead=True).result()

    def glance(self, index: int) -> ImageEmbedding:
        """Encode an image that no page shows: its embedding takes nobody's place in memory.

        Raises:
            ImageFileError: the image cannot be read.
        """
        with self._waiting:
            known = self._embeddings.get((index, read_stamp(self.images[index].path)))
        return known if known is not None else self._embed_ahead(read_image(self.images[index].path))

    def segment(self, index: int, steps: Steps, version: int | None = None) -> Answer:
        """Answer the steps taken on one object: each is given the mask before it as ``mask_input``.

        Args:
            index: of the image.
            steps: in their order.
            version: of the model whose answer is meant; None: the present one's.

        Raises:
            ImageFileError: the image cannot be read.
            ModelChangedError: that model has been replaced, and its answer is not remembered.
        """
        model, stamp = self.model, read_stamp(self.images[index].path)
        if version is not None and version != model.version:
            with self._waiting:
                known = self._answers.get(((index, stamp), steps, version))
            if known is None:
                raise ModelChangedError("the model has learnt since: look at the new mask, and keep it again")
            return known
        embedding = self.encode(index)
        answer: Answer | None = None
        for count in range(1, len(steps) + 1):
            answer = self._decode(model, embedding, steps[:count], answer, place=(index, stamp))
        assert answer is not None
        return answer

    @property
    def can_find(self) -> bool:
        """Whether the model finds objects by itself."""
        return self.model.predictor.instances is not None

    @property
    def has_min_score(self) -> bool:
        """Whether the lowest score of what is found was configured."""
        return self._min_score is not None

    def find_threshold(self, model: Model) -> float:
        """Find the lowest score of what a model finds: as configured, or the model's own."""
        if self._min_score is not None:
            return self._min_score
        return model.predictor.instances.threshold if model.predictor.instances else 0.0

    def find(
        self, index: int, model: Model | None = None, min_score: float | None = None
    ) -> tuple[Prompts, list[FoundMask]]:
        """Find and name the objects of an image, where the model can; clicks are answered meanwhile.

        Args:
            index: of the image.
            model: which finds; None: the present one.
            min_score: lowest score; None: see ``find_threshold``.

        Returns:
            Prompts, and the masks with their classes, best first.

        Raises:
            ImageFileError: the image cannot be read.
        """
        model = model or self.model
        predictor, min_score = model.predictor, self.find_threshold(model) if min_score is None else min_score
        decoder: Any = _SharedDecoder(predictor, self._decoding)
        with self._finding:
            image_HW3 = read_image(self.images[index].path)

            def embed(part_hw3: NDArray[np.uint8], _: Region) -> ImageEmbedding:
                return self.glance(index) if part_hw3.shape == image_HW3.shape else self._embed_ahead(part_hw3)

            prompts, found = find_instances(decoder, image_HW3, self._tiling, min_score=min_score, embed=embed)
        return prompts, found.masks

    @cachedmethod(
        attrgetter("_answers"),
        key=lambda _, model, __, steps, ___, place: (place, steps, model.version),
        condition=attrgetter("_waiting"),
    )
    def _decode(
        self, model: Model, embedding: ImageEmbedding, steps: Steps, before: Answer | None, *, place: tuple[int, str]
    ) -> Answer:
        del place
        with self._decoding.take():
            if before is None:
                answer = self._decode_afresh(model.predictor, embedding, steps)
            else:
                earlier_1hw = before.low_res_hw[np.newaxis]
                arguments = build_arguments(steps)
                answer = _build_answer(model.predictor.decode(embedding, **arguments, mask_input=earlier_1hw))
        return replace(answer, version=model.version)

    def _decode_afresh(self, predictor: Predictor, embedding: ImageEmbedding, steps: Steps) -> Answer:
        """Decode steps without a mask before them; of a point alone all three masks, of which one is the answer."""
        first, arguments = steps[0], build_arguments(steps)
        if len(steps) > 1 or not isinstance(first, Point):
            return _build_answer(predictor.decode(embedding, **arguments))
        three = predictor.decode(embedding, **arguments, multimask=True)
        scores = tuple(three.iou[0].tolist())
        if first.mask is None and predictor.multimask == "never":
            return replace(_build_answer(predictor.decode(embedding, **arguments)), scores=scores)
        place = int(np.argmax(scores)) if first.mask is None else MASKS.index(first.mask)
        return Answer(
            next(islice(three.encode_masks(), place, None)),
            scores[place],
            three.low_res[0, place],
            scores,
            MASKS[place],
        )


class _SharedDecoder:
    """A predictor whose decoder is free for others after every few prompts."""

    def __init__(self, predictor: Predictor, decoding: Turns) -> None:
        self._predictor = predictor
        self._decoding = decoding
        self._most = max(1, PIXELS_AT_ONCE // predictor.image_size**2)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._predictor, name)

    def decode_prompts(self, embedding: ImageEmbedding, prompts: Prompts, **asked: Any) -> Prediction:
        """As of ``Predictor``."""
        parts = []
        for start in range(0, max(1, len(prompts)), self._most):
            with self._decoding.take(ahead=True):
                part = prompts.select(slice(start, start + self._most))
                parts.append(self._predictor.decode_prompts(embedding, part, **asked))
        return join_predictions(parts)


def _build_answer(prediction: Prediction) -> Answer:
    return Answer(next(iter(prediction.encode_masks())), float(prediction.iou[0]), prediction.low_res[0])
