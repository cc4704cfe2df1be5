"""Points and a box, in the order in which a page takes them on one object: read from a request, given to a model, described.

A proposal that is corrected is the first step: the box that the model found, with the point that it was decoded with.

All coordinates are pixels of the image as it is shown, x before y. A point names a pixel by its index; a box is the outer
edges of its pixels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MASKS = (1, 2, 3)  # of a point alone, as the model numbers its mask tokens
MOST_STEPS = 200  # far more than anybody clicks; it bounds what one request may cost


class StepError(ValueError):
    """Steps that make no sense; the message is one line."""


@dataclass(frozen=True, slots=True)
class Point:
    """A click: this pixel lies inside the object, or outside of it.

    Attributes:
        mask: which of the three masks of this point alone is meant, 1 to 3, as the model numbers them; None: the one that
            the model is asked for by its own rule. It counts where the point is the first step.
    """

    x: int
    y: int
    inside: bool
    mask: int | None = None


@dataclass(frozen=True, slots=True)
class Box:
    """A box around the object."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Found:
    """What a proposal came from: a box, and the point in its middle.

    Attributes:
        box: as the model found it.
        x: of the point; it may lie between pixels.
        y: the same.
    """

    box: Box
    x: float
    y: float


Step = Point | Box | Found


Steps = tuple[Step, ...]


def parse_steps(content: Any, height: int, width: int) -> Steps:
    """Read steps as the page sends them: ``[{"point": [x, y], "inside": true, "mask": 2}, {"box": [x0, y0, x1, y1]}]``.

    ``inside`` and ``mask`` may be left out. The first one may be a proposal: ``{"found": {"box": [x0, y0, x1, y1], "point": [x, y]}}``.

    Args:
        content: parsed JSON.
        height: rows of the image.
        width: columns of the image.

    Raises:
        StepError: what is wrong with them.
    """
    if not isinstance(content, list) or not content:
        raise StepError("steps must be a list of points and a box")
    if len(content) > MOST_STEPS:
        raise StepError(f"{len(content)} steps are more than {MOST_STEPS}")
    steps = tuple(_parse_step(entry, height, width) for entry in content)
    if sum(not isinstance(step, Point) for step in steps) > 1:
        raise StepError("an object has one box at most")
    if any(isinstance(step, Found) for step in steps[1:]):
        raise StepError("a proposal is the first step")
    return steps


def _parse_step(entry: Any, height: int, width: int) -> Step:
    if isinstance(entry, dict) and "point" in entry:
        x, y = (math.floor(value) for value in _read_numbers(entry["point"], 2))
        if not (0 <= x < width and 0 <= y < height):
            raise StepError(f"point ({x}, {y}) lies outside of the image of {width} x {height} pixels")
        mask = entry.get("mask")
        if mask is not None and (isinstance(mask, bool) or mask not in MASKS):
            raise StepError(f"mask must be one of {', '.join(map(str, MASKS))}: which of a point's three is meant")
        return Point(x, y, entry.get("inside", True) is True, None if mask is None else int(mask))
    if isinstance(entry, dict) and "box" in entry:
        box = _parse_box(entry["box"], height, width)
        if box.right - box.left < 1 or box.bottom - box.top < 1:
            raise StepError("a box must hold at least one pixel of the image")
        return box
    if isinstance(entry, dict) and isinstance(found := entry.get("found"), dict):
        box, (column, row) = _parse_box(found.get("box"), height, width), _read_numbers(found.get("point"), 2)
        if not (
            box.left <= column <= box.right
            and box.top <= row <= box.bottom
            and box.left < box.right
            and box.top < box.bottom
        ):
            raise StepError("the point of a proposal lies in its box, and that in the image")
        return Found(box, column, row)
    raise StepError("a step is a point or a box")


def _parse_box(content: Any, height: int, width: int) -> Box:
    """Read a box, its corners in any order, clipped to the image."""
    x0, y0, x1, y1 = _read_numbers(content, 4)
    left, right = np.clip(sorted((x0, x1)), 0, width).tolist()
    top, bottom = np.clip(sorted((y0, y1)), 0, height).tolist()
    return Box(left, top, right, bottom)


def _read_numbers(values: Any, count: int) -> list[float]:
    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9

    if not isinstance(values, list) or len(values) != count or not all(is_number(value) for value in values):
        raise StepError(f"expected {count} numbers")
    return [float(value) for value in values]


def build_arguments(steps: Sequence[Step]) -> dict[str, Any]:
    """Build what ``Predictor.decode`` takes for one object: ``points`` and ``point_labels``, ``boxes``, or all."""
    described = describe_steps(steps)
    arguments: dict[str, Any] = {}
    if "points" in described:
        arguments["points"] = np.array([described["points"]], dtype=np.float32)
        arguments["point_labels"] = np.array([described["point_labels"]], dtype=np.float32)
    if "box" in described:
        arguments["boxes"] = np.array([described["box"]], dtype=np.float32)
    return arguments


def describe_steps(steps: Sequence[Step]) -> dict[str, Any]:
    """Return which prompt gave a mask, as ``stage=predict`` does: ``box``, ``points`` and ``point_labels``.

    With ``mask`` where one of the three masks of the first point was chosen.
    """
    prompt: dict[str, Any] = {}
    points: list[tuple[float, float, int]] = []
    for step in steps:
        box = step.box if isinstance(step, Found) else step
        if isinstance(box, Box):
            prompt["box"] = [box.left, box.top, box.right, box.bottom]
        if not isinstance(step, Box):
            points.append((step.x, step.y, int(isinstance(step, Found) or step.inside)))
    if points:
        prompt["points"] = [[x, y] for x, y, _ in points]
        prompt["point_labels"] = [inside for *_, inside in points]
    if isinstance(steps[0], Point) and steps[0].mask is not None:
        prompt["mask"] = steps[0].mask
    return prompt


def read_found(prompt: Mapping[str, Any]) -> Found:
    """Build the first step that goes on from a proposal, of the prompt that it says it came from."""
    return Found(Box(*prompt["box"]), *prompt["points"][0])
