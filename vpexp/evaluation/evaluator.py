"""The one evaluation loop, for torch, ONNX, OpenVINO and INT8 alike.

An image that is cut into tiles is asked tile by tile, and what comes of it is put back: it is measured as a whole image, and its
masks against the whole annotated ones.

Legend: N objects of one image or of one tile, H W original size.
"""

import copy
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import distributed

from vpexp.console import build_progress
from vpexp.data.annotations import AnnotatedImage, Region, Rle
from vpexp.data.batch import EvaluationSample, UnreadableImage
from vpexp.data.masks import encode_region
from vpexp.data.prompts import Prompts
from vpexp.evaluation.average_precision import MaskAveragePrecision
from vpexp.evaluation.click_protocol import Answers, Interaction, OnePrompt, PromptRow
from vpexp.evaluation.pixel_metrics import ImageSums, PixelCounts
from vpexp.inference.predictor import ImageEmbedding, Prediction, Predictor

# Masks of one image that are held at original size at once, in pixels: evaluation memory does not grow with objects.
CHUNK_PIXELS = 64 * 1024 * 1024
CHUNK_PROMPTS = 256

Remember = Callable[[EvaluationSample, ImageEmbedding], ImageEmbedding]


class Metric(ABC):
    """A metric of the user's own. Each evaluation starts with a copy of what was configured, in each of its processes."""

    @abstractmethod
    def update(self, predicted: Sequence[Rle], scores_N: NDArray[np.float32], annotations: AnnotatedImage) -> None:
        """Add one image: a predicted mask and the model's estimate of its IoU for each annotated object."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add what another process has seen."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Compute the numbers by name; NaN where one has no meaning."""


@dataclass(frozen=True, slots=True)
class KeptPrediction:
    """An image, or the first tile of one, kept for the overlays, with what was predicted for each of its objects."""

    sample: EvaluationSample
    predicted: list[Rle]
    scores_N: NDArray[np.float32]
    prompts: list[PromptRow]
    """What each object was asked with at last, pixels of the image."""


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """What an evaluation found.

    Attributes:
        metrics: ``dice f1-score iou mean_iou map ... iter_time encoder_time decoder_time data_time``, seconds an image
            (``iter_time`` and ``data_time`` are means; ``encoder_time`` and ``decoder_time`` medians, which the first
            image's warming up does not move); NaN where a number has no meaning. Where embeddings were stored,
            ``encoder_time`` is that of the images encoded all the same, and ``iter_time`` counts it for every image. Where
            masks were corrected, these are the metrics of the last ones, ``decoder_time`` that of all rounds together, and
            there are those of ``SimulatedUser.summarize`` besides.
        per_class: ``map_per_class`` and ``mar_100_per_class`` by class name.
        baselines: pixel metrics of ``box_filled`` (the prompt's box taken as the mask) and ``wrong_image`` (the model
            given another image's embedding, or that of another tile); empty where they were not asked for.
        images: images evaluated.
        objects: objects evaluated.
        unreadable: images whose pixels are damaged.
        kept: predictions kept for overlays.
        image_sums: pixel sums of each image, by its id.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    baselines: dict[str, dict[str, float]]
    images: int
    objects: int
    unreadable: list[UnreadableImage]
    kept: list[KeptPrediction]
    image_sums: ImageSums

    @property
    def wrong_image_drop(self) -> float:
        """How much F1 is lost with another image's embedding: near 0 means that the image is not looked at."""
        wrong = self.baselines.get("wrong_image", {}).get("f1-score", float("nan"))
        return self.metrics["f1-score"] - wrong


