"""The model behind the page: an image is encoded when it opens, every click is answered by the decoder.

An answer is a function of the image and of the steps taken so far (points and a box, in order), and of nothing else:
whoever asks again, after an undo, in another window or after a restart, gets the same mask. A click alone may mean several
things and has three masks; which of them is meant is part of the step. What was answered before is remembered.

All coordinates are pixels of the image as it is shown, x before y. A point names a pixel by its index; a box is the outer
edges of its pixels.
"""

import io
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from cachetools import LRUCache, cachedmethod
from numpy.typing import NDArray
from PIL import Image

from vpexp.data.annotations import Region, Rle
from vpexp.data.image_files import ImageFileError
from vpexp.data.image_source import SourceImage
from vpexp.data.images import open_image, read_image, read_image_header
from vpexp.data.masks import compute_area
from vpexp.data.prompts import Prompts
from vpexp.data.tiles import Tiling
from vpexp.inference.instances import find_instances
from vpexp.inference.predictor import ImageEmbedding, Prediction, Predictor
from vpexp.inference.segment import FoundMask

REMEMBERED = 64  # answers; each holds the low-resolution logits, 256 kB for a model of 1024 px
MASKS = (1, 2, 3)  # of a point alone, as the model numbers its mask tokens
MOST_STEPS = 200  # far more than anybody clicks; it bounds what one request may cost
MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
"""Formats that every browser shows."""

SHOWN_ALIKE = ("RGB", "L")  # of other modes the model drops alpha, stretches values, or converts colours in its own way
QUALITY = 95


class StepError(ValueError):
    """Steps that make no sense; the message is one line."""


@dataclass(frozen=True, slots=True)
class Point:
    """A click: this pixel lies inside the object, or outside of it.

    Attributes:
        mask: which of the three masks of this point alone is meant, 1 to 3, as the model numbers them; None: the one that
            the model is asked for by its own rule. It counts where the point is the first step.
    """

    x: int
    y: int
    inside: bool
    mask: int | None = None


@dataclass(frozen=True, slots=True)
class Box:
    """A box around the object."""

    left: float
    top: float
    right: float
    bottom: float


Step = Point | Box


Steps = tuple[Step, ...]


def parse_steps(content: Any, height: int, width: int) -> Steps:
    """Read steps as the page sends them: ``[{"point": [x, y], "inside": true, "mask": 2}, {"box": [x0, y0, x1, y1]}]``.

    ``inside`` and ``mask`` may be left out.

    Args:
        content: parsed JSON.
        height: rows of the image.
        width: columns of the image.

    Raises:
        StepError: what is wrong with them.
    """
    if not isinstance(content, list) or not content:
        raise StepError("steps must be a list of points and a box")
    if len(content) > MOST_STEPS:
        raise StepError(f"{len(content)} steps are more than {MOST_STEPS}")
    steps = tuple(_parse_step(entry, height, width) for entry in content)
    if sum(isinstance(step, Box) for step in steps) > 1:
        raise StepError("an object has one box at most")
    return steps


def _parse_step(entry: Any, height: int, width: int) -> Step:
    if isinstance(entry, dict) and "point" in entry:
        x, y = (math.floor(value) for value in _read_numbers(entry["point"], 2))
        if not (0 <= x < width and 0 <= y < height):
            raise StepError(f"point ({x}, {y}) lies outside of the image of {width} x {height} pixels")
        mask = entry.get("mask")
        if mask is not None and (isinstance(mask, bool) or mask not in MASKS):
            raise StepError(f"mask must be one of {', '.join(map(str, MASKS))}: which of a point's three is meant")
        return Point(x, y, entry.get("inside", True) is True, None if mask is None else int(mask))
    if isinstance(entry, dict) and "box" in entry:
        x0, y0, x1, y1 = _read_numbers(entry["box"], 4)
        left, right = np.clip(sorted((x0, x1)), 0, width).tolist()
        top, bottom = np.clip(sorted((y0, y1)), 0, height).tolist()
        if right - left < 1 or bottom - top < 1:
            raise StepError("a box must hold at least one pixel of the image")
        return Box(left, top, right, bottom)
    raise StepError("a step is a point or a box")


