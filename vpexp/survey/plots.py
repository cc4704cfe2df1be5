"""The numbers of a data set as plots: PNG files, one colour a split."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vpexp.errors import make_drawable
from vpexp.files import replacing
from vpexp.survey.measure import (
    COCO_MEDIUM,
    COCO_SMALL,
    FEWEST_PIXELS,
    compute_sides,
    count_objects_by_class,
    order_classes,
)
from vpexp.survey.survey import Survey

COLORS = {"train": "#3b6fb6", "val": "#e08a1e", "test": "#3c9d5d"}
MOST_CLASSES = 25
LABEL_LENGTH = 28
BINS = 36
MOST_SEPARATE = 60
"""Up to so many objects an image have a bar each."""
WIDTH, HEIGHT = 7.6, 4.0
"""Inches."""
DPI = 120


def draw_plots(survey: Survey, folder: Path) -> list[Path]:
    """Draw all plots as PNG files of a folder; none where there is no object.

    Returns:
        Their paths, in the order of the page.
    """
    if not survey.object_count:
        return []
    plots: dict[str, Callable[[Survey], Any]] = {
        "class_balance": _draw_classes,
        "object_sizes": _draw_object_sizes,
        "object_sizes_in_model": _draw_seen_sizes,
        "objects_per_image": _draw_objects_per_image,
        "image_sizes": _draw_image_sizes,
    }
    paths = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in plots.items():
        paths.append(folder / f"{name}.png")
        with replacing(paths[-1]) as draft:
            draw(survey).savefig(draft, dpi=DPI, format="png")
    return paths


def _build_figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _draw_classes(survey: Survey) -> Any:
    """Draw the objects of each class, one bar a split, beside each other: as shares of the split, so that they compare."""
    classes = len(survey.categories)
    order = order_classes(survey.splits, classes)[:MOST_CLASSES]
    splits = [split for split in survey.splits if split.object_count]
    figure, axes = _build_figure(WIDTH, 1.4 + len(order) * max(0.3, 0.16 * len(splits)))
    thickness = 0.8 / len(splits)
    places = np.arange(len(order))
    longest = 0.0
    for number, split in enumerate(splits):
        counts = count_objects_by_class(split, classes)[order]
        shares = 100 * counts / split.object_count
        longest = max(longest, float(shares.max()))
        bars = axes.barh(
            places + (number - (len(splits) - 1) / 2) * thickness,
            shares,
            height=thickness * 0.92,
            color=COLORS[split.name],
            label=f"{split.name} ({split.object_count:,} objects)",
        )
        axes.bar_label(bars, [f"{count:,}" for count in counts], padding=3, fontsize=7.5, color="0.35")
    axes.set_yticks(places, [_shorten(survey.categories[label]) for label in order])
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, longest * 1.12)
    more = f" (the {MOST_CLASSES} most frequent of {classes})" if classes > MOST_CLASSES else ""
    axes.set(xlabel="% of the split's objects; at the bars their number", title=f"Classes{more}")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_object_sizes(survey: Survey) -> Any:
    """Draw how large objects are in the original images."""
    sides = {split.name: np.sqrt(split.areas_M) for split in survey.splits if split.object_count}
    marks = {COCO_SMALL**0.5: "small | medium", COCO_MEDIUM**0.5: "medium | large"}
    return _draw_sides(sides, marks, "Sizes of objects in the original images", "side (root of the area), px")


def _draw_seen_sizes(survey: Survey) -> Any:
    """Draw how large objects are as the model sees them."""
    sides = {
        split.name: compute_sides(split, survey.image_size, survey.tile)
        for split in survey.splits
        if split.object_count
    }
    title = f"Sizes of objects as {survey.model} sees them"
    label = f"side, px of the {survey.shown} whose longest side becomes {survey.image_size} px"
    return _draw_sides(sides, {FEWEST_PIXELS: f"below {FEWEST_PIXELS:g} px: hardly seen"}, title, label)


def _draw_sides(sides: dict[str, Any], marks: dict[float, str], title: str, label: str) -> Any:
    """Draw a histogram of sides, with a mark where a kind of size ends."""
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    figure, axes = _build_figure(WIDTH, HEIGHT)
    every = np.concatenate(list(sides.values()))
    low = min(float(every.min()), *marks) / 1.15
    high = max(float(every.max()), *marks) * 1.15
    bins = np.geomspace(low, high, BINS)
    for name, values in sides.items():
        _draw_histogram(axes, values, bins, name)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    top = axes.get_ylim()[1] * 1.14
    axes.set_ylim(0, top)
    for place, text in marks.items():
        axes.axvline(place, color="0.45", linewidth=1, linestyle="--")
        is_far_right = place > high / 2  # its text would leave the plot
        axes.annotate(
            text,
            (place, top),
            xytext=(-3 if is_far_right else 3, -3),
            textcoords="offset points",
            ha="right" if is_far_right else "left",
            va="top",
            fontsize=8,
            color="0.35",
        )
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set(title=title, xlabel=label, ylabel="% of the split's objects")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_histogram(axes: Any, values: Any, bins: Any, split: str) -> None:
    """Draw values as an outline over a light area, as shares of the split."""
    weights = np.full(len(values), 100 / len(values))
    axes.hist(values, bins, weights=weights, histtype="stepfilled", color=COLORS[split], alpha=0.2)
    axes.hist(values, bins, weights=weights, histtype="step", color=COLORS[split], linewidth=1.6, label=split)


def _draw_objects_per_image(survey: Survey) -> Any:
    figure, axes = _build_figure(WIDTH, HEIGHT)
    splits = [split for split in survey.splits if split.image_count]
    most = max(int(split.object_counts_I.max()) for split in splits)
    bins = np.arange(0.5, most + 1.5) if most <= MOST_SEPARATE else np.linspace(0.5, most + 0.5, BINS)
    for split in splits:
        _draw_histogram(axes, split.object_counts_I, bins, split.name)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(title="Objects an image", xlabel="objects", ylabel="% of the split's images")
    axes.set_xlim(0, most + 1)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_image_sizes(survey: Survey) -> Any:
    """Draw each size of images as a circle whose area tells how many there are."""
    figure, axes = _build_figure(WIDTH, HEIGHT)
    total = survey.image_count
    longest = 1
    for split in survey.splits:
        if not split.image_count:
            continue
        sizes, counts = np.unique(split.sizes_I2, axis=0, return_counts=True)
        longest = max(longest, int(sizes.max()))
        area = 30 + 1200 * counts / total
        color = COLORS[split.name]
        axes.scatter(sizes[:, 1], sizes[:, 0], s=area, facecolor=(color, 0.15), edgecolor=color, linewidth=1.6)
        axes.scatter([], [], s=50, facecolor=(color, 0.15), edgecolor=color, linewidth=1.6, label=split.name)
    axes.plot([0, longest * 1.15], [0, longest * 1.15], color="0.75", linewidth=1, linestyle=":", zorder=0)
    axes.set(xlim=(0, longest * 1.15), ylim=(0, longest * 1.15), aspect="equal", title="Sizes of images")
    axes.set(xlabel="width, px", ylabel="height, px (larger circle: more images)")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _shorten(name: str) -> str:
    """Shorten a long name."""
    return make_drawable(name if len(name) <= LABEL_LENGTH else f"{name[: LABEL_LENGTH - 1]}…")
