"""The file of ``prompts=``: boxes and points by image.

    {"a.jpg": {"boxes": [[x1, y1, x2, y2]], "points": [[[x, y], [x, y]]], "point_labels": [[1, 0]], "labels": ["grape", "leaf"]}}

Each box is one prompt and each set of points is another: N boxes and M sets of points give N + M masks, boxes first.
``point_labels`` are 1 inside and 0 outside, all 1 where they are left out; ``labels`` names what each prompt shows.
All coordinates are pixels of the image as viewers show it. A box is the outer edges of its pixels; a point names a pixel.

Legend: N prompts, P points a prompt (the most of any; others are filled up).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpexp.data.prompts import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NO_POINT, Prompts
from vpexp.errors import ConfigError, DataError

DEFAULT_LABEL = "object"
KEYS = ("boxes", "points", "point_labels", "labels")
SHOWN_LENGTH = 60
LARGEST = 1e9  # pixels; finite, and no image is as large


@dataclass(frozen=True, slots=True)
class ImagePrompts:
    """The prompts of one image.

    Attributes:
        prompts: boxes, then sets of points.
        labels: what each of them shows.
        boxes: how many are boxes.
    """

    prompts: Prompts
    labels: tuple[str, ...]
    boxes: int

    def __len__(self) -> int:
        return len(self.prompts)

    def name_entry(self, index: int) -> str:
        """Name a prompt as the file does: ``boxes[0]``, ``points[2]``."""
        return f"boxes[{index}]" if index < self.boxes else f"points[{index - self.boxes}]"


def read_prompt_file(path: Path) -> dict[str, ImagePrompts]:
    """Read the prompts of all images.

    Returns:
        Prompts by the image's name as the file writes it; images with empty lists included.

    Raises:
        ConfigError: there is no such file.
        DataError: it is no JSON, or an entry is malformed: file, image and entry are named.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_refuse_repeated)
    except FileNotFoundError:
        raise ConfigError(
            f"prompts={path} does not exist: give a JSON file of boxes and points, or prompts=grid"
        ) from None
    except OSError as error:
        raise ConfigError(f"prompts={path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no readable JSON: {str(error) or 'nested too deeply'}") from error
    if not isinstance(content, dict):
        raise DataError(f'{path}: must hold prompts by image, as {{"a.jpg": {{"boxes": [[x1, y1, x2, y2]]}}}}')
    try:
        return {name: _parse_image(name, entry) for name, entry in content.items()}
    except _MalformedError as error:
        raise DataError(f"{path}: {error}") from error


def parse_prompts(name: str, entry: Mapping[str, Any]) -> ImagePrompts:
    """Parse the prompts of one image, as JSON holds them.

    Args:
        name: of the image, for errors.
        entry: boxes, points, point_labels and labels.

    Raises:
        DataError: the entry is malformed.
    """
    try:
        return _parse_image(name, entry)
    except _MalformedError as error:
        raise DataError(str(error)) from error


def fit_prompts(image_prompts: ImagePrompts, *, height: int, width: int, origin: str) -> ImagePrompts:
    """Check prompts against the size of their image, and cut boxes at its edges.

    Args:
        image_prompts: as read.
        height: rows of the image.
        width: columns of the image.
        origin: the file and image, for errors.

    Raises:
        DataError: a box lies wholly outside of the image, or a point does.
    """
    coords_NP2 = image_prompts.prompts.coords_NP2.copy()
    labels_NP = image_prompts.prompts.labels_NP
    limits_2 = np.array([width, height], dtype=np.float32)
    for index in range(len(image_prompts)):
        used = labels_NP[index] != NO_POINT
        inside = ((coords_NP2[index, used] >= 0) & (coords_NP2[index, used] <= limits_2)).all()
        if index < image_prompts.boxes:
            corners = coords_NP2[index, :2]
            inside = (corners[1] > 0).all() and (corners[0] < limits_2).all()
            coords_NP2[index, :2] = np.clip(corners, 0, limits_2)
        if not inside:
            shown = np.round(image_prompts.prompts.coords_NP2[index, used], 2).ravel().tolist()
            what = "lies outside" if index < image_prompts.boxes else "has a point outside"
            entry = image_prompts.name_entry(index)
            raise DataError(
                f"{origin}: {entry} {shown} {what} of the image, which is {width} x {height} (width x height)"
            )
    return ImagePrompts(Prompts(coords_NP2, labels_NP), image_prompts.labels, image_prompts.boxes)


class _MalformedError(ValueError):
    """What is wrong with an entry; the message names image and entry."""


def _refuse_repeated(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; the standard reader would silently keep the last of two equal keys."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r} stands in one object twice")
    return content


