"""A survey as one page that needs nothing but itself: findings, tables, plots, and images with their masks.

The images are chosen evenly, so that every split and class is seen.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vpexp import visuals
from vpexp.console import build_progress, format_count
from vpexp.data.annotations import AnnotatedImage
from vpexp.data.image_files import ImageFileError
from vpexp.data.images import read_image
from vpexp.data.masks import compute_area
from vpexp.reporting.page import Picture, render, shrink
from vpexp.survey.measure import SplitMeasures, order_classes
from vpexp.survey.survey import Finding, Survey
from vpexp.survey.tables import build_skipped, build_tables

MOST_CLASSES = 200
LEVEL_NAMES = {"error": "mend this", "warning": "look at this", "note": "note"}
THREADS = 2
NAMED_CLASSES = 3

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """An image with its masks, small enough for a page; the whole picture lies in a file."""

    split: str
    name: str
    picture: Picture


def choose_images(splits: Sequence[SplitMeasures], count: int) -> list[tuple[SplitMeasures, int]]:
    """Choose images evenly by split and class: the splits take turns, and in each the classes, the rarest first.

    Args:
        splits: all splits.
        count: so many images at most.

    Returns:
        Splits and rows of images, split after split.
    """
    queues = [(split, _order_rows(split)) for split in splits]
    chosen: list[tuple[SplitMeasures, int]] = []
    while queues and len(chosen) < count:
        for queue in list(queues):
            row = next(queue[1], None)
            if row is None:
                queues.remove(queue)
            elif len(chosen) < count:
                chosen.append((queue[0], row))
    order = {id(split): place for place, split in enumerate(splits)}
    return sorted(chosen, key=lambda one: (order[id(one[0])], one[1]))


def _order_rows(split: SplitMeasures) -> Iterator[int]:
    """Order a split's images: one of each class in turn, of each class in an order without pattern."""
    labels, counts = np.unique(split.labels_M, return_counts=True)
    generator = np.random.default_rng(0)  # the same data set shows the same images
    rows_by_class = [
        generator.permutation(np.unique(split.image_of_M[split.labels_M == label])).tolist()
        for label in labels[np.argsort(counts, kind="stable")]
    ]
    taken: set[int] = set()
    while rows_by_class:
        for rows in list(rows_by_class):
            while rows and rows[-1] in taken:
                rows.pop()
            if rows:
                taken.add(rows[-1])
                yield rows.pop()
            else:
                rows_by_class.remove(rows)


def draw_images(
    chosen: Sequence[tuple[SplitMeasures, int]], categories: Sequence[str], folder: Path
) -> list[DrawnImage]:
    """Draw images with their masks into PNG files of a folder, and keep small ones for the page."""
    taken: set[str] = set()
    jobs = []
    for split, row in chosen:
        image = split.images[row]
        name = visuals.name_picture(f"{split.name}_{image.image_id.removesuffix(image.path.suffix)}", taken)
        jobs.append((split.name, image, folder / f"{name}.png"))
    executor = ThreadPoolExecutor(THREADS)
    try:
        with build_progress() as progress:
            drawn = executor.map(lambda job: _draw(job[0], job[1], job[2], categories), jobs)
            tracked = progress.track(drawn, total=len(jobs), description="drawing")
            return [one for one in tracked if one is not None]
    finally:
        executor.shutdown(cancel_futures=True)


def _draw(split: str, image: AnnotatedImage, path: Path, categories: Sequence[str]) -> DrawnImage | None:
    """Draw one image, the largest objects first, so that what lies inside of them is seen; None if it is damaged."""
    try:
        image_HW3 = read_image(image.path, image.exif_transpose)
    except ImageFileError as error:
        log.warning("not drawn: %s", error)
        return None
    order = sorted(range(len(image)), key=lambda place: -compute_area(image.masks[place]))
    colors = visuals.choose_colors(image.labels_N[order], len(categories))
    caption = _describe(image, categories)
    masks = (image.masks[place] for place in order)
    sheet = visuals.draw_prediction(image_HW3, masks, (), f"{split} {image.image_id}: {caption}", colors=colors)
    visuals.save_picture(sheet, path)
    bare = sheet.crop((0, visuals.CAPTION_HEIGHT, sheet.width, sheet.height))
    small = shrink(bare, f"{caption}, {image.width}x{image.height}")
    return DrawnImage(split, image.image_id, replace(small, link=f"{path.parent.name}/{path.name}"))


def _describe(image: AnnotatedImage, categories: Sequence[str]) -> str:
    """Describe how many objects of which classes an image has."""
    counts = Counter(categories[label] for label in image.labels_N.tolist()).most_common()
    named = ", ".join(f"{count} {name}" for name, count in counts[:NAMED_CLASSES])
    rest = len(counts) - NAMED_CLASSES
    more = f", {format_count(rest, 'more class', 'more classes')}" if rest > 0 else ""
    return f"{named}{more}"


def _order_legend(survey: Survey) -> list[tuple[str, str]]:
    """Put the classes that are seen most first; those without objects are left out."""
    legend = visuals.build_legend(survey.categories)
    seen = {label for split in survey.splits for label in split.labels_M.tolist()}
    return [legend[label] for label in order_classes(survey.splits, len(legend)) if label in seen] if legend else []


def build_page(survey: Survey, findings: Sequence[Finding], plots: Sequence[Path], images: Sequence[DrawnImage]) -> str:
    """Build the page as HTML; plots and pictures are inside it.

    Args:
        survey: the numbers.
        findings: what to look at.
        plots: PNG files.
        images: the drawn images.
    """
    return render(
        "survey.html",
        title=f"Data set {survey.name}",
        survey=survey,
        findings=findings,
        levels=LEVEL_NAMES,
        tables=build_tables(survey, MOST_CLASSES),
        plots=plots,
        images=images,
        legend=_order_legend(survey),
        skipped=build_skipped(survey),
    )