def _read_numbers(values: Any, count: int) -> list[float]:
    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9

    if not isinstance(values, list) or len(values) != count or not all(is_number(value) for value in values):
        raise StepError(f"expected {count} numbers")
    return [float(value) for value in values]


def build_arguments(steps: Sequence[Step]) -> dict[str, Any]:
    """Build what ``Predictor.decode`` takes for one object: ``points`` and ``point_labels``, ``boxes``, or all."""
    points = [step for step in steps if isinstance(step, Point)]
    boxes = [[step.left, step.top, step.right, step.bottom] for step in steps if isinstance(step, Box)]
    arguments: dict[str, Any] = {}
    if points:
        arguments["points"] = np.array([[(point.x, point.y) for point in points]], dtype=np.float32)
        arguments["point_labels"] = np.array([[float(point.inside) for point in points]], dtype=np.float32)
    if boxes:
        arguments["boxes"] = np.array(boxes, dtype=np.float32)
    return arguments


def describe_steps(steps: Sequence[Step]) -> dict[str, Any]:
    """Return which prompt gave a mask, as ``stage=predict`` does: ``box``, ``points`` and ``point_labels``.

    With ``mask`` where one of the three masks of the first point was chosen.
    """
    points = [step for step in steps if isinstance(step, Point)]
    prompt: dict[str, Any] = {}
    for step in steps:
        if isinstance(step, Box):
            prompt["box"] = [step.left, step.top, step.right, step.bottom]
    if points:
        prompt["points"] = [[point.x, point.y] for point in points]
        prompt["point_labels"] = [int(point.inside) for point in points]
    if isinstance(steps[0], Point) and steps[0].mask is not None:
        prompt["mask"] = steps[0].mask
    return prompt


@dataclass(frozen=True, slots=True)
class Answer:
    """The mask of one object so far.

    Attributes:
        rle: the mask; it may be empty.
        iou: its predicted IoU.
        low_res_hw: float32, the logits that the next step refines.
        scores: of a point alone: the predicted IoU of each of its three masks; else none.
        choice: which of the three it is, 1 to 3; 0: none of them.
    """

    rle: Rle
    iou: float
    low_res_hw: NDArray[np.float32]
    scores: tuple[float, ...] = ()
    choice: int = 0

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
        self._predictor = predictor
        self._tiling = tiling
        self._min_score = min_score
        self._embeddings: LRUCache[Any, ImageEmbedding] = LRUCache(kept)
        self._answers: LRUCache[Any, Answer] = LRUCache(REMEMBERED)
        self._waiting = threading.Condition()  # for the same image or answer, that somebody else has asked for
        self._opened: dict[int, str] = {}  # what the file of an image was when a page opened it
        self._encoding = threading.Lock()
        self._decoding = threading.Lock()
        self._finding = threading.Lock()

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
        stamp = read_stamp(self.images[index].path)
        self._opened.setdefault(index, stamp)
        return self._encode_file(index, stamp)

    @cachedmethod(attrgetter("_embeddings"), condition=attrgetter("_waiting"))
    def _encode_file(self, index: int, stamp: str) -> ImageEmbedding:
        del stamp
        with self._encoding:
            return self._predictor.embed(read_image(self.images[index].path))

    def segment(self, index: int, steps: Steps) -> Answer:
        """Answer the steps taken on one object: each is given the mask before it as ``mask_input``.

        Raises:
            ImageFileError: the image cannot be read.
        """
        embedding, stamp = self.encode(index), read_stamp(self.images[index].path)
        answer: Answer | None = None
        for count in range(1, len(steps) + 1):
            answer = self._decode(embedding, steps[:count], answer, place=(index, stamp))
        assert answer is not None
        return answer

    @property
    def can_find(self) -> bool:
        """Whether the model finds objects by itself."""
        return self._predictor.instances is not None

    def find(self, index: int) -> tuple[Prompts, list[FoundMask]]:
        """Find and name the objects of an image, where the model can; clicks are answered meanwhile.

        Returns:
            Prompts, and the masks with their classes, best first.

        Raises:
            ImageFileError: the image cannot be read.
        """
        decoder: Any = _SharedDecoder(self._predictor, self._decoding)
        with self._finding:
            image_HW3 = read_image(self.images[index].path)

            def embed(part_hw3: NDArray[np.uint8], _: Region) -> ImageEmbedding:
                if part_hw3.shape == image_HW3.shape:
                    return self.encode(index)
                with self._encoding:
                    return self._predictor.embed(part_hw3)

            prompts, found = find_instances(decoder, image_HW3, self._tiling, min_score=self._min_score, embed=embed)
        return prompts, found.masks

    @cachedmethod(
        attrgetter("_answers"), key=lambda _, __, steps, ___, place: (place, steps), condition=attrgetter("_waiting")
    )
    def _decode(
        self, embedding: ImageEmbedding, steps: Steps, before: Answer | None, *, place: tuple[int, str]
    ) -> Answer:
        del place
        with self._decoding:
            if before is None:
                return self._decode_afresh(embedding, steps)
            earlier_1hw = before.low_res_hw[np.newaxis]
            return _build_answer(self._predictor.decode(embedding, **build_arguments(steps), mask_input=earlier_1hw))

    def _decode_afresh(self, embedding: ImageEmbedding, steps: Steps) -> Answer:
        """Decode steps without a mask before them; of a point alone all three masks, of which one is the answer."""
        first, arguments = steps[0], build_arguments(steps)
        if len(steps) > 1 or isinstance(first, Box):
            return _build_answer(self._predictor.decode(embedding, **arguments))
        three = self._predictor.decode(embedding, **arguments, multimask=True)
        scores = tuple(three.iou[0].tolist())
        if first.mask is None and self._predictor.multimask == "never":
            return replace(_build_answer(self._predictor.decode(embedding, **arguments)), scores=scores)
        place = int(np.argmax(scores)) if first.mask is None else MASKS.index(first.mask)
        return Answer(
            next(islice(three.encode_masks(), place, None)),
            scores[place],
            three.low_res[0, place],
            scores,
            MASKS[place],
        )


