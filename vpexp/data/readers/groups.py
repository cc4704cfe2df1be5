"""Which of Datumaro's annotations belong to one object.

Datumaro gives every part of an object and its box the same group number. Where a file repeats annotation ids, several
objects share a number; their boxes then tell them apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vpexp.data.readers.boxes import Box, compute_box_area, compute_intersection

_PART_TYPES = ("polygon", "mask")


@dataclass(slots=True)
class Group:
    """The annotations of one object.

    Attributes:
        parts: Polygons and masks: what the object's mask is made of.
        boxes: Its boxes.
        others: Annotations without a mask, such as points and polylines.
    """

    parts: list[Any] = field(default_factory=list)
    boxes: list[Any] = field(default_factory=list)
    others: list[Any] = field(default_factory=list)

    def add(self, annotation: Any) -> None:
        """Put an annotation where it belongs by its type."""
        kind = annotation.type.name
        (self.parts if kind in _PART_TYPES else self.boxes if kind == "bbox" else self.others).append(annotation)


def group_annotations(annotations: Sequence[Any]) -> list[Group]:
    """Gather the annotations of each object of one image.

    Annotations of the same group number and label are one object; number 0 means no group. A group with several boxes
    is several objects: each part goes to the box that holds it best.

    Args:
        annotations: Datumaro annotations of one item.
    """
    groups: dict[tuple[Any, ...], Group] = {}
    for place, annotation in enumerate(annotations):
        label = getattr(annotation, "label", None)
        key = (annotation.group, label) if annotation.group else (0, label, place)
        groups.setdefault(key, Group()).add(annotation)
    return [one for group in groups.values() for one in _split_by_boxes(group)]


def _split_by_boxes(group: Group) -> list[Group]:
    """Split a group with several boxes into one group a box."""
    if len(group.boxes) < 2 or not group.parts:
        return [group]
    boxes = [to_xyxy(box) for box in group.boxes]
    split = [Group(boxes=[box]) for box in group.boxes]
    split[0].others = group.others
    for part in group.parts:
        bounds = to_xyxy(part)
        scores = [(compute_intersection(bounds, box), -compute_box_area(box)) for box in boxes]
        split[scores.index(max(scores))].parts.append(part)
    return split


def to_xyxy(annotation: Any) -> Box:
    """Compute the bounds of an annotation of Datumaro."""
    x, y, width, height = (float(value) for value in annotation.get_bbox())
    return x, y, x + width, y + height