def _parse_image(name: str, entry: Any) -> ImagePrompts:
    if not isinstance(entry, Mapping):
        raise _MalformedError(f"{name!r} must hold lists of boxes or points, not {_show(entry)}")
    for key in entry:
        if key not in KEYS:
            raise _MalformedError(f"{name!r}: unknown key '{key}' (there are: {', '.join(KEYS)})")
    boxes = [_parse_box(f"{name!r}: boxes[{i}]", box) for i, box in enumerate(_get_list(name, entry, "boxes"))]
    sets = [_parse_set(f"{name!r}: points[{i}]", one) for i, one in enumerate(_get_list(name, entry, "points"))]
    signs = _parse_point_labels(name, entry, sets)
    labels = _parse_labels(name, entry, len(boxes) + len(sets))
    return ImagePrompts(_build_prompts(boxes, sets, signs), labels, len(boxes))


def _build_prompts(
    boxes: Sequence[Sequence[float]], sets: Sequence[Sequence[Sequence[float]]], signs: Sequence[Sequence[float]]
) -> Prompts:
    """Bring boxes and sets of points into one form, as wide as the widest of them."""
    count = len(boxes) + len(sets)
    width = max([2, *[len(one) for one in sets]])
    coords_NP2 = np.zeros((count, width, 2), dtype=np.float32)
    labels_NP: NDArray[np.float32] = np.full((count, width), NO_POINT, dtype=np.float32)
    for index, box in enumerate(boxes):
        coords_NP2[index, :2] = np.reshape(box, (2, 2))
        labels_NP[index, :2] = (BOX_TOP_LEFT, BOX_BOTTOM_RIGHT)
    for index, (points, point_signs) in enumerate(zip(sets, signs, strict=True), start=len(boxes)):
        coords_NP2[index, : len(points)] = points
        labels_NP[index, : len(points)] = point_signs
    return Prompts(coords_NP2, labels_NP)


def _get_list(name: str, entry: Mapping[str, Any], key: str) -> list[Any]:
    values = entry.get(key)
    if values is None:
        return []
    if not isinstance(values, list):
        raise _MalformedError(f"{name!r}: {key} must be a list, not {_show(values)}")
    return values


def _parse_box(place: str, box: Any) -> list[float]:
    if not isinstance(box, list) or len(box) != 4:
        raise _MalformedError(f"{place} must be [x1, y1, x2, y2], not {_show(box)}")
    x1, y1, x2, y2 = corners = [_parse_number(place, value) for value in box]
    if x2 <= x1 or y2 <= y1:
        raise _MalformedError(f"{place} {_show(box)} is empty: x2 must be greater than x1, and y2 than y1")
    return corners


def _parse_set(place: str, points: Any) -> list[list[float]]:
    if not isinstance(points, list) or not points or not all(isinstance(point, list) for point in points):
        raise _MalformedError(f"{place} must be a list of points [[x, y], ...], not {_show(points)}")
    for index, point in enumerate(points):
        if len(point) != 2:
            raise _MalformedError(f"{place}[{index}] must be [x, y], not {_show(point)}")
    return [[_parse_number(f"{place}[{index}]", value) for value in point] for index, point in enumerate(points)]


def _parse_number(place: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _MalformedError(f"{place} holds {_show(value)}, which is no number")
    if not abs(value) <= LARGEST:  # NaN is not
        raise _MalformedError(f"{place} holds {_show(value)}, which is no place in an image")
    return float(np.float32(value))


def _parse_point_labels(name: str, entry: Mapping[str, Any], sets: Sequence[Sequence[Any]]) -> list[list[float]]:
    """Read 1 (inside) or 0 (outside) for every point."""
    if entry.get("point_labels") is None:
        return [[1.0] * len(points) for points in sets]
    given = _get_list(name, entry, "point_labels")
    if len(given) != len(sets):
        raise _MalformedError(f"{name!r}: point_labels has {len(given)} lists, and points has {len(sets)}")
    for index, (labels, points) in enumerate(zip(given, sets, strict=True)):
        place = f"{name!r}: point_labels[{index}]"
        if not isinstance(labels, list) or len(labels) != len(points):
            raise _MalformedError(f"{place} must be a list of {len(points)}, one label a point, not {_show(labels)}")
        for label in labels:
            if isinstance(label, bool) or label not in (0, 1):
                raise _MalformedError(f"{place} holds {_show(label)}: must be 1 (inside) or 0 (outside)")
    return [[float(label) for label in labels] for labels in given]


def _parse_labels(name: str, entry: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Read what each prompt shows."""
    if entry.get("labels") is None:
        return (DEFAULT_LABEL,) * count
    labels = _get_list(name, entry, "labels")
    if len(labels) != count:
        raise _MalformedError(
            f"{name!r}: labels has {len(labels)} names for {count} prompts (boxes, then sets of points)"
        )
    for index, label in enumerate(labels):
        if not isinstance(label, str) or not label.strip():
            raise _MalformedError(f"{name!r}: labels[{index}] must be a name, not {_show(label)}")
    return tuple(labels)


def _show(value: Any) -> str:
    """Show what stands in the file, on one line."""
    text = json.dumps(value)
    return text if len(text) <= SHOWN_LENGTH else f"{text[:SHOWN_LENGTH]}..."
