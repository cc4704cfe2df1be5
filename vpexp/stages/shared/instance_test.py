"""A test without prompts: the objects of a split are found and named, beside a grid of points and the annotated boxes.

All of them look at the same embeddings: each image or tile is encoded once.

Legend: K masks, H W size of an image.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress

from vpexp import visuals
from vpexp.config.schema import PredictConfig
from vpexp.console import build_progress, format_count
from vpexp.data.annotations import AnnotatedImage, Region, spread_places
from vpexp.data.images import read_image
from vpexp.data.masks import compute_area
from vpexp.data.prompts import prompts_from_boxes
from vpexp.data.tiles import Tiling
from vpexp.errors import DataError
from vpexp.evaluation.instances import InstanceEvaluator, InstanceResult
from vpexp.inference.instances import find_instances
from vpexp.inference.predictor import Predictor
from vpexp.inference.segment import FoundMask, segment
from vpexp.inference.tiled import EmbedWindow, find_by_grid, segment_tiles
from vpexp.reporting.instances import AUTO, BOXES, GRID, TITLES, WITHOUT_CLASSES
from vpexp.stages.shared.instances import ImageEmbeddings

TIMED_IMAGES = 16
"""Images whose search is timed, the first ones."""


@dataclass(frozen=True, slots=True)
class View:
    """An image that is looked at: its annotations, its pixels RGB uint8, and what gives its embeddings."""

    annotations: AnnotatedImage
    image_HW3: NDArray[np.uint8]
    embed: EmbedWindow


@dataclass(frozen=True, slots=True)
class Searches:
    """The ways to find objects: methods from a view and the lowest score to masks.

    Attributes:
        predictor: any backend.
        tiling: how images are cut; None: they are not.
        settings: of the grid.
        categories: class names.
        progress: shows the points of a grid.
    """

    predictor: Predictor
    tiling: Tiling | None
    settings: PredictConfig
    categories: Sequence[str]
    progress: Progress

    def find_alone(self, view: View, min_score: float) -> Sequence[FoundMask]:
        """Find objects by the prompter, which the predictor has."""
        _, found = find_instances(self.predictor, view.image_HW3, self.tiling, min_score=min_score, embed=view.embed)
        return found.masks

    def find_by_grid(self, view: View, min_score: float) -> Sequence[FoundMask]:
        """Find objects by a grid of points, whose masks have no classes; its lowest score is that of the settings."""
        del min_score
        image_HW3, embed = view.image_HW3, view.embed
        return find_by_grid(self.predictor, image_HW3, self.tiling, self.settings, self.progress, embed=embed)[1].masks

    def find_in_boxes(self, view: View, min_score: float) -> Sequence[FoundMask]:
        """Take the annotated boxes as prompts, and their classes."""
        image = view.annotations
        if not len(image):
            return []
        prompts = prompts_from_boxes(image.boxes_N4)
        if self.tiling is None:
            embedding = view.embed(view.image_HW3, Region(0, 0, image.height, image.width))
            found = segment(self.predictor, embedding, prompts, min_score=min_score)
        else:
            found = segment_tiles(
                self.predictor, view.image_HW3, prompts, self.tiling, min_score=min_score, embed=view.embed
            )
        names = [self.categories[label] for label in image.labels_N.tolist()]
        return [replace(mask, label=names[mask.prompt]) for mask in found.masks]


@dataclass(slots=True)
class Way:
    """A way to find objects, and what came of it.

    Attributes:
        find: see ``Searches``.
        evaluator: of the masks.
        threshold: lowest score that counts where masks are counted.
        has_classes: whether its masks have classes.
        seconds: that the first images took.
    """

    find: Callable[[View, float], Sequence[FoundMask]]
    evaluator: InstanceEvaluator
    threshold: float
    has_classes: bool = True
    seconds: list[float] = field(default_factory=list)

    def measure(self, view: View, embeddings: ImageEmbeddings) -> list[FoundMask]:
        """Evaluate all masks of an image, and return those that count."""
        masks, seconds = self._time(view, 0.0, embeddings)
        if len(self.seconds) < TIMED_IMAGES:
            if self.threshold > 0:  # masks that do not count cost a prediction nothing
                _, seconds = self._time(view, self.threshold, embeddings)
            self.seconds.append(seconds)
        self.evaluator.update_found(masks, view.annotations)
        return [mask for mask in masks if mask.score >= self.threshold]

    def _time(self, view: View, min_score: float, embeddings: ImageEmbeddings) -> tuple[Sequence[FoundMask], float]:
        """Find objects, and take the time without that of the embeddings."""
        before, started = embeddings.seconds, time.perf_counter()
        masks = self.find(view, min_score)
        return masks, time.perf_counter() - started - (embeddings.seconds - before)

    def compute(self) -> tuple[InstanceResult, dict[str, float]]:
        """Compute the result, and those of its metrics that have a meaning; NaN where there is no number."""
        result = self.evaluator.compute(self.threshold)
        metrics = result.metrics | {"threshold": result.threshold, "seconds_per_image": statistics.median(self.seconds)}
        if not self.has_classes and len(self.evaluator.categories) > 1:
            metrics = {name: metrics[name] for name in WITHOUT_CLASSES}
        return result, metrics


@dataclass(frozen=True, slots=True)
class InstanceTest:
    """What a test without prompts found.

    Attributes:
        categories: class names: those of the data set, then those that the model alone has.
        results: by way.
        metrics: by way and name.
        unreadable: why images could not be read, by their ids.
        pictures: of some images, by their ids.
        passes: how often the encoder ran while images were looked at.
    """

    categories: tuple[str, ...]
    results: Mapping[str, InstanceResult]
    metrics: Mapping[str, Mapping[str, float]]
    unreadable: Mapping[str, str]
    pictures: Mapping[str, Image.Image]
    passes: int

    @property
    def images(self) -> int:
        """How many were looked at."""
        return next(iter(self.results.values())).images

    @property
    def objects(self) -> int:
        """How many are annotated in them."""
        return next(iter(self.results.values())).objects

    @property
    def per_class(self) -> Mapping[str, Mapping[str, float]]:
        """AP and AR by class of what was found by the prompter; empty where it was not asked."""
        return self.results[AUTO].per_class if AUTO in self.results else {}


def compare_ways(
    embeddings: ImageEmbeddings,
    images: Sequence[AnnotatedImage],
    categories: Sequence[str],
    tiling: Tiling | None,
    settings: PredictConfig,
    *,
    auto: bool,
    controls: bool,
    overlays: int,
) -> InstanceTest:
    """Find the objects of images in each way, with progress.

    Args:
        embeddings: of a predictor, which has a prompter where ``auto``.
        images: whole ones.
        categories: class names.
        tiling: how images are cut; None: they are not.
        settings: of the grid, and the lowest score of ``auto`` that counts.
        auto: find objects by the prompter.
        controls: find them by a grid and in the annotated boxes.
        overlays: how many images, spread evenly, are drawn.

    Raises:
        DataError: none of the images can be read.
    """
    predictor = embeddings.predictor
    model = predictor.instances if auto else None
    categories = tuple(dict.fromkeys((*categories, *(model.labels if model else ()))))
    drawn = spread_places(len(images), overlays)
    unreadable: dict[str, str] = {}
    pictures: dict[str, Image.Image] = {}
    with build_progress() as progress:
        searches = Searches(predictor, tiling, settings, categories, progress)
        ways: dict[str, Way] = {}
        if model:
            threshold = model.threshold if settings.auto_score is None else settings.auto_score
            ways[AUTO] = Way(searches.find_alone, InstanceEvaluator(categories), threshold)
        if controls:
            ways[GRID] = Way(searches.find_by_grid, InstanceEvaluator(categories), 0.0, has_classes=False)
            ways[BOXES] = Way(searches.find_in_boxes, InstanceEvaluator(categories), 0.0)
        for place, image in enumerate(progress.track(images, description="finding objects")):
            try:
                view = View(image, read_image(image.path, image.exif_transpose), embeddings.open(image))
            except DataError as error:
                unreadable[image.image_id] = str(error)
                continue
            found = {name: way.measure(view, embeddings) for name, way in ways.items()}
            if place in drawn:
                pictures[image.image_id] = _draw(view, found, categories)
    if len(unreadable) == len(images):
        raise DataError(f"none of the {len(images)} images can be read: {next(iter(unreadable.values()))}")
    computed = {name: way.compute() for name, way in ways.items()}
    results = {name: result for name, (result, _) in computed.items()}
    metrics = {name: numbers for name, (_, numbers) in computed.items()}
    return InstanceTest(categories, results, metrics, unreadable, pictures, embeddings.passes)


def _draw(view: View, found: Mapping[str, Sequence[FoundMask]], categories: Sequence[str]) -> Image.Image:
    """Draw the annotated masks of an image beside those that were found, in the colours of their classes."""
    image, names = view.annotations, list(categories)
    truth = [
        FoundMask(rle, 1.0, 0, names[label]) for rle, label in zip(image.masks, image.labels_N.tolist(), strict=True)
    ]
    shown = {"annotated": truth} | {TITLES[way]: found[way] for way in (AUTO, GRID) if way in found}
    panels = []
    for title, masks in shown.items():
        by_area = sorted(masks, key=lambda mask: -compute_area(mask.rle))
        labels = [names.index(mask.label) for mask in by_area if mask.label]
        colors = visuals.choose_colors(np.array(labels), len(names)) if labels else None
        drawn = (mask.rle for mask in by_area)
        panels.append(
            visuals.Panel(drawn, colors, f"{title}: {format_count(len(masks), 'object' if masks is truth else 'mask')}")
        )
    used = {mask.label for masks in shown.values() for mask in masks}
    legend = [entry for entry in visuals.build_legend(names) if entry[0] in used]
    return visuals.draw_panels(view.image_HW3, panels, legend)