@dataclass(slots=True)
class _Totals:
    rounds: list[PixelCounts]
    metrics: list[Metric] = field(default_factory=list)
    box_filled: PixelCounts = field(default_factory=PixelCounts)
    wrong_image: PixelCounts = field(default_factory=PixelCounts)
    images: int = 0
    encoder_seconds: list[float] = field(default_factory=list)
    decoder_seconds: list[float] = field(default_factory=list)
    data_seconds: float = 0.0
    unreadable: list[UnreadableImage] = field(default_factory=list)
    image_sums: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    @property
    def model(self) -> PixelCounts:
        """Of the masks at last."""
        return self.rounds[-1]

    def merge(self, other: "_Totals") -> None:
        for own, others in zip(self.rounds, other.rounds, strict=True):
            own.merge(others)
        for metric, others_metric in zip(self.metrics, other.metrics, strict=True):
            metric.merge(others_metric)
        self.box_filled.merge(other.box_filled)
        self.wrong_image.merge(other.wrong_image)
        self.images += other.images
        self.encoder_seconds.extend(other.encoder_seconds)
        self.decoder_seconds.extend(other.decoder_seconds)
        self.data_seconds += other.data_seconds
        self.unreadable.extend(other.unreadable)
        self.image_sums |= other.image_sums

    def compute_times(self) -> dict[str, float]:
        """Compute seconds an image."""
        if not self.images:
            return dict.fromkeys(("iter_time", "encoder_time", "decoder_time", "data_time"), float("nan"))
        encoder_time = statistics.median(self.encoder_seconds) if self.encoder_seconds else float("nan")
        # Of a few images that were encoded for their time, the first one's warming up would weigh too much in a mean.
        all_encoded = len(self.encoder_seconds) == self.images
        encoding = sum(self.encoder_seconds) / self.images if all_encoded else np.nan_to_num(encoder_time)
        return {
            "iter_time": float(encoding + sum(self.decoder_seconds) / self.images),
            "encoder_time": encoder_time,
            "decoder_time": statistics.median(self.decoder_seconds),
            "data_time": self.data_seconds / self.images,
        }


