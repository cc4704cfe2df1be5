"""What ``stage=predict`` has to do: the images of a source, and the prompts of each, checked before a model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import numpy as np

from vpexp.data.annotations import AnnotatedDataset, AnnotatedImage
from vpexp.data.image_files import ImageFileError
from vpexp.data.image_source import NameMatch, SourceImage, match_names, suggest_name
from vpexp.data.images import read_image_header
from vpexp.data.prompts import prompts_from_boxes
from vpexp.data.skipped import SkipCounts
from vpexp.data.writers.base import name_file
from vpexp.errors import DataError
from vpexp.inference.prompt_file import DEFAULT_LABEL, ImagePrompts, fit_prompts, read_prompt_file

NAMES_TOLD = 3


@dataclass(frozen=True, slots=True)
class PredictionTask:
    """An image to predict on.

    Attributes:
        image: the file.
        prompts: None where the image is searched: by a grid of points, or by what the model has learnt.
        annotated: what is annotated already, for images of a data set; its masks are kept.
        split: of the data set; None for images of a source.
    """

    image: SourceImage
    prompts: ImagePrompts | None
    annotated: AnnotatedImage | None = None
    split: str | None = None

    @property
    def file_name(self) -> str:
        """Name of the image's file, with its ending, in the source or in its split of the data set."""
        return self.image.name if self.annotated is None else name_file(self.annotated)


@dataclass(frozen=True, slots=True)
class PredictionPlan:
    """All that is to do.

    Attributes:
        tasks: the images, in the order of the source.
        categories: what the prompts show, in the order of their first appearance.
        without_prompts: images of the source that the file says nothing about, or gives no prompt.
        warnings: lines about names in the file that no image has, or images that are in several splits.
        annotated: images of a data set that have nothing to predict; they are among the tasks.
    """

    tasks: list[PredictionTask]
    categories: tuple[str, ...]
    without_prompts: int = 0
    warnings: tuple[str, ...] = ()
    annotated: int = 0

    def list_used(self) -> list[str]:
        """List the categories that an annotated object or a prompt is of, in their order."""
        used = {
            label for task in self.tasks for label in (task.prompts.labels if task.prompts else self.categories[:1])
        }
        kept = [task.annotated.labels_N for task in self.tasks if task.annotated is not None]
        used |= {self.categories[number] for number in np.unique(np.concatenate([[], *kept])).astype(int).tolist()}
        return [name for name in self.categories if name in used]


def plan_images(images: Sequence[SourceImage]) -> PredictionPlan:
    """Plan to search every image, for objects of one class."""
    return PredictionPlan([PredictionTask(image, None) for image in images], (DEFAULT_LABEL,))


def plan_prompts(images: Sequence[SourceImage], path: Path, skips: SkipCounts) -> PredictionPlan:
    """Give each image the prompts that a file has for it.

    Args:
        images: all images of the source.
        path: the file of prompts.
        skips: counts images whose header cannot be read.

    Raises:
        ConfigError, DataError: see ``read_prompt_file``, ``match_names`` and ``fit_prompts``; or the file has no prompt
            for any image.
    """
    by_name = read_prompt_file(path)
    match = match_names(list(by_name), images, str(path))
    given = {image.number: name for name, image in match.images.items() if len(by_name[name])}
    if not given:
        raise DataError(_explain_nothing_fits(match, images, path))
    tasks = []
    for image in images:
        if image.number in given:
            name = given[image.number]
            prompts = _fit(image, by_name[name], f"{path}: {name!r}", skips)
            tasks += [PredictionTask(image, prompts)] if prompts else []
    labels = dict.fromkeys(label for task in tasks if task.prompts for label in task.prompts.labels)
    warnings = _describe_unknown(match, images, path)
    return PredictionPlan(tasks, tuple(labels), len(images) - len(given), warnings)


def plan_dataset(dataset: AnnotatedDataset, *, keep_annotated: bool) -> PredictionPlan:
    """Take the boxes of a data set as prompts; an image that is in several splits is taken once.

    Args:
        dataset: read with objects that are boxes alone.
        keep_annotated: predict only these, and keep the masks of the others; otherwise predict all.

    Raises:
        DataError: no box is without a mask.
    """
    tasks: list[PredictionTask] = []
    warnings = []
    names: set[str] = set()
    sources: dict[Path, str] = {}
    for split in dataset.splits.values():
        own = [image for image in split.images if image.path not in sources]
        elsewhere = [image.path for image in split.images if sources.get(image.path, split.source) != split.source]
        if elsewhere:
            warnings.append(
                f"{len(elsewhere)} images of {split.name} (such as {elsewhere[0]}) are in another split too: they are "
                "taken once, as they are annotated there"
            )
        for image in own:
            sources[image.path] = split.source
            bare_N = np.zeros(len(image), bool) if image.box_only_N is None else image.box_only_N
            chosen_N = bare_N if keep_annotated else np.ones(len(image), bool)
            labels = tuple(dataset.categories[label] for label in image.labels_N[chosen_N])
            prompts = ImagePrompts(prompts_from_boxes(image.boxes_N4[chosen_N]), labels, len(labels))
            kept = image.select(~chosen_N)
            source = SourceImage(len(tasks) + 1, _choose_name(name_file(image), split.name, names), image.path)
            tasks.append(PredictionTask(source, prompts, kept, split.name))
    annotated = sum(not len(task.prompts or ()) for task in tasks)
    if annotated == len(tasks):
        raise DataError(
            f"{dataset.root}: all objects have masks, so there is nothing to predict; predict.keep_annotated=false "
            "predicts them anew"
        )
    return PredictionPlan(tasks, dataset.categories, warnings=tuple(warnings), annotated=annotated)


def _choose_name(name: str, split: str, taken: set[str]) -> str:
    """Choose a name that no other image has: the file's, or with its split before it, or with a number behind it."""
    candidates = chain((name, f"{split}/{name}"), (f"{name}#{number}" for number in count(2)))
    chosen = next(candidate for candidate in candidates if candidate not in taken)
    taken.add(chosen)
    return chosen


def _fit(image: SourceImage, prompts: ImagePrompts, origin: str, skips: SkipCounts) -> ImagePrompts | None:
    """Check prompts against the image's size; None where the image cannot be read."""
    try:
        height, width = read_image_header(image.path).transposed_size
    except ImageFileError as error:
        skips.skip(error.reason, str(image.path))
        return None
    return fit_prompts(prompts, height=height, width=width, origin=origin)


def _explain_nothing_fits(match: NameMatch, images: Sequence[SourceImage], path: Path) -> str:
    what = f"{path}: has no prompt for any of the {len(images)} images of the source"
    if match.unknown:
        return f"{what}; {_describe_name(match.unknown[0], images)}"
    return what


def _describe_unknown(match: NameMatch, images: Sequence[SourceImage], path: Path) -> tuple[str, ...]:
    lines = [f"{path}: {_describe_name(name, images)}" for name in match.unknown[:NAMES_TOLD]]
    if len(match.unknown) > NAMES_TOLD:
        lines.append(f"{path}: {len(match.unknown) - NAMES_TOLD} more names are no image of the source")
    return tuple(lines)


def _describe_name(name: str, images: Sequence[SourceImage]) -> str:
    closest = suggest_name(name, images)
    return f"no image is called {name!r}" + (f"; did you mean '{closest}'?" if closest else "")
