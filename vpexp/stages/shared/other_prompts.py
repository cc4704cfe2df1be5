"""What a training does to prompts that it is not trained on, to prompts on background, and to another data set.

A training that helps with one kind of prompt may cost others. So a few images of val are also asked by the other kinds, before and after.

Legend: C channels, H W original size.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from vpexp.config.schema import DataConfig, PromptConfig
from vpexp.console import PlainTable, console, format_count, log_line, show_progress
from vpexp.data.annotations import (
    AnnotatedDataset,
    AnnotatedImage,
    ImagePlace,
    Region,
    list_places,
    spread_places,
    with_objects,
)
from vpexp.data.batch import EvaluationSample, EvaluationSet, UnreadableImage
from vpexp.data.dataset import load_dataset
from vpexp.data.masks import compute_area
from vpexp.data.prompts import build_evaluation_prompts
from vpexp.data.tiles import TiledImages, Tiling, cut_tile, see_mask
from vpexp.embeddings.cache import EmbeddingCache
from vpexp.errors import DataError
from vpexp.evaluation.background import BackgroundCounts, draw_background_prompts
from vpexp.evaluation.click_protocol import build_interaction
from vpexp.evaluation.evaluator import CHUNK_PIXELS
from vpexp.evaluation.pixel_metrics import Gain, ImageSums, PixelCounts, compute_gain
from vpexp.files import read_json, write_json
from vpexp.inference.predictor import ImageEmbedding, Predictor
from vpexp.stages.shared.context import RunContext

MOST_IMAGES = 50
MOST_OBJECTS = 8
"""Of an image: so the quick start's training takes less than a twentieth longer."""
MOST_MIXED = 16
"""Of an image, where mixtures are chosen by them."""
CLICKS = 3
TRAINED, KEEP = "trained", "keep"
NAMES = {
    TRAINED: "as trained",
    "box": "exact box",
    "point": "one point",
    "clicks": f"{CLICKS} clicks",
    KEEP: "data.keep, as trained",
    "box_hits": "background box gives an object",
    "point_hits": "background point gives an object",
    "box_iou": "IoU with the background box",
}
LOWER_IS_BETTER = ("box_hits", "point_hits")
UNJUDGED = ("box_iou",)
BEFORE = "prompts_before.json"
PREFIX = "val/prompts"

Measures = dict[str, ImageSums]
"""By the names of ``NAMES``: sums of each image, whose F1 is the measure."""


def compute_f1(sums: ImageSums) -> float:
    """Compute F1 of all images; NaN where there are none."""
    overlap, predicted, annotated = np.array(list(sums.values()), dtype=np.int64).reshape(-1, 3).sum(axis=0).tolist()
    return 2 * overlap / (predicted + annotated) if predicted + annotated else math.nan


def list_other_recipes(recipe: PromptConfig) -> dict[str, PromptConfig]:
    """List the kinds of prompts that a training by ``recipe`` does not learn from."""
    kinds = {
        "box": replace(recipe, type="box", test_jitter=0.0),
        "point": replace(recipe, type="point"),
        "clicks": replace(recipe, type="clicks", clicks=CLICKS, first="point"),
    }
    learnt = {"box": ["box"], "point": ["point"], "both": ["box", "point"], "clicks": ["clicks", "point"]}[recipe.type]
    if recipe.jitter > 0 and "box" in learnt:
        learnt.remove("box")  # what is learnt is a looser one
    return {kind: other for kind, other in kinds.items() if kind not in learnt}


@dataclass(frozen=True, slots=True)
class _Sample:
    """Images that are asked, and by which kinds of prompts.

    Attributes:
        images: a split's, or its tiles.
        recipes: by the names of ``NAMES``.
        whole: the images with all of their objects, by id, where background is asked for too.
    """

    images: Sequence[AnnotatedImage]
    recipes: Mapping[str, PromptConfig]
    whole: Mapping[str, AnnotatedImage] = field(default_factory=dict)

    @classmethod
    def take(
        cls, images: Sequence[AnnotatedImage], recipes: Mapping[str, PromptConfig], tiling: Tiling | None, most: int
    ) -> Self:
        """Take some images from all over a split, and at most so many objects of each."""
        whole = [images[place] for place in spread_places(len(images), MOST_IMAGES)]
        chosen = [_thin_out(image, most) for image in whole]
        shown = chosen if tiling is None else TiledImages.cut(chosen, tiling)
        return cls(shown, recipes, {image.image_id: image for image in whole})


