"""Finding and naming objects without prompts, as a training learns it after the decoder."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vpexp.config.schema import PrompterConfig
from vpexp.console import build_progress, format_count, log_line, show_progress
from vpexp.data.annotations import AnnotatedDataset, AnnotatedImage, ImagePlace, Region, spread_places
from vpexp.data.geometry import normalize_and_pad, resize_image
from vpexp.data.images import read_image
from vpexp.data.tiles import Tiling, plan_windows
from vpexp.devices import choose_device
from vpexp.embeddings.cache import EmbeddingCache, encode_images
from vpexp.errors import DataError
from vpexp.evaluation.instances import InstanceEvaluator, InstanceResult
from vpexp.inference.instances import find_instances
from vpexp.inference.predictor import ImageEmbedding, Predictor
from vpexp.inference.tiled import EmbedWindow
from vpexp.inference.torch_instances import InstanceParts
from vpexp.inference.torch_predictor import TorchPredictor
from vpexp.models.mask_classifier import MaskClassifier
from vpexp.models.prompter import Prompter, choose_cell
from vpexp.models.sam import Sam
from vpexp.models.weights import compute_state_hash
from vpexp.stages.shared.context import RunContext
from vpexp.training.mask_classifier import collect_crops, train_classifier
from vpexp.training.prompter import PrompterTrainer
from vpexp.training.prompter_targets import View, list_views

SPLITS = ("train", "val")
STATE = "prompter.ckpt"
"""Beside the checkpoints: what a training of the prompter goes on from."""
MEMORY_BYTES = 2**31
"""Of embeddings that no cache keeps, held while the prompter learns."""
MOST_MASKS = 8000
"""Masks that the classifier learns from."""
MOST_IMAGES = 200
"""Of val, on which the lowest score is chosen: each is segmented whole."""
UNCHOSEN = 0.3
"""Lowest score of a mask where val has no object by which to choose one."""
HELD_TILES = 64
"""Of an image, whose embeddings are held until all have looked at them; of more tiles the rest is read or encoded again."""


class PlaceReader:
    """Embeddings and pixels of images and windows: embeddings stored or encoded when they are asked for; both are held in memory.

    Args:
        sam: in eval mode, its encoder as it will stay.
        cache: None, or of an encoder that did not learn.
    """

    def __init__(self, sam: Sam, cache: EmbeddingCache | None) -> None:
        self.sam, self.cache = sam, cache
        held = MEMORY_BYTES // (4 * sam.embedding_channels * sam.embedding_size**2 + 3 * sam.image_size**2)
        self.encode = lru_cache(max(1, held))(self._encode)
        self.read_resized = lru_cache(max(1, held))(self._read_resized)
        self._read_whole = lru_cache(1)(read_image)

    def read(self, place: ImagePlace) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Read the first map [C, E, E] of the embedding of an image or window, and its pixels: RGB [h, w, 3], as the model takes them.

        Raises:
            DataError: its pixels cannot be read.
        """
        stored_CEE = self.cache.stored.read(place) if self.cache else None
        embedding_CEE = self.encode(place) if stored_CEE is None else stored_CEE
        return embedding_CEE[: self.sam.map_channels], self.read_resized(place)

    def _encode(self, place: ImagePlace) -> NDArray[Any]:
        image_3SS = normalize_and_pad(self.read_resized(place), self.sam.image_size)
        device = next(self.sam.parameters()).device
        encoded_CEE: NDArray[Any] = (
            encode_images(self.sam, torch.from_numpy(image_3SS)[None].to(device))[0].cpu().numpy()
        )
        return encoded_CEE

    def _read_resized(self, place: ImagePlace) -> NDArray[np.uint8]:
        if place.window is None:
            return self._resize(read_image(place.path, place.exif_transpose))
        whole_HW3 = self._read_whole(place.path, place.exif_transpose)  # the next window may be of the same image
        return self._resize(whole_HW3[place.window.slices])

    def _resize(self, image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return resize_image(image_HW3, self.sam.image_size, self.sam.interface.resize)

    def _is_stored(self, place: ImagePlace) -> bool:
        key = self.cache and self.cache.stored.find_key(place)
        return bool(self.cache and key and self.cache.stored.store.has(key))

    def choose_readable(self, views: Sequence[View]) -> list[View]:
        """Leave out the views that cannot be read; they are reported where the decoder reads them.

        What is not stored, and what is a window of a larger image, is read here in the order of the images.
        """
        readable = []
        for view in show_progress(views, "reading images for the prompter"):
            try:
                if view.place.window or not self._is_stored(view.place):
                    self.read(view.place)
            except DataError:
                continue
            readable.append(view)
        self._read_whole.cache_clear()
        return readable


class ImageEmbeddings:
    """The embeddings of one image after another, and of their tiles.

    Args:
        predictor: encodes what is not stored.
        cache: of its encoder; None: nothing is stored.

    Attributes:
        passes: how often the encoder ran.
        seconds: spent on reading and encoding.
    """

    def __init__(self, predictor: Predictor, cache: EmbeddingCache | None) -> None:
        self.predictor, self.cache = predictor, cache
        self.passes, self.seconds = 0, 0.0

    def open(self, image: AnnotatedImage) -> EmbedWindow:
        """Build what gives the embeddings of an image and its windows."""
        held: dict[Region, ImageEmbedding] = {}

        def embed(part_hw3: NDArray[np.uint8], window: Region) -> ImageEmbedding:
            if window in held:
                return held[window]
            started = time.perf_counter()
            embedding = self._get(image, part_hw3, window)
            if len(held) < HELD_TILES:
                held[window] = embedding
            self.seconds += time.perf_counter() - started
            return embedding

        return embed

    def _get(self, image: AnnotatedImage, part_hw3: NDArray[np.uint8], window: Region) -> ImageEmbedding:
        place = image.locate(window)
        stored_CHW = self.cache.stored.read(place) if self.cache else None
        if stored_CHW is not None:
            return self.predictor.restore(stored_CHW, (part_hw3.shape[0], part_hw3.shape[1]))
        self.passes += 1
        embedding = self.predictor.embed(part_hw3)
        return self.cache.keep(place, embedding) if self.cache else embedding


def list_prompter_places(
    dataset: AnnotatedDataset, tiling: Tiling | None, splits: Sequence[str] = SPLITS
) -> list[ImagePlace]:
    """List the images or tiles that the prompter learns from or is measured on, with objects and without."""
    return [
        image.locate(window)
        for split in splits
        for image in dataset.splits[split].images
        for window in plan_windows(tiling, image.height, image.width)
    ]


def learn_instances(
    context: RunContext,
    predictor: TorchPredictor,
    dataset: AnnotatedDataset,
    tiling: Tiling | None,
    cache: EmbeddingCache | None,
    *,
    start: InstanceParts | None = None,
) -> tuple[InstanceParts, dict[str, float]]:
    """Train prompter and classifier beside a trained decoder, and choose on val the score that masks are kept from.

    A training that was stopped goes on from its state.

    Args:
        context: the run.
        predictor: of the model with the weights that are kept.
        dataset: images whole, with splits train and val.
        tiling: how they are cut.
        cache: of the embeddings that the decoder was trained on.
        start: what the start checkpoint has learnt; the prompter goes on from its weights, where it is as large.

    Returns:
        What was learnt, for the checkpoint, and metrics by name.
    """
    reader = PlaceReader(predictor.sam, cache)
    started = time.perf_counter()
    trainer = _train_prompter(context, reader, dataset, tiling, start)
    found = time.perf_counter()
    classifier, accuracies = _train_classifier(context, dataset) if len(dataset.categories) > 1 else (None, {})
    named = time.perf_counter()
    overlap = context.settings.prompter.max_overlap
    parts = InstanceParts(trainer.prompter, classifier, dataset.categories, UNCHOSEN, overlap)
    predictor.instances = parts.build_model(predictor.device)
    result = measure_instances(predictor, dataset, _spread(dataset.splits["val"].images), tiling, cache)
    if result.objects:
        parts = replace(parts, threshold=result.threshold)
        predictor.instances = replace(predictor.instances, threshold=result.threshold)
    metrics = {f"val/auto/{name}": value for name, value in result.metrics.items()}
    metrics |= {"val/auto/threshold": parts.threshold, "prompter/f1_boxes": trainer.best_score}
    metrics |= {"prompter/steps": float(trainer.best_step), "prompter/train_time": found - started}
    metrics |= {f"classifier/accuracy_{kind}": value for kind, value in accuracies.items()}
    metrics |= {"classifier/train_time": named - found} if classifier else {}
    _report_result(result, metrics)
    return parts, metrics


def measure_start_instances(
    predictor: TorchPredictor,
    start: InstanceParts | None,
    dataset: AnnotatedDataset,
    tiling: Tiling | None,
    cache: EmbeddingCache | None,
) -> dict[str, float]:
    """Measure on val what a start checkpoint finds without prompts, with its own decoder; nothing where it has not learnt to."""
    if start is None:
        return {}
    predictor.instances = start.build_model(predictor.device)
    images = _spread(dataset.splits["val"].images)
    result = measure_instances(predictor, dataset, images, tiling, cache)
    log_line(f"before training: found without prompts on val with F1 {result.metrics['f1']:.4f}")
    return {f"before/val/auto/{name}": value for name, value in result.metrics.items()}


def _train_prompter(
    context: RunContext,
    reader: PlaceReader,
    dataset: AnnotatedDataset,
    tiling: Tiling | None,
    start: InstanceParts | None,
) -> PrompterTrainer:
    settings, seed, sam = context.settings.prompter, context.cfg.seed, reader.sam
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = {"width": settings.width, "depth": settings.depth, "limit": settings.limit}
        prompter = Prompter(sam.map_channels, cell=choose_cell(sam.image_size), **sizes)
    if start is not None and start.prompter.settings == prompter.settings:
        prompter.load_state_dict(start.prompter.state_dict())
    margin = context.settings.prompt.jitter / 2  # what boxes in training are larger by on average
    resize = sam.interface.resize
    views = {
        split: list_views(dataset.splits[split].images, tiling, sam.image_size, margin=margin, resize=resize)
        for split in SPLITS
    }
    readable = {split: reader.choose_readable(views[split]) for split in SPLITS}
    trainer = PrompterTrainer(
        prompter.to(next(sam.parameters()).device),
        readable["train"],
        readable["val"],
        reader.read,
        settings,
        seed=seed,
        state_path=context.folder.checkpoints / STATE,
        encoder_hash=compute_state_hash(sam.image_encoder),
        report=partial(_report_look, settings),
    )
    log_line(f"prompter: learns from {format_count(len(readable['train']), 'image or tile', 'images or tiles')}")
    with build_progress() as progress:
        task = progress.add_task("prompter", total=settings.steps)
        trainer.fit(lambda step: progress.update(task, completed=step))
    return trainer


def _report_look(settings: PrompterConfig, step: int, loss: float, score: float, is_best: bool) -> None:
    words = f"prompter step {step:{len(str(settings.steps))}}/{settings.steps}  loss {loss:.4f}  val F1 of boxes {score:.4f}"
    log_line(f"{words}  best" if is_best else words)


def _train_classifier(context: RunContext, dataset: AnnotatedDataset) -> tuple[MaskClassifier, dict[str, float]]:
    seed = context.cfg.seed
    show = partial(show_progress, description="cutting out masks")
    train, val = (collect_crops(dataset.splits[split].images, MOST_MASKS, seed, show) for split in SPLITS)
    steps = context.settings.prompter.classifier_steps
    device = choose_device(context.cfg.trainer)
    classifier, kind, accuracies = train_classifier(
        train, val, len(dataset.categories), steps=steps, seed=seed, device=device
    )
    shares = ", ".join(f"{name} {accuracy:.2f}" for name, accuracy in accuracies.items())
    log_line(f"classifier: {kind}, from {format_count(len(train), 'mask')}; share of val's named rightly: {shares}")
    return classifier, accuracies


def _spread(images: Sequence[AnnotatedImage]) -> list[AnnotatedImage]:
    """Take some images from all over a split."""
    return [images[place] for place in spread_places(len(images), MOST_IMAGES)]


def measure_instances(
    predictor: TorchPredictor,
    dataset: AnnotatedDataset,
    images: Sequence[AnnotatedImage],
    tiling: Tiling | None,
    cache: EmbeddingCache | None,
) -> InstanceResult:
    """Find the objects of annotated images, and compare; at the score with the best F1."""
    evaluator, embeddings = InstanceEvaluator(dataset.categories), ImageEmbeddings(predictor, cache)
    for image in show_progress(images, "finding objects on val"):
        try:
            image_HW3 = read_image(image.path, image.exif_transpose)
        except DataError:
            continue  # reported where the decoder was measured on it
        _, found = find_instances(predictor, image_HW3, tiling, min_score=0.0, embed=embeddings.open(image))
        # a start checkpoint may name what this data set has no class for
        known = [replace(mask, label=mask.label if mask.label in dataset.categories else None) for mask in found.masks]
        evaluator.update_found(known, image)
    return evaluator.compute()


def _report_result(result: InstanceResult, metrics: dict[str, float]) -> None:
    numbers = result.metrics
    line = (
        f"found without prompts on {format_count(result.images, 'image')} of val: AP {numbers['map']:.4f}, at a score of "
        f"{metrics['val/auto/threshold']:.2f} precision {numbers['precision']:.4f}, recall {numbers['recall']:.4f}, F1 {numbers['f1']:.4f}"
    )
    if len(result.per_class.get("map_per_class", {})) > 1:
        line += f", {numbers['class_accuracy']:.0%} of them named rightly"
    seconds = metrics["prompter/train_time"] + metrics.get("classifier/train_time", 0.0)
    log_line(f"{line}; learnt in {seconds:.0f} s")
