"""What ``stage=predict`` has to do: the images of a source, and the prompts of each, checked before a model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vpexp.data.images import ImageFileError, read_image_header
from vpexp.data.ledger import SkipLedger
from vpexp.data.sources import NameMatch, SourceImage, match_names, suggest_name
from vpexp.errors import DataError
from vpexp.inference.prompt_file import DEFAULT_LABEL, ImagePrompts, fit_prompts, read_prompt_file

NAMES_TOLD = 3


@dataclass(frozen=True, slots=True)
class PredictionTask:
    """An image to predict on.

    Attributes:
        image: the file.
        prompts: None for a grid, which is made once the image's size is known.
    """

    image: SourceImage
    prompts: ImagePrompts | None


@dataclass(frozen=True, slots=True)
class PredictionPlan:
    """All that is to do.

    Attributes:
        tasks: the images, in the order of the source.
        categories: what the prompts show, in the order of their first appearance.
        without_prompts: images of the source that the file says nothing about, or gives no prompt.
        warnings: lines about names in the file that no image has.
    """

    tasks: list[PredictionTask]
    categories: tuple[str, ...]
    without_prompts: int = 0
    warnings: tuple[str, ...] = ()


def plan_grid(images: Sequence[SourceImage]) -> PredictionPlan:
    """Plan a grid of points on every image."""
    return PredictionPlan([PredictionTask(image, None) for image in images], (DEFAULT_LABEL,))


def plan_prompts(images: Sequence[SourceImage], path: Path, ledger: SkipLedger) -> PredictionPlan:
    """Give each image the prompts that a file has for it.

    Args:
        images: all images of the source.
        path: the file of prompts.
        ledger: counts images whose header cannot be read.

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
            prompts = _fit(image, by_name[name], f"{path}: {name!r}", ledger)
            tasks += [PredictionTask(image, prompts)] if prompts else []
    labels = dict.fromkeys(label for task in tasks if task.prompts for label in task.prompts.labels)
    warnings = _describe_unknown(match, images, path)
    return PredictionPlan(tasks, tuple(labels), len(images) - len(given), warnings)


def _fit(image: SourceImage, prompts: ImagePrompts, origin: str, ledger: SkipLedger) -> ImagePrompts | None:
    """Check prompts against the image's size; None where the image cannot be read."""
    try:
        height, width = read_image_header(image.path).transposed_size
    except ImageFileError as error:
        ledger.skip(error.reason, str(image.path))
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
