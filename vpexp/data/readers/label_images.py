"""Mask images whose pixels name a class or an instance, by number or colour: what the values mean, and the objects in them.

The meaning comes from dataset_meta.json, labelmap.txt or class_names.txt, or is Pascal VOC's.

Shapes: H W size of the mask in pixels.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from vpexp.data.annotations import Rle, read_whole
from vpexp.data.image_files import DAMAGED_IMAGE, NOT_AN_IMAGE, ImageFileError
from vpexp.data.images import ImageFile, open_image
from vpexp.data.masks import encode_label_map
from vpexp.data.readers.base import ObjectMask
from vpexp.data.readers.json_files import load_json, read_text
from vpexp.data.skipped import DAMAGED_MASK, MISSING_IMAGE, MISSING_MASK, UNDECLARED_COLOR, UNDECLARED_VALUE, SkipCounts
from vpexp.errors import DataError

Color = tuple[int, int, int]
IndexMask = np.ndarray[tuple[int, int], np.dtype[np.int64]]
VOID = 255
WIDE_VOID = 65535
"""The void of masks with numbers above 255, where 255 is a number like any other."""

UNKNOWN_COLOR = 1 << 32
"""Colours that no table declares get values from here on: this number plus the colour as 0xRRGGBB. Masks that hold larger
numbers themselves are not read."""

VOID_COLOR: Color = (224, 224, 192)
"""Pascal VOC's colour of borders and difficult regions, its palette's entry 255."""

FRACTIONS = "mask values are no whole numbers"
LARGE_NUMBERS = "mask values of 2**32 and more"
WIDE_COLOURS = "mask colours of more than 8 bits"
SEVERAL_PAGES = "mask file has several pages"
_REASONS = {DAMAGED_IMAGE: DAMAGED_MASK, NOT_AN_IMAGE: DAMAGED_MASK, MISSING_IMAGE: MISSING_MASK}
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=np.int64)
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


class MaskFileError(DataError):
    """A mask image that cannot be used; ``reason`` says why in a few words, for counting."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


def find_void(values: Iterable[int]) -> int:
    """Find the number that means void among the values of masks."""
    return WIDE_VOID if any(VOID < value < UNKNOWN_COLOR for value in values) else VOID


def build_voc_colors() -> dict[Color, int]:
    """Build Pascal VOC's colour table: the bits of an index, dealt out to red, green and blue from the top bit down."""
    colors = {}
    for index in range(256):
        red = green = blue = 0
        rest = index
        for bit in range(7, -1, -1):
            red |= (rest & 1) << bit
            green |= (rest >> 1 & 1) << bit
            blue |= (rest >> 2 & 1) << bit
            rest >>= 3
        colors[red, green, blue] = index
    return colors


def read_index_mask(path: Path, colors: Mapping[Color, int], *, of_instances: bool = False) -> IndexMask:
    """Read a mask image as numbers.

    Grey and bilevel images hold the numbers themselves, whatever their type, as long as all are whole. A palette image
    holds them too, unless all its colours are in the table and tell its numbers apart: then the table decides, because tools
    that compress images renumber palettes. A colour image is looked up in the table; if it is grey all over and the table does not have its
    colours, its grey values are the numbers.

    Args:
        path: The mask image.
        colors: Colour -> number.
        of_instances: Each number is a thing of its own, whatever else has its colour; classes may have several numbers.

    Returns:
        int64 [H, W]; negative numbers are kept. A colour that is not in the table becomes `UNKNOWN_COLOR` + 0xRRGGBB.

    Raises:
        MaskFileError: The file is missing or damaged, has several pages, or holds what are no numbers of things.
    """
    try:
        with open_image(path) as file:
            if file.pages_left_out or file.is_joined:
                raise MaskFileError(path, SEVERAL_PAGES)
            return _read_values(path, file, colors, of_instances=of_instances)
    except ImageFileError as error:
        raise MaskFileError(path, _REASONS.get(error.reason, f"mask: {error.reason}")) from error


def _read_values(path: Path, file: ImageFile, colors: Mapping[Color, int], *, of_instances: bool) -> IndexMask:
    """Read the numbers of an open mask image."""
    picture = file.picture
    if picture is not None and picture.mode == "P":
        return _read_palette(picture, colors, of_instances=of_instances)
    values = file.read_numbers()
    if values.ndim > 2 and (values.shape[2] == 2 or (file.is_wide and (values[:, :, :3] == values[:, :, :1]).all())):
        values = values[:, :, 0]  # grey with alpha
    if values.ndim == 2:
        return _check_numbers(path, values)
    if file.is_wide:
        raise MaskFileError(path, WIDE_COLOURS)
    return _look_up(file.read_colours().astype(np.int64), colors)


