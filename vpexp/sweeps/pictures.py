"""A sweep in two pictures: a map of two keys, and parallel coordinates of all of them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vpexp.errors import make_drawable
from vpexp.sweeps.naming import format_value, shorten
from vpexp.sweeps.summary import JobResult, SweepSummary

COLORS = "viridis"
INCHES_A_CELL = 1.1
LIGHT = 0.6  # share of the range above which dark text is readable


def draw_pictures(summary: SweepSummary, folder: Path) -> list[Path]:
    """Draw ``heat_map.png`` where two keys vary, and ``parallel_coordinates.png``; nothing where no job has a number."""
    rated = [job for job in summary.jobs if job.status == "FINISHED" and math.isfinite(job.objective)]
    if not rated:
        return []
    drawn = [_draw_coordinates(summary, rated, folder / "parallel_coordinates.png")]
    if len(summary.record.varying) == 2:
        drawn.append(_draw_heat_map(summary, rated, folder / "heat_map.png"))
    return drawn


def sort_values(values: Sequence[str]) -> list[str]:
    """Sort what a key was given: numbers by size, words by the alphabet."""
    different = set(values)
    return sorted(different, key=lambda value: (0, float(value), "") if _is_number(value) else (1, 0.0, value))


def _draw_heat_map(summary: SweepSummary, jobs: Sequence[JobResult], path: Path) -> Path:
    import numpy as np
    from matplotlib.figure import Figure

    row_key, column_key = summary.record.varying
    rows = sort_values([job.values[row_key] for job in jobs])
    columns = sort_values([job.values[column_key] for job in jobs])
    grid = np.full((len(rows), len(columns)), np.nan)
    for job in jobs:
        grid[rows.index(job.values[row_key]), columns.index(job.values[column_key])] = job.objective
    low, high = float(np.nanmin(grid)), float(np.nanmax(grid))
    figure = Figure(figsize=(2.2 + INCHES_A_CELL * len(columns), 1.6 + 0.8 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(grid, cmap=COLORS, aspect="auto")
    for row, column in np.ndindex(*grid.shape):
        value = grid[row, column]
        text = "-" if np.isnan(value) else f"{value:.4f}"
        dark = not np.isnan(value) and (value - low) > LIGHT * (high - low)
        axes.text(column, row, text, ha="center", va="center", color="black" if dark or text == "-" else "white")
    row_label, column_label = map(make_drawable, shorten([row_key, column_key]))
    axes.set_xticks(range(len(columns)), [_name(value) for value in columns])
    axes.set_yticks(range(len(rows)), [_name(value) for value in rows])
    axes.set(xlabel=column_label, ylabel=row_label, title=make_drawable(summary.metric))
    figure.colorbar(image)
    figure.savefig(path, dpi=120)
    return path


def _draw_coordinates(summary: SweepSummary, jobs: Sequence[JobResult], path: Path) -> Path:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    keys = summary.record.varying
    scales = [sort_values([job.values.get(key, "") for job in jobs]) for key in keys]
    objectives = [job.objective for job in jobs]
    low, high = min(objectives), max(objectives)
    figure = Figure(figsize=(2.4 + 1.8 * len(keys), 4.2), layout="constrained")
    axes = figure.add_subplot()
    for job in sorted(jobs, key=lambda job: job.objective):
        share = 0.5 if high == low else (job.objective - low) / (high - low)
        heights = [_place(job.values.get(key, ""), scale) for key, scale in zip(keys, scales, strict=True)]
        best = job is summary.best
        axes.plot(
            [*heights, share],
            color=colormaps[COLORS](share),
            linewidth=3 if best else 1.4,
            marker="o",
            alpha=1 if best else 0.75,
        )
    for place, scale in enumerate(scales):
        _label(axes, place, [(_place(value, scale), _name(value)) for value in scale])
    _label(axes, len(keys), [(0.0, f"{low:.4f}"), (1.0, f"{high:.4f}")] if high > low else [(0.5, f"{low:.4f}")])
    axes.set_xticks(range(len(keys) + 1), [make_drawable(name) for name in (*shorten(keys), summary.metric)])
    axes.set_xlim(-0.3, len(keys) + 0.5)
    axes.set_yticks([])
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.set_title(f"{len(jobs)} jobs")
    figure.savefig(path, dpi=120)
    return path


def _name(value: str) -> str:
    return make_drawable(format_value(value))


def _label(axes: Any, place: int, marks: Sequence[tuple[float, str]]) -> None:
    axes.axvline(place, color="0.8", linewidth=1, zorder=0)
    for height, text in marks:
        axes.annotate(text, (place, height), xytext=(5, 4), textcoords="offset points", fontsize=9)


def _place(value: str, scale: Sequence[str]) -> float:
    return 0.5 if len(scale) == 1 else scale.index(value) / (len(scale) - 1)


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False
