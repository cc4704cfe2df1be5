"""The file of ``prompts=``: boxes and points by image.

    {"a.jpg": {"boxes": [[x1, y1, x2, y2]], "points": [[[x, y], [x, y]]], "point_labels": [[1, 0]], "labels": ["grape", "leaf"],
               "objects": [{"box": [x1, y1, x2, y2], "points": [[x, y], [x, y]], "point_labels": [1, 0], "label": "grape"}]}}

Each box is one prompt and each set of points is another: N boxes and M sets of points give N + M masks, boxes first.
``point_labels`` are 1 inside and 0 outside, all 1 where they are left out; ``labels`` names what each of these shows.
Each of ``objects`` is one more prompt, after them: a box, points, or both together, and its own ``label``.
All coordinates are pixels of the image as viewers show it. A box is the outer edges of its pixels; a point names a pixel.

Legend: N prompts, P points a prompt (the most of any; others are filled up).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpexp.data.folder import is_special
from vpexp.data.image_files import NOT_A_FILE
from vpexp.data.prompts import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NO_POINT, POINT_IN, POINT_OUT, Prompts
from vpexp.errors import ConfigError, DataError

DEFAULT_LABEL = "object"
KEYS = ("boxes", "points", "point_labels", "labels", "objects")
OBJECT_KEYS = ("box", "points", "point_labels", "label")
SHOWN_LENGTH = 60
LARGEST = 1e9  # pixels; finite, and no image is as large
KINDS = {"box": (BOX_TOP_LEFT, BOX_BOTTOM_RIGHT), "points": (POINT_IN, POINT_OUT)}
"""What a prompt is made of, and the labels of its points."""


@dataclass(frozen=True, slots=True)
class ImagePrompts:
    """The prompts of one image.

    Attributes:
        prompts: boxes, then sets of points, then objects.
        labels: what each of them shows.
        boxes: how many are boxes.
        objects: how many are objects.
    """

    prompts: Prompts
    labels: tuple[str, ...]
    boxes: int
    objects: int = 0

    def __len__(self) -> int:
        return len(self.prompts)

    def name_entry(self, index: int) -> str:
        """Name a prompt as the file does: ``boxes[0]``, ``points[2]``, ``objects[1]``."""
        first_object = len(self) - self.objects
        if index >= first_object:
            return f"objects[{index - first_object}]"
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
        if is_special(path):
            raise ConfigError(f"prompts={path} cannot be read: {NOT_A_FILE}")
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
        entry: boxes, points, point_labels, labels and objects.

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
        places = {kind: np.isin(labels_NP[index], labels) for kind, labels in KINDS.items()}
        box_22, points_P2 = coords_NP2[index, places["box"]], coords_NP2[index, places["points"]]
        problem = None
        if len(box_22) and not ((box_22[1] > 0).all() and (box_22[0] < limits_2).all()):
            problem = "box", "lies outside"
        elif not ((points_P2 >= 0) & (points_P2 <= limits_2)).all():
            problem = "points", "has a point outside"
        if problem:
            kind, what = problem
            shown = np.round(coords_NP2[index, places[kind]], 2).ravel().tolist()
            entry = image_prompts.name_entry(index)
            raise DataError(
                f"{origin}: {entry} {shown} {what} of the image, which is {width} x {height} (width x height)"
            )
        coords_NP2[index, places["box"]] = np.clip(box_22, 0, limits_2)
    return replace(image_prompts, prompts=Prompts(coords_NP2, labels_NP))


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
    _check_keys(repr(name), entry, KEYS)
    boxes = [_parse_box(f"{name!r}: boxes[{i}]", box) for i, box in enumerate(_get_list(name, entry, "boxes"))]
    sets = [_parse_set(f"{name!r}: points[{i}]", one) for i, one in enumerate(_get_list(name, entry, "points"))]
    signs = _parse_point_labels(name, entry, sets)
    labels = _parse_labels(name, entry, len(boxes) + len(sets))
    found = [_PromptParts(box=box) for box in boxes]
    found += [_PromptParts(points=points, signs=own) for points, own in zip(sets, signs, strict=True)]
    objects = _get_list(name, entry, "objects")
    found += [_parse_object(f"{name!r}: objects[{i}]", one) for i, one in enumerate(objects)]
    labels += tuple(parts.label for parts in found[len(labels) :])
    return ImagePrompts(_build_prompts(found), labels, len(boxes), len(objects))


@dataclass(frozen=True, slots=True)
class _PromptParts:
    """What stands in the file for one prompt."""

    box: Sequence[float] = ()
    points: Sequence[Sequence[float]] = ()
    signs: Sequence[float] = ()
    label: str = DEFAULT_LABEL

    def list_points(self) -> list[tuple[Sequence[float], float]]:
        """List its points and box corners, each with its label."""
        corners = [(self.box[:2], BOX_TOP_LEFT), (self.box[2:], BOX_BOTTOM_RIGHT)] if self.box else []
        return [*corners, *zip(self.points, self.signs, strict=True)]


def _check_keys(place: str, entry: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in entry:
        if key not in known:
            raise _MalformedError(f"{place}: unknown key '{key}' (there are: {', '.join(known)})")


def _parse_object(place: str, entry: Any) -> _PromptParts:
    """Read a box, points, or both of one object."""
    if not isinstance(entry, Mapping):
        raise _MalformedError(f'{place} must be an object as {{"box": [x1, y1, x2, y2]}}, not {_show(entry)}')
    _check_keys(place, entry, OBJECT_KEYS)
    box, points, signs, label = (entry.get(key) for key in OBJECT_KEYS)
    if box is None and points is None:
        raise _MalformedError(f"{place} has neither box nor points")
    if points is None and signs is not None:
        raise _MalformedError(f"{place} has point_labels, and no points")
    one_set = [] if points is None else _parse_set(f"{place}.points", points)
    own = [POINT_IN] * len(one_set) if signs is None else _parse_signs(f"{place}.point_labels", signs, len(one_set))
    if label is not None:
        _check_label(f"{place}.label", label)
    return _PromptParts([] if box is None else _parse_box(f"{place}.box", box), one_set, own, label or DEFAULT_LABEL)


def _build_prompts(found: Sequence[_PromptParts]) -> Prompts:
    """Bring prompts into one form, as wide as the widest of them."""
    rows = [parts.list_points() for parts in found]
    width = max([2, *[len(row) for row in rows]])
    coords_NP2 = np.zeros((len(rows), width, 2), dtype=np.float32)
    labels_NP: NDArray[np.float32] = np.full((len(rows), width), NO_POINT, dtype=np.float32)
    for index, row in enumerate(rows):
        for place, (point, label) in enumerate(row):
            coords_NP2[index, place], labels_NP[index, place] = point, label
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
    return [
        _parse_signs(f"{name!r}: point_labels[{index}]", labels, len(points))
        for index, (labels, points) in enumerate(zip(given, sets, strict=True))
    ]


def _parse_signs(place: str, labels: Any, count: int) -> list[float]:
    if not isinstance(labels, list) or len(labels) != count:
        raise _MalformedError(f"{place} must be a list of {count}, one label a point, not {_show(labels)}")
    for label in labels:
        if isinstance(label, bool) or label not in (0, 1):
            raise _MalformedError(f"{place} holds {_show(label)}: must be 1 (inside) or 0 (outside)")
    return [float(label) for label in labels]


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
        _check_label(f"{name!r}: labels[{index}]", label)
    return tuple(labels)


def _check_label(place: str, label: Any) -> None:
    if not isinstance(label, str) or not label.strip():
        raise _MalformedError(f"{place} must be a name, not {_show(label)}")


def _show(value: Any) -> str:
    """Show what stands in the file, on one line."""
    text = json.dumps(value)
    return text if len(text) <= SHOWN_LENGTH else f"{text[:SHOWN_LENGTH]}..."
