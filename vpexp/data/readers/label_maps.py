"""What the numbers and colours of mask images mean: dataset_meta.json, labelmap.txt, class_names.txt, Pascal VOC."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vpexp.data.numbers import read_whole
from vpexp.data.readers.index_masks import VOID, VOID_COLOR, Color, build_voc_colors, find_void
from vpexp.data.readers.json_files import load_json, read_text
from vpexp.errors import DataError

META_FILE = "dataset_meta.json"
LABEL_MAP_FILE = "labelmap.txt"
_CLASS_NAMES_FILE = "class_names.txt"
_BLACK = -1
"""What black means where the colours that are declared do not have it: background, whatever the number 0 is."""
VOC_LABEL_FILES = (META_FILE, LABEL_MAP_FILE, _CLASS_NAMES_FILE)
"""Files that say what the masks of a Pascal VOC folder mean, likeliest first."""
_BACKGROUND_NAMES = frozenset(
    {"background", "bg", "void", "ignore", "ignored", "unlabeled", "unlabelled", "unlabel", "none"}
)
_VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


@dataclass(frozen=True, slots=True)
class LabelMap:
    """The classes of mask images.

    Attributes:
        names: Number of a class -> its name, background and void included.
        colors: Colour -> number of its class; empty if none are declared.
        background: Numbers that are declared as background, whatever they are called.
        is_declared: Whether the data set says so itself, or the format's own classes stand in.
    """

    names: Mapping[int, str]
    colors: Mapping[Color, int] = field(default_factory=dict)
    background: frozenset[int] = frozenset()
    is_declared: bool = True

    def is_object(self, value: int) -> bool:
        """Say whether a declared number stands for objects, and not for background or void."""
        name = self.names.get(value)
        return name is not None and value not in self.background and not is_background_name(name)

    def is_background(self, value: int) -> bool:
        """Say whether a number stands for background or void: declared so, or 0 or void and not declared at all."""
        is_known = value in self.names or value in self.background or value in (0, find_void(self.names))
        return is_known and not self.is_object(value)

    @property
    def object_values(self) -> tuple[int, ...]:
        """List the numbers that stand for objects, in their order."""
        return tuple(sorted(value for value in self.names if self.is_object(value)))

    @property
    def categories(self) -> tuple[str, ...]:
        """List the names of the classes of objects, by their number, each name once."""
        return tuple(dict.fromkeys(self.names[value] for value in self.object_values))


def is_background_name(name: str) -> bool:
    """Say whether a class of this name is no object."""
    return name.strip("_ ").lower() in _BACKGROUND_NAMES


def read_meta_file(path: Path) -> LabelMap:
    """Read a dataset_meta.json.

    The keys of its label_map are the pixel values, so ``{"1": "Rectangle"}`` calls pixels of value 1 Rectangle. A
    label_map without colours of its own takes the colour at the place of its key, or else at its own place in the file.

    Raises:
        DataError: The file declares no labels, or declares them in a way that cannot be understood.
    """
    content = load_json(path)
    names = _read_names(content, path)
    colors = content.get("segmentation_colors") or []
    if not isinstance(colors, list):
        raise DataError(f"{path}: segmentation_colors: expected a list of [red, green, blue], found {colors!r}")
    table: dict[Color, int] = {}
    for place, value in enumerate(names):
        position = value if max(names) < len(colors) else place
        if position < len(colors) and colors[position] is not None:
            table.setdefault(_read_color(colors[position], path), value)
    background = content.get("background_label")
    if background is None:
        return LabelMap(names, table)
    number = read_whole(background)
    named = {value for value, name in names.items() if name == background}
    return LabelMap(names, table, frozenset(named if number is None else {number}))


def _read_names(content: Mapping[str, Any], path: Path) -> dict[int, str]:
    """Read the names from 'label_map' (number -> name) or 'labels' (a list)."""
    label_map, labels = content.get("label_map"), content.get("labels")
    if not label_map:
        label_map = dict(enumerate(labels)) if isinstance(labels, list) else {}
    example = 'expected a label_map such as {"0": "background", "1": "cell"}'
    if not isinstance(label_map, dict) or not label_map:
        raise DataError(f"{path}: declares no labels; {example}")
    names: dict[int, str] = {}
    for key, name in label_map.items():
        value = read_whole(key)
        if value is None or value in names:
            raise DataError(f"{path}: {example}, found {key!r} {'as a number' if value is None else 'twice'}")
        names[value] = str(name)
    return names


def _read_color(color: Any, path: Path) -> Color:
    try:
        red, green, blue = (read_whole(channel) for channel in color)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: segmentation_colors: expected [red, green, blue], found {color!r}") from error
    if red is None or green is None or blue is None:
        raise DataError(f"{path}: segmentation_colors: expected [red, green, blue], found {color!r}")
    return red, green, blue


def read_voc_label_map(root: Path) -> LabelMap:
    """Read the classes of a Pascal VOC folder: from its own files, or the twenty classes of Pascal VOC.

    Raises:
        DataError: A file of the folder that cannot be understood.
    """
    if (root / META_FILE).is_file():
        declared = read_meta_file(root / META_FILE)
    elif (root / LABEL_MAP_FILE).is_file():
        declared = _read_labelmap_file(root / LABEL_MAP_FILE)
    elif (root / _CLASS_NAMES_FILE).is_file():
        names = [line.strip() for line in _read_lines(root / _CLASS_NAMES_FILE)]
        names = [name for name in names if not name.startswith("__ignore")]
        declared = LabelMap(dict(enumerate(names)))
    else:
        declared = LabelMap(dict(enumerate(_VOC_CLASSES)), is_declared=False)
    colors = dict(declared.colors) or {color: i for color, i in build_voc_colors().items() if i in declared.names}
    colors.setdefault((0, 0, 0), _BLACK)
    colors.setdefault(VOID_COLOR, VOID)
    return LabelMap({VOID: "void", **declared.names}, colors, declared.background | {_BLACK}, declared.is_declared)


def _read_labelmap_file(path: Path) -> LabelMap:
    """Read a labelmap.txt: lines of ``name:red,green,blue:parts:actions``, numbered in their order."""
    names: dict[int, str] = {}
    colors: dict[Color, int] = {}
    for line in _read_lines(path):
        fields = line.split(":")
        number = len(names)
        names[number] = fields[0].strip()
        if len(fields) > 1 and fields[1].strip():
            colors.setdefault(_read_color([channel.strip() for channel in fields[1].split(",")], path), number)
    if not names:
        raise DataError(f"{path}: declares no labels; expected lines such as 'cell:128,0,0::'")
    return LabelMap(names, colors)


def _read_lines(path: Path) -> list[str]:
    """Read the lines of a text file, without empty ones and comments."""
    lines = read_text(path, errors="replace").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