class _SharedDecoder:
    """A predictor whose decoder is free for others between any two chunks of prompts."""

    def __init__(self, predictor: Predictor, decoding: threading.Lock) -> None:
        self._predictor = predictor
        self._decoding = decoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self._predictor, name)

    def decode_prompts(self, *given: Any, **named: Any) -> Prediction:
        with self._decoding:
            return self._predictor.decode_prompts(*given, **named)


def _build_answer(prediction: Prediction) -> Answer:
    return Answer(next(iter(prediction.encode_masks())), float(prediction.iou[0]), prediction.low_res[0])


class PictureChangedError(Exception):
    """Another picture lies where the one was that is labelled."""


def read_stamp(path: Path) -> str:
    """Read what changes with the content of a file.

    Raises:
        ImageFileError: it is not there.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ImageFileError(path, error.strerror or "cannot be read") from error
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"


def read_size(path: Path) -> tuple[int, int]:
    """Read the (height, width) of an image as it is shown.

    Raises:
        ImageFileError: it cannot be read.
    """
    return read_image_header(path).transposed_size


def build_picture(path: Path) -> tuple[bytes, str]:
    """Build what a browser is sent: the file itself where the browser shows it as the model sees it, else a JPEG.

    Returns:
        The content and its media type.

    Raises:
        ImageFileError: the image cannot be read.
    """
    media_type = _find_media_type(path)
    if media_type is not None:
        return path.read_bytes(), media_type
    content = io.BytesIO()
    Image.fromarray(read_image(path)).save(content, "JPEG", quality=QUALITY, subsampling=0)
    return content.getvalue(), MEDIA_TYPES["JPEG"]


def _find_media_type(path: Path) -> str | None:
    """Find the media type of a file that can be sent as it is; None where it cannot."""
    header = read_image_header(path)
    with open_image(path) as file:
        picture = file.picture
        if picture is None or header.orientation != 1 or header.remarks:
            return None
        is_alike = picture.mode in SHOWN_ALIKE and "transparency" not in picture.info
        return MEDIA_TYPES.get(file.format) if is_alike else None