class PromptControls:
    """Measures a model by prompts that it is not trained on, always on the same few images.

    Args:
        recipe: the section ``prompt``.
        val: images of val, whole.
        keep: images of the data set that the model should stay good at; there may be none.
        tiling: how images are cut; None: they are not.
        mixing: mixtures are chosen by what is measured: more objects are asked for, and by the trained prompts too.
    """

    def __init__(
        self,
        recipe: PromptConfig,
        val: Sequence[AnnotatedImage],
        keep: Sequence[AnnotatedImage] = (),
        tiling: Tiling | None = None,
        *,
        mixing: bool = False,
    ) -> None:
        self.most_objects = MOST_MIXED if mixing else MOST_OBJECTS
        recipes = ({TRAINED: recipe} if mixing else {}) | list_other_recipes(recipe)
        self.samples = [_Sample.take(val, recipes, tiling, self.most_objects)]
        if len(keep):
            self.samples.append(_Sample.take(keep, {KEEP: recipe}, tiling, self.most_objects))

    @property
    def kept_places(self) -> list[ImagePlace]:
        """Where the images of ``data.keep`` lie."""
        return [place for sample in self.samples[1:] for place in list_places(sample.images)]

    def measure(
        self, predictor: Predictor, cache: EmbeddingCache | None, moment: str, *, background: bool = True
    ) -> Measures:
        """Ask for the same objects by each kind of prompt; an image that cannot be read is passed over."""
        measures: dict[str, dict[str, tuple[int, int, int]]] = {}
        counts = BackgroundCounts()
        for sample in self.samples:
            # What this set asks by is not used: the prompts of each kind are made below.
            images = EvaluationSet(sample.images, PromptConfig(), embeddings=cache.stored if cache else None)
            for place in show_progress(range(len(images)), f"{moment}: other prompts"):
                item = images[place]
                if isinstance(item, UnreadableImage):
                    continue
                found = {kind: PixelCounts() for kind in sample.recipes}
                for view in item.views:
                    embedding = _embed(predictor, view, cache)
                    for kind, recipe in sample.recipes.items():
                        _ask(predictor, embedding, view, recipe, found[kind])
                    if background and KEEP not in sample.recipes:
                        image = sample.whole[item.annotations.image_id]
                        _ask_background(
                            predictor, embedding, see_window(image, view.annotations.window), image.image_id, counts
                        )
                for kind, pixels in found.items():
                    measures.setdefault(kind, {})[item.annotations.image_id] = pixels.sums
        return {kind: sums for kind, sums in (measures | counts.sums).items() if sums}


def build_controls(context: RunContext, dataset: AnnotatedDataset, tiling: Tiling | None) -> PromptControls | None:
    """Build what is measured beside val's own prompts; None where ``stage.controls`` is off and nothing else needs it.

    Args:
        context: the run.
        dataset: images whole, with a split val.
        tiling: how they are cut.
    """
    cfg = context.cfg
    if not (cfg.stage.controls or cfg.data.keep or cfg.trainer.blend is not None):
        return None
    val = with_objects(dataset.splits["val"].images)
    keep = _read_kept(context) if cfg.data.keep else []
    mixing = cfg.trainer.blend is not None
    return PromptControls(context.settings.prompt, val, keep, tiling, mixing=mixing) if len(val) else None


def _read_kept(context: RunContext) -> Sequence[AnnotatedImage]:
    """Read the val split of ``data.keep``, or what stands for one."""
    root = str(context.cfg.data.keep)
    settings = DataConfig(name=Path(root).name, format="auto", root=root)
    try:
        kept = load_dataset(settings, seed=context.cfg.seed, splits=("val",), cache_dir=context.cache_dir)
    except DataError as error:
        raise DataError(f"data.keep: {str(error).replace('data.root', 'data.keep')}") from error
    images = with_objects(kept.splits["val"].images)
    count = min(MOST_IMAGES, len(images))
    log_line(f"data.keep: {format_count(count, 'image')} of {kept.splits['val'].source} of {root} ({kept.format})")
    return images


def _thin_out(image: AnnotatedImage, most: int) -> AnnotatedImage:
    if len(image) <= most:
        return image
    chosen_N = np.zeros(len(image), dtype=np.bool_)
    chosen_N[spread_places(len(image), most)] = True
    return image.select(chosen_N)


def _embed(predictor: Predictor, view: EvaluationSample, cache: EmbeddingCache | None) -> ImageEmbedding:
    if view.embedding_CHW is not None:
        return predictor.restore(view.embedding_CHW, (view.annotations.height, view.annotations.width))
    assert view.image_HW3 is not None, "a view has pixels where no embedding is stored"
    embedding = predictor.embed(view.image_HW3)
    return cache.remember(view, embedding) if cache else embedding


def _ask(
    predictor: Predictor,
    embedding: ImageEmbedding,
    view: EvaluationSample,
    recipe: PromptConfig,
    counts: PixelCounts,
) -> None:
    prompts, interaction = build_evaluation_prompts(view.annotations, recipe), build_interaction(recipe)
    for part in _divide(view.annotations, len(prompts)):
        answers = interaction.ask(
            lambda asked: predictor.decode_prompts(embedding, asked), prompts.select(part), view.annotations.masks[part]
        )
        counts.update(view.put_back(answers.rounds[-1]), view.list_truths(part))


