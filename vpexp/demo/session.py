"""The model behind the page: an image is encoded when it opens, every click is answered by the decoder.

An answer is a function of the image and of the steps taken so far, and of nothing else: whoever asks again, after an undo,
in another window or after a restart, gets the same mask. What was answered before is remembered.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpexp.data.images import read_image
from vpexp.data.masks import compute_area, decode_rle
from vpexp.data.sources import SourceImage
from vpexp.data.types import Rle
from vpexp.demo.pictures import PictureChangedError, read_stamp
from vpexp.demo.steps import Step, Steps, build_arguments, count_agreements
from vpexp.inference.predictor import ImageEmbedding, Prediction, Predictor

ALWAYS, NEVER = "always", "never"
REMEMBERED = 64  # answers; each holds the low-resolution logits, 256 kB for a model of 1024 px


@dataclass(frozen=True, slots=True)
class Answer:
    """The mask of one object so far.

    Attributes:
        rle: the mask; it may be empty.
        iou: its predicted IoU.
        low_res_hw: float32, the logits that the next step refines.
    """

    rle: Rle
    iou: float
    low_res_hw: NDArray[np.float32]

    @property
    def area(self) -> int:
        """Count the pixels of the mask."""
        return compute_area(self.rle)


class LabelSession:
    """Encodes images and decodes steps for any number of pages at once.

    The encoder and the decoder have a lock each: one call of either runs at a time, and a click does not wait for the
    image that another page opens.

    Args:
        predictor: any backend.
        images: those of the source.
        kept: how many embeddings are kept; the one that was not used for longest goes first.
        refine: whether a step is given the mask before it as ``mask_input``: ``always``, ``never``, or ``auto``: of the
            masks with it, without it, and the one before, that which agrees with most steps, and of equals the one that
            the model scores highest. Models that were not trained to refine get worse by it.
    """

    def __init__(self, predictor: Predictor, images: Sequence[SourceImage], *, kept: int, refine: str) -> None:
        self.images = images
        self._predictor = predictor
        self._refine = refine
        self._embeddings = _Memory(kept)
        self._answers = _Memory(REMEMBERED)
        self._opened: dict[int, str] = {}  # what the file of an image was when a page opened it
        self._encoding = threading.Lock()
        self._decoding = threading.Lock()

    def open(self, index: int) -> str:
        """Note what the file of an image is now, as a page shows it, and return that."""
        self._opened[index] = read_stamp(self.images[index].path)
        return self._opened[index]

    def check(self, index: int, stamp: str | None) -> None:
        """Check that the file of an image is what the page shows that asks: ``stamp``, or what was opened last.

        Raises:
            PictureChangedError: it was exchanged; clicks on one picture are no mask of another.
            ImageFileError: it is not there any more.
        """
        now = read_stamp(self.images[index].path)
        if now != (stamp or self._opened.setdefault(index, now)):
            raise PictureChangedError(f"{self.images[index].name} was exchanged since it was opened: open it again")

    def encode(self, index: int) -> ImageEmbedding:
        """Encode an image, unless its embedding is still there.

        Raises:
            ImageFileError: the image cannot be read.
        """
        key = (index, read_stamp(self.images[index].path))
        self._opened.setdefault(*key)
        embedding: ImageEmbedding | None = self._embeddings.get(key)
        if embedding is not None:
            return embedding
        with self._encoding:  # whoever asked for the same image meanwhile finds it done
            encoded: ImageEmbedding = self._embeddings.get(key, self._encode_file, index)
        return encoded

    def _encode_file(self, index: int) -> ImageEmbedding:
        return self._predictor.embed(read_image(self.images[index].path))

    def segment(self, index: int, steps: Steps) -> Answer:
        """Answer the steps taken on one object.

        Raises:
            ImageFileError: the image cannot be read.
        """
        embedding, stamp = self.encode(index), read_stamp(self.images[index].path)
        first = len(steps) if self._refine == NEVER else 1
        answer: Answer | None = None
        for count in range(first, len(steps) + 1):
            taken = steps[:count]
            key = (index, stamp, taken)
            answer = self._answers.get(key, self._decode, embedding, taken, answer)
        assert answer is not None
        return answer

    def _decode(self, embedding: ImageEmbedding, steps: Steps, before: Answer | None) -> Answer:
        with self._decoding:
            if before is None:
                return _build_answer(self._predictor.decode(embedding, **build_arguments(steps)))
            refined = self._predictor.decode(
                embedding, **build_arguments(steps), mask_input=before.low_res_hw[np.newaxis]
            )
            if self._refine == ALWAYS:
                return _build_answer(refined)
            afresh = self._predictor.decode(embedding, **build_arguments(steps))
        answers = (_build_answer(refined), _build_answer(afresh), before)
        return max(answers, key=lambda answer: _rank(answer, steps))


def _rank(answer: Answer, steps: Sequence[Step]) -> tuple[int, float]:
    return count_agreements(steps, decode_rle(answer.rle)), answer.iou


def _build_answer(prediction: Prediction) -> Answer:
    return Answer(next(iter(prediction.encode_masks())), float(prediction.iou[0]), prediction.low_res[0])


class _Memory:
    """The values used last, by key; safe to use from several threads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Any, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any, make: Callable[..., Any] | None = None, *arguments: Any) -> Any:
        """Find a value; where there is none, make it and keep it, or return None."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        if make is None:
            return None
        value = make(*arguments)
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._size:
                self._values.popitem(last=False)
        return value
