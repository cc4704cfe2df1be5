"""Objects out of maps whose pixels name a class: what semantic segmentation and Pascal VOC have in common.

Shapes: H W size of the image in pixels.
"""

from pathlib import Path

from vpexp.data.ledger import UNDECLARED_COLOR, UNDECLARED_VALUE, SkipLedger
from vpexp.data.masks import encode_label_map
from vpexp.data.readers.base import ObjectMask
from vpexp.data.readers.index_masks import UNKNOWN_COLOR, IndexMask, find_values, split_components
from vpexp.data.readers.label_maps import LabelMap


def has_only_background(classes_HW: IndexMask, label_map: LabelMap) -> bool:
    """Say whether a class map holds nothing but background and void."""
    return all(label_map.is_background(value) for value in find_values(classes_HW))


def extract_objects(
    classes_HW: IndexMask, label_map: LabelMap, mask_path: Path, ledger: SkipLedger, *, by_component: bool
) -> list[ObjectMask]:
    """Take the objects out of a class map; background and void are dropped, values that are not declared are skipped.

    Args:
        classes_HW: The class map.
        label_map: What its values mean.
        mask_path: Its file, for messages.
        ledger: Where undeclared values are counted.
        by_component: One object for each connected part, or one for the whole class.

    Returns:
        The objects, with labels that index the label map's categories.
    """
    objects: list[ObjectMask] = []
    for value, whole in encode_label_map(classes_HW).items():
        if label_map.is_object(value):
            parts = split_components(classes_HW == value) if by_component else [whole]
            label = label_map.categories.index(label_map.names[value])
            objects += [ObjectMask(f"{value}.{number}", part, label) for number, part in enumerate(parts, start=1)]
        elif not label_map.is_background(value):
            _skip_undeclared(value, mask_path, ledger)
    return objects


def _skip_undeclared(value: int, mask_path: Path, ledger: SkipLedger) -> None:
    if value < UNKNOWN_COLOR:
        ledger.skip(UNDECLARED_VALUE, f"{mask_path}: value {value}")
    else:
        color = value - UNKNOWN_COLOR
        ledger.skip(UNDECLARED_COLOR, f"{mask_path}: colour {color >> 16}, {color >> 8 & 255}, {color & 255}")