def _ask_background(
    predictor: Predictor, embedding: ImageEmbedding, image: AnnotatedImage, image_id: str, counts: BackgroundCounts
) -> None:
    for kind, prompts in draw_background_prompts(image, MOST_OBJECTS).list_prompts().items():
        for part in _divide(image, len(prompts)):
            asked = prompts.select(part)
            masks = list(predictor.decode_prompts(embedding, asked).encode_masks())
            counts.update(kind, asked, masks, image, image_id)


def see_window(image: AnnotatedImage, window: Region | None) -> AnnotatedImage:
    """Take what a window shows of an image, parts of objects that it cuts too."""
    if window is None:
        return image
    shown = [place for place, rle in enumerate(image.masks) if compute_area(see_mask(rle, window))]
    return cut_tile(image, window, np.array(shown, dtype=np.int64))


def _divide(image: AnnotatedImage, count: int) -> list[slice]:
    """Divide prompts into parts whose masks fit the memory."""
    size = max(1, CHUNK_PIXELS // (image.height * image.width))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


class MeasureControls(Protocol):
    """Measures the model as it is by the prompts of a run's ``PromptControls``."""

    def __call__(self, moment: str, *, background: bool = True) -> Measures:
        """Measure; the moment is for the progress bar."""
        ...


def measure_before(context: RunContext, measure: MeasureControls | None) -> Measures:
    """Measure the start of a training, and write that down; of a run that goes on it is read, and empty where it was not measured."""
    path = context.folder.path / BEFORE
    if measure is None:
        return {}
    if context.cfg.resume:
        return read_json(path) if path.is_file() else {}
    measures = measure("before")
    write_json(path, measures)
    return measures


def measure_after(is_start: bool, before: Measures, measure: MeasureControls | None) -> Measures:
    """Measure the weights that are kept; those of the start have been."""
    if measure is None:
        return {}
    return before if is_start and before else measure("after")


def compare_measures(before: Measures, after: Measures) -> dict[str, Gain]:
    """Compare each measure; where it was not measured before, that is NaN."""
    return {
        kind: compute_gain(compute_f1(before.get(kind, {})), compute_f1(after[kind]), before.get(kind, {}), after[kind])
        for kind in NAMES
        if kind in after
    }


def list_losses(gains: Mapping[str, Gain]) -> list[str]:
    """List what got worse by more than its noise, in words."""
    return [
        f"{NAMES[kind]} {gain.before:.4f} -> {gain.after:.4f} ({gain.difference:+z.4f} ± {gain.standard_error:.4f})"
        for kind, gain in gains.items()
        if kind not in UNJUDGED and get_loss(kind, gain) > 0 and not gain.is_noise
    ]


def get_loss(kind: str, gain: Gain) -> float:
    """Return by how much a measure got worse; negative: better."""
    return gain.difference if kind in LOWER_IS_BETTER else -gain.difference


def report_controls(gains: Mapping[str, Gain]) -> list[str]:
    """Print the measures before and after as a table, and what got worse; return that as findings."""
    if not gains:
        return []
    if all(gain.difference == 0 for gain in gains.values()):
        log_line("other prompts: as before, as the start is kept")
        return []
    images = max((gain.images for gain in gains.values()), default=0)
    title = f"what it did to other prompts: F1 on {format_count(images, 'image')} of val"
    table = PlainTable(title=title, min_width=len(title))
    table.add_column("prompts")
    for column in ("before", "after", "change"):
        table.add_column(column, justify="right")
    for kind, gain in gains.items():
        error = f" ± {gain.standard_error:.4f}" if math.isfinite(gain.standard_error) else ""
        table.add_row(NAMES[kind], f"{gain.before:.4f}", f"{gain.after:.4f}", f"{gain.difference:+z.4f}{error}")
    console.print(table)
    losses = list_losses(gains)
    if not losses:
        return []
    finding = f"fine-tuning costs, by more than noise: {'; '.join(losses)}"
    mixing = "" if TRAINED in gains else "trainer.blend=auto looks for weights between, "  # with it they are measured
    log_line(
        f"{finding}; {mixing}prompt=both or clicks learns from more kinds",
        style="yellow",
    )
    return [finding]


def to_metrics(gains: Mapping[str, Gain]) -> dict[str, float]:
    """Name the numbers: ``val/prompts/point``, ``before/val/prompts/point``."""
    after = {f"{PREFIX}/{kind}": gain.after for kind, gain in gains.items()}
    before = {f"before/{PREFIX}/{kind}": gain.before for kind, gain in gains.items() if math.isfinite(gain.before)}
    return after | before


def list_columns(gains: Mapping[str, Gain]) -> dict[str, dict[str, float]]:
    """List the measures in words, by the columns of a report."""
    named = {NAMES[kind] if kind == KEEP else f"val: {NAMES[kind]}": gain for kind, gain in gains.items()}
    return {column: {name: getattr(gain, column) for name, gain in named.items()} for column in ("before", "after")}
