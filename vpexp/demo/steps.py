"""What a person does to one object, in order: points and a box.

All coordinates are pixels of the image as it is shown, x before y. A point names a pixel by its index; a box is the outer
edges of its pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

HELD = 0.8  # share of a mask that lies inside of a box drawn around the object by hand
MOST_STEPS = 200  # far more than anybody clicks; it bounds what one request may cost


class StepError(ValueError):
    """Steps that make no sense; the message is one line."""


@dataclass(frozen=True, slots=True)
class Point:
    """A click: this pixel lies inside the object, or outside of it."""

    x: int
    y: int
    inside: bool


@dataclass(frozen=True, slots=True)
class Box:
    """A box around the object."""

    left: float
    top: float
    right: float
    bottom: float


Step = Point | Box
Steps = tuple[Step, ...]


def parse_steps(content: Any, height: int, width: int) -> Steps:
    """Read steps as the page sends them: ``[{"point": [x, y], "inside": true}, {"box": [x0, y0, x1, y1]}]``.

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
    if sum(isinstance(step, Box) for step in steps) > 1:
        raise StepError("an object has one box at most")
    return steps


def _parse_step(entry: Any, height: int, width: int) -> Step:
    if isinstance(entry, dict) and "point" in entry:
        x, y = (math.floor(value) for value in _read_numbers(entry["point"], 2))
        if not (0 <= x < width and 0 <= y < height):
            raise StepError(f"point ({x}, {y}) lies outside of the image of {width} x {height} pixels")
        return Point(x, y, inside=entry.get("inside", True) is True)
    if isinstance(entry, dict) and "box" in entry:
        x0, y0, x1, y1 = _read_numbers(entry["box"], 4)
        left, right = np.clip(sorted((x0, x1)), 0, width).tolist()
        top, bottom = np.clip(sorted((y0, y1)), 0, height).tolist()
        if right - left < 1 or bottom - top < 1:
            raise StepError("a box must hold at least one pixel of the image")
        return Box(left, top, right, bottom)
    raise StepError("a step is a point or a box")


def _read_numbers(values: Any, count: int) -> list[float]:
    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9

    if not isinstance(values, list) or len(values) != count or not all(is_number(value) for value in values):
        raise StepError(f"expected {count} numbers")
    return [float(value) for value in values]


def build_arguments(steps: Sequence[Step]) -> dict[str, NDArray[np.float32]]:
    """Build what ``Predictor.decode`` takes for one object: ``points`` and ``point_labels``, ``boxes``, or all."""
    points = [step for step in steps if isinstance(step, Point)]
    boxes = [[step.left, step.top, step.right, step.bottom] for step in steps if isinstance(step, Box)]
    arguments: dict[str, NDArray[np.float32]] = {}
    if points:
        arguments["points"] = np.array([[(point.x, point.y) for point in points]], dtype=np.float32)
        arguments["point_labels"] = np.array([[float(point.inside) for point in points]], dtype=np.float32)
    if boxes:
        arguments["boxes"] = np.array(boxes, dtype=np.float32)
    return arguments


def count_agreements(steps: Sequence[Step], mask_HW: NDArray[np.bool_]) -> int:
    """Count the points that lie on the right side of a mask, and the box if it holds the mask."""
    return sum(_agrees(step, mask_HW) for step in steps)


def _agrees(step: Step, mask_HW: NDArray[np.bool_]) -> bool:
    if isinstance(step, Point):
        return bool(mask_HW[step.y, step.x]) == step.inside
    rows, columns = slice(round(step.top), round(step.bottom)), slice(round(step.left), round(step.right))
    return bool(mask_HW[rows, columns].sum() >= HELD * max(1, mask_HW.sum()))


def describe_steps(steps: Sequence[Step]) -> dict[str, Any]:
    """Say which prompt gave a mask, as ``stage=predict`` does: ``box``, ``points`` and ``point_labels``."""
    points = [step for step in steps if isinstance(step, Point)]
    prompt: dict[str, Any] = {}
    for step in steps:
        if isinstance(step, Box):
            prompt["box"] = [step.left, step.top, step.right, step.bottom]
    if points:
        prompt["points"] = [[point.x, point.y] for point in points]
        prompt["point_labels"] = [int(point.inside) for point in points]
    return prompt