def _check_numbers(path: Path, values_HW: NDArray[Any]) -> IndexMask:
    """Check that numbers are whole, and not so large that they may be colours."""
    if values_HW.dtype.kind == "f" and not (np.isfinite(values_HW).all() and (values_HW == np.rint(values_HW)).all()):
        raise MaskFileError(path, FRACTIONS)
    if not -UNKNOWN_COLOR < int(values_HW.min()) <= int(values_HW.max()) < UNKNOWN_COLOR:
        raise MaskFileError(path, LARGE_NUMBERS)
    return values_HW.astype(np.int64)


def _look_up(pixels_HW3: NDArray[np.int64], colors: Mapping[Color, int]) -> IndexMask:
    """Look colours up in the table."""
    packed_HW = pixels_HW3[:, :, 0] << 16 | pixels_HW3[:, :, 1] << 8 | pixels_HW3[:, :, 2]
    used = find_values(packed_HW)
    known = {_pack(color): index for color, index in colors.items()}
    is_grey = all(value % 0x010101 == 0 for value in used)
    if is_grey and not set(used) <= set(known):
        return packed_HW & 0xFF
    table = np.array([known.get(value, UNKNOWN_COLOR + value) for value in used], dtype=np.int64)
    return table[np.searchsorted(np.array(used), packed_HW)]


def _read_palette(image: Image.Image, colors: Mapping[Color, int], *, of_instances: bool) -> IndexMask:
    """Read a palette image: its indices, or what the colours stand for if all of them are known and tell indices apart."""
    indices_HW = np.asarray(image).astype(np.int64)
    palette = image.getpalette("RGB") or []
    used = find_values(indices_HW)
    own = {
        index: (palette[3 * index], palette[3 * index + 1], palette[3 * index + 2])
        for index in used
        if 3 * index + 2 < len(palette)
    }
    distinct = set(own.values())
    is_telling = len(distinct) == len(used) if of_instances else len(distinct) > 1 or len(used) == 1
    if len(own) < len(used) or not distinct <= set(colors) or not is_telling:
        return indices_HW
    table = np.arange(256)
    for index, color in own.items():
        table[index] = colors[color]
    return table[indices_HW]


def _pack(color: Color) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def find_values(values_HW: IndexMask) -> list[int]:
    """List the different values of an array, sorted; faster than sorting every pixel where neighbours are equal."""
    flat = values_HW.ravel()
    starts = np.concatenate([[True], flat[1:] != flat[:-1]])
    return [int(value) for value in np.unique(flat[starts])]


def split_components(mask_HW: NDArray[np.bool_]) -> list[Rle]:
    """Split a mask into its connected parts; pixels that touch at a corner are connected.

    Returns:
        One mask a part, in the order in which the rows meet them.
    """
    parts_HW, _ = ndimage.label(mask_HW, structure=_EIGHT_NEIGHBOURS)
    return [rle for value, rle in encode_label_map(parts_HW).items() if value]


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
        """Return whether a declared number stands for objects, and not for background or void."""
        name = self.names.get(value)
        return name is not None and value not in self.background and not is_background_name(name)

    def is_background(self, value: int) -> bool:
        """Return whether a number stands for background or void: declared so, or 0 or void and not declared at all."""
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
    """Return whether a class of this name is no object."""
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


def has_only_background(classes_HW: IndexMask, label_map: LabelMap) -> bool:
    """Return whether a class map holds nothing but background and void."""
    return all(label_map.is_background(value) for value in find_values(classes_HW))


def extract_objects(
    classes_HW: IndexMask, label_map: LabelMap, mask_path: Path, skips: SkipCounts, *, by_component: bool
) -> list[ObjectMask]:
    """Take the objects out of a class map; background and void are dropped, values that are not declared are skipped.

    Args:
        classes_HW: The class map.
        label_map: What its values mean.
        mask_path: Its file, for messages.
        skips: Where undeclared values are counted.
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
            _skip_undeclared(value, mask_path, skips)
    return objects


def _skip_undeclared(value: int, mask_path: Path, skips: SkipCounts) -> None:
    if value < UNKNOWN_COLOR:
        skips.skip(UNDECLARED_VALUE, f"{mask_path}: value {value}")
    else:
        color = value - UNKNOWN_COLOR
        skips.skip(UNDECLARED_COLOR, f"{mask_path}: colour {color >> 16}, {color >> 8 & 255}, {color & 255}")
