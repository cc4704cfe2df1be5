"""How well two boxes agree: for telling whose box an annotation is."""

Box = tuple[float, float, float, float]
"""xyxy in pixels."""

SAME_BOX_IOU = 0.5
"""Two boxes that overlap so much are taken for the same object's."""


def compute_intersection(first: Box, second: Box) -> float:
    """Compute the area that two boxes share, in square pixels."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0.0) * max(height, 0.0)


def compute_box_area(box: Box) -> float:
    """Compute the area of a box, in square pixels; 0 if its corners are swapped."""
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def compute_box_iou(first: Box, second: Box) -> float:
    """Compute the intersection over union of two boxes, 0 where both are empty."""
    shared = compute_intersection(first, second)
    union = compute_box_area(first) + compute_box_area(second) - shared
    return shared / union if union > 0 else 0.0
