"""What a test without prompts found, as rows of a table and as pictures.

Legend: C classes.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vpexp.evaluation.instances import LIMIT, InstanceResult
from vpexp.files import replacing
from vpexp.reporting.comparison import Row, format_cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AUTO, GRID, BOXES = "auto", "grid", "boxes"
TITLES = {AUTO: "auto", GRID: "grid", BOXES: "annotated boxes"}
"""The ways to find objects that are measured: by the prompter, by a grid of points, and where they are annotated."""

ROWS = (
    *(Row(name, name) for name in ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")),
    *(Row(name, name) for name in (f"mar_{LIMIT}", "map_any_class", "map_50_any_class")),
    *(Row(name, name) for name in ("msa", "precision", "recall", "f1", "class_accuracy")),
    Row("seconds_per_image", "time an image (s)", digits=3),
)
WITHOUT_CLASSES = ("map_any_class", "map_50_any_class", "msa", "precision", "recall", "f1", "seconds_per_image")
"""Rows that a way has which gives masks no classes."""
OF_CLASSES = ("map_any_class", "map_50_any_class", "class_accuracy")
"""Rows that say nothing of a data set of one class."""
COMPARED = ("map", "map_50", "map_any_class", "msa", "f1", "class_accuracy", "seconds_per_image")
"""Rows by which the forms of a model are compared."""
DPI = 100
MOST_NUMBERS = 30
"""Classes whose confusion is shown in numbers too; of more, as colour alone."""
LONGEST_NAME = 24


def list_cells(
    columns: Mapping[str, Mapping[str, float]], names: Sequence[str], classes: int
) -> list[tuple[str, list[str]]]:
    """List rows of a table as text, a cell for each column; those that none of the columns has are left out.

    Args:
        columns: metrics by column.
        names: of the rows.
        classes: how many there are; of one, ``OF_CLASSES`` are left out.
    """
    rows = [row for row in ROWS if row.name in names and (classes > 1 or row.name not in OF_CLASSES)]
    numbers = [(row, [column.get(row.name, math.nan) for column in columns.values()]) for row in rows]
    return [
        (row.title, [format_cell(row, value) for value in values])
        for row, values in numbers
        if any(map(math.isfinite, values))
    ]


def plot_precision(results: Mapping[str, InstanceResult], marked: str) -> "Figure":
    """Plot precision by recall at an IoU of 0.5, whatever the class.

    Args:
        results: by way.
        marked: the way whose threshold is marked.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for way, result in results.items():
        axes.plot(result.curve_M3[:, 2], result.curve_M3[:, 1], label=TITLES[way], linewidth=1.5)
    if marked in results:
        metrics, threshold = results[marked].metrics, results[marked].threshold
        words = f"{TITLES[marked]}, score of at least {threshold:.2f}: F1 {metrics['f1']:.3f}"
        axes.plot(metrics["recall"], metrics["precision"], "ko", label=words)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.01), xlabel="recall", ylabel="precision")
    axes.set_title("Masks at an IoU of 0.5, whatever the class", fontsize=11, loc="left")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    return figure


def plot_confusion(confusion_CC: NDArray[np.int64], categories: Sequence[str]) -> "Figure":
    """Plot the annotated class (rows) against the one found (columns).

    Colours are shares of what is annotated of a class; in the last row, of what is found of one.

    Args:
        confusion_CC: with a last row and column of what matches nothing.
        categories: C - 1 names.
    """
    from matplotlib.figure import Figure

    count = len(confusion_CC)
    side = max(3.0, (0.55 if count <= MOST_NUMBERS else 0.18) * count)
    figure = Figure(figsize=(side + 2.2, side + 1.4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    shares_CC = confusion_CC / np.maximum(confusion_CC.sum(axis=1, keepdims=True), 1)
    shares_CC[-1] = confusion_CC[-1] / np.maximum(confusion_CC.sum(axis=0), 1)
    image = axes.imshow(shares_CC, cmap="Blues", vmin=0, vmax=1)
    names = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in categories]
    size = 9 if count <= 12 else 7
    axes.set_xticks(range(count), [*names, "missed"], rotation=90 if count > 4 else 0, fontsize=size)
    axes.set_yticks(range(count), [*names, "nothing"], fontsize=size)
    axes.set(xlabel="found", ylabel="annotated")
    if count <= MOST_NUMBERS:
        _write_numbers(axes, confusion_CC, shares_CC, size)
    figure.colorbar(image, ax=axes, shrink=0.6, label="share of the annotated; last row: of the found")
    return figure


def _write_numbers(axes: "Axes", confusion_CC: NDArray[np.int64], shares_CC: NDArray[np.floating], size: int) -> None:
    for row, column in np.argwhere(confusion_CC).tolist():
        color = "white" if shares_CC[row, column] > 0.6 else "black"
        text = str(confusion_CC[row, column])
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=size)


def save_plot(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, never by half."""
    with replacing(path) as draft:
        figure.savefig(draft, format="png")