class Evaluator:
    """Takes samples one by one and computes the metrics at the end.

    Args:
        categories: class names.
        baselines: also measure the filled box and the wrong-image control; the latter decodes each image twice.
        keep: which samples, counted from 0, to keep for overlays.
        remember: is given the embedding of each image that had none stored, and gives back the one to decode.
        interaction: how objects are asked for; None: by one prompt each.
        metrics: of the user's own; they are copied.
    """

    def __init__(
        self,
        categories: Sequence[str],
        *,
        baselines: bool = False,
        keep: Iterable[int] = (),
        remember: Remember | None = None,
        interaction: Interaction | None = None,
        metrics: Sequence[Metric] = (),
    ) -> None:
        self.remember = remember
        self.metrics = list(metrics)
        self.interaction = interaction or OnePrompt()
        self.average_precision = MaskAveragePrecision(categories)
        self.baselines = baselines
        self.keep = frozenset(keep)
        self.totals = self._start_totals()
        self.kept: list[KeptPrediction] = []
        self._first: tuple[EvaluationSample, ImageEmbedding] | None = None
        self._previous: ImageEmbedding | None = None

    def update(self, predictor: Predictor, sample: EvaluationSample | UnreadableImage, data_seconds: float) -> None:
        """Evaluate one image, all of its objects."""
        self.totals.data_seconds += data_seconds
        if isinstance(sample, UnreadableImage):
            self.totals.unreadable.append(sample)
            return
        annotations, rounds = sample.annotations, self._start_rounds()
        predicted, scores_N = list(annotations.masks), np.zeros(len(annotations), np.float32)  # each is answered below
        times: list[tuple[float, float]] = []
        for number, view in enumerate(sample.views):
            embedding, encoder_seconds = self._embed(predictor, view)
            answers, decoder_seconds = self._measure(predictor, embedding, view, rounds)
            times.append((encoder_seconds, decoder_seconds))
            for index, rle in zip(view.objects_N.tolist(), view.put_back(answers.rounds[-1]), strict=True):
                predicted[index] = rle
            scores_N[view.objects_N] = answers.scores_N
            if number == 0 and self.totals.images in self.keep:
                self.kept.append(KeptPrediction(view, answers.rounds[-1], answers.scores_N, answers.prompts))
            if self.baselines:
                self._measure_baselines(predictor, embedding, view)
        self._add_times(np.array(times))
        for total, counts in zip(self.totals.rounds, rounds, strict=True):
            total.merge(counts)
        self.totals.image_sums[annotations.image_id] = rounds[-1].sums
        place = self.totals.images + len(self.totals.unreadable)
        self.average_precision.update(predicted, scores_N, annotations.masks, annotations.labels_N, place)
        for metric in self.totals.metrics:
            metric.update(predicted, scores_N, annotations)
        self.totals.images += 1

    def compute(self) -> EvaluationResult:
        """Compute all metrics over what was seen, by all processes."""
        totals, average_precision = self._gather()
        precision = average_precision.compute()
        numbers = {name: value for name, value in precision.items() if isinstance(value, float)}
        per_class = {name: value for name, value in precision.items() if isinstance(value, dict)}
        metrics = totals.model.compute() | numbers | self.interaction.summarize(totals.rounds)
        metrics |= totals.compute_times()
        for metric in totals.metrics:
            metrics |= metric.compute()
        baselines = {}
        if self.baselines:
            baselines = {"box_filled": totals.box_filled.compute(), "wrong_image": totals.wrong_image.compute()}
        objects = len(totals.model.object_ious)
        return EvaluationResult(
            metrics, per_class, baselines, totals.images, objects, totals.unreadable, self.kept, totals.image_sums
        )

    def finish(self, predictor: Predictor) -> None:
        """Give the first view, which had no predecessor, the last one's embedding."""
        if self._first is not None and self._previous is not None and self._previous is not self._first[1]:
            view, own = self._first
            self._measure_wrong_image(predictor, own, self._previous, view)
            self._first = None

    def _embed(self, predictor: Predictor, sample: EvaluationSample) -> tuple[ImageEmbedding, float]:
        """Take the stored embedding where there is one; an image that came with it is encoded for the time it takes.

        Returns:
            The embedding, and the seconds that encoding took; NaN where nothing was encoded.
        """
        seconds = float("nan")
        if sample.image_HW3 is not None:
            started = time.perf_counter()
            embedding = predictor.embed(sample.image_HW3)
            seconds = time.perf_counter() - started
            if sample.embedding_CHW is None:
                return (self.remember(sample, embedding) if self.remember else embedding), seconds
        assert sample.embedding_CHW is not None, "a sample has pixels, or an embedding, or both"
        annotations = sample.annotations
        return predictor.restore(sample.embedding_CHW, (annotations.height, annotations.width)), seconds

    def _add_times(self, seconds_V2: NDArray[np.float64]) -> None:
        """Add the seconds of the views of an image: of encoding where all of them were encoded, and of decoding."""
        encoding, decoding = seconds_V2.sum(axis=0).tolist()
        if encoding == encoding:  # noqa: PLR0124 (NaN is not)
            self.totals.encoder_seconds.append(encoding)
        self.totals.decoder_seconds.append(decoding)

    def _start_totals(self) -> _Totals:
        return _Totals(self._start_rounds(), copy.deepcopy(self.metrics))

    def _start_rounds(self) -> list[PixelCounts]:
        return [PixelCounts() for _ in range(self.interaction.rounds)]

    def _measure(
        self,
        predictor: Predictor,
        embedding: ImageEmbedding,
        view: EvaluationSample,
        counts: Sequence[PixelCounts],
    ) -> tuple[Answers, float]:
        """Ask for all objects of a view, add their masks to the counts of each round, and return how long decoding took."""
        annotations = view.annotations
        chunk = min(CHUNK_PROMPTS, max(1, CHUNK_PIXELS // (annotations.height * annotations.width)))
        whole = Answers([[] for _ in counts], np.zeros(0, np.float32), [])
        scores = [whole.scores_N]
        seconds = 0.0

        def decode(prompts: Prompts) -> Prediction:
            nonlocal seconds
            started = time.perf_counter()
            prediction = predictor.decode_prompts(embedding, prompts)
            seconds += time.perf_counter() - started
            return prediction

        for start in range(0, len(view.prompts), chunk):
            part = slice(start, start + chunk)
            answers = self.interaction.ask(decode, view.prompts.select(part), annotations.masks[part])
            for count, masks, found in zip(counts, whole.rounds, answers.rounds, strict=True):
                count.update(view.put_back(found), view.list_truths(part))
                masks.extend(found)
            scores.append(answers.scores_N)
            whole.prompts.extend(answers.prompts)
        return replace(whole, scores_N=np.concatenate(scores)), seconds

    def _measure_baselines(self, predictor: Predictor, embedding: ImageEmbedding, view: EvaluationSample) -> None:
        annotations = view.annotations
        boxes_N4 = _get_prompt_boxes(view)
        filled = [_fill_box(box_4, annotations.height, annotations.width) for box_4 in boxes_N4]
        self.totals.box_filled.update(view.put_back(filled), view.list_truths())
        if self._previous is None:
            self._first = (view, embedding)
        else:
            self._measure_wrong_image(predictor, embedding, self._previous, view)
        self._previous = embedding

    def _measure_wrong_image(
        self, predictor: Predictor, own: ImageEmbedding, other: ImageEmbedding, view: EvaluationSample
    ) -> None:
        # Only what the encoder saw is exchanged; prompt and size stay those of the image at hand.
        # A user who corrects sees the masks of that image, and clicks on their errors.
        rounds = self._start_rounds()
        self._measure(predictor, replace(own, features=other.features), view, rounds)
        self.totals.wrong_image.merge(rounds[-1])

    def _gather(self) -> tuple[_Totals, MaskAveragePrecision]:
        """Join what all processes counted: of this one alone where there is one."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return self.totals, self.average_precision
        own = (self.totals, self.average_precision.records)
        parts = [own] * distributed.get_world_size()
        distributed.all_gather_object(parts, own)
        merged = self._start_totals()
        for totals, _ in parts:
            merged.merge(totals)
        records = [record for _, part in parts for record in part]
        return merged, MaskAveragePrecision(self.average_precision.categories, records)


def evaluate(
    predictor: Predictor,
    samples: Iterable[EvaluationSample | UnreadableImage],
    categories: Sequence[str],
    *,
    total: int,
    description: str = "testing",
    baselines: bool = False,
    keep: Iterable[int] = (),
    remember: Remember | None = None,
    interaction: Interaction | None = None,
    metrics: Sequence[Metric] = (),
) -> EvaluationResult:
    """Evaluate a predictor on samples, with progress.

    Args:
        predictor: any backend.
        samples: images with prompts; damaged ones are counted and passed over.
        categories: class names.
        total: number of samples, for the progress bar.
        description: what the progress bar says.
        baselines: see ``Evaluator``.
        keep: see ``Evaluator``.
        remember: see ``Evaluator``.
        interaction: see ``Evaluator``.
        metrics: see ``Evaluator``.
    """
    evaluator = Evaluator(
        categories, baselines=baselines, keep=keep, remember=remember, interaction=interaction, metrics=metrics
    )
    with build_progress() as progress:
        task = progress.add_task(description, total=total)
        started = time.perf_counter()
        for sample in samples:
            evaluator.update(predictor, sample, data_seconds=time.perf_counter() - started)
            progress.advance(task)
            started = time.perf_counter()
        evaluator.finish(predictor)
    return evaluator.compute()


def _fill_box(box_4: NDArray[np.float32], height: int, width: int) -> Rle:
    """Take all pixels of a box as a mask."""
    left, top, right, bottom = np.rint(box_4).astype(int).clip(0, [width, height, width, height]).tolist()
    return encode_region(Region(top, left, max(bottom, top), max(right, left)), height, width)


def _get_prompt_boxes(sample: EvaluationSample) -> NDArray[np.float32]:
    """Take the boxes that were prompted; where points were, the annotated ones."""
    annotated_N4 = sample.annotations.boxes_N4
    prompted = [sample.prompts.find_box(index) for index in range(len(sample.prompts))]
    boxes = [own if box_4 is None else box_4 for box_4, own in zip(prompted, annotated_N4, strict=True)]
    return np.array(boxes, dtype=np.float32).reshape(-1, 4)
