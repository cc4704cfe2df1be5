"""Common semantic segmentation: images beside masks whose pixels name a class, and a dataset_meta.json.

Masks go with the images of the same names, with ``_mask`` or the like added, or both with endings of their own. Whether
their values can be class numbers at all is looked at first: blurring and JPEG mix values at every edge.

Shapes: H W size of the mask in pixels.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import PurePosixPath

import numpy as np

from vpexp.console import show_progress
from vpexp.data.annotations import SPLIT_NAMES, AnnotatedImage
from vpexp.data.folder import Folder, compose
from vpexp.data.image_files import prefer_read
from vpexp.data.readers.base import PlacedImage, Reader, Subset, gather_objects, place_image, take_unannotated
from vpexp.data.readers.label_images import (
    META_FILE,
    UNKNOWN_COLOR,
    IndexMask,
    LabelMap,
    MaskFileError,
    extract_objects,
    find_values,
    find_void,
    has_only_background,
    read_index_mask,
    read_meta_file,
)
from vpexp.data.skipped import AMBIGUOUS_IMAGE, AMBIGUOUS_MASK, MISSING_IMAGE, NO_ANNOTATIONS, SkipCounts
from vpexp.data.splits import says_split
from vpexp.errors import DataError

_IMAGES, _MASKS = "images", "masks"
BLURRED_MASKS = (
    f"mask values look blurred or compressed; save masks as lossless PNG of class numbers, or write {META_FILE}"
)
_FEW_THIN = 4
_THIN_SHARE = 0.1
_TABLE = 1 << 16
Files = Mapping[str, list[str]]
"""Name without folder of its kind and ending -> files that have it."""

_MASK_WORDS = ("mask", "seg", "label", "gt", "truth", "annot", "inst", "class")
_SAMPLE = 20
"""Masks that are looked at for what is added to their names."""

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")


def find_semantic_folders(folder: Folder) -> list[str]:
    """List the folders that hold images/ beside masks/, as names relative to the root."""
    parents = {name: PurePosixPath(name).parent for name in folder.directories_named(_MASKS)}
    images = {PurePosixPath(name).parent for name in folder.directories_named(_IMAGES)}
    return sorted("" if parent == PurePosixPath() else parent.as_posix() for parent in set(parents.values()) & images)


def describe_semantic_folders(folder: Folder) -> list[str]:
    """List the folders that show that a data set is laid out so: images and masks side by side."""
    homes = [PurePosixPath(home) for home in find_semantic_folders(folder)]
    return [name for name in folder.directories_named(_IMAGES, _MASKS) if PurePosixPath(name).parent in homes]


class SemanticReader(Reader):
    """Reads class masks; a subset is a folder with images/ and masks/, or a folder inside of both."""

    title = "common semantic segmentation"
    layout = "images beside masks"

    def __init__(self, folder: Folder, instances: str) -> None:
        """Find the subsets.

        Args:
            folder: The data set's folder.
            instances: ``components`` or ``classes``.

        Raises:
            DataError: There is no folder with images and masks.
        """
        self.notes: list[str] = []
        self.unreadable: dict[str, str] = {}
        self._folder = folder
        self._by_component = instances == "components"
        self._subsets = self._find_subsets()
        if not self._subsets:
            raise DataError(
                f"{folder.root}: no common semantic segmentation; looked for masks/ beside images/, with a {META_FILE}, "
                "in the folder itself or in one folder a split"
            )

    def _find_subsets(self) -> dict[str, tuple[str, str]]:
        """Find the subsets: name -> (folder of images, folder of masks)."""
        homes = find_semantic_folders(self._folder)
        shared = find_common_start([f"{home}/" for home in homes]).rpartition("/")[0]
        subsets: dict[str, tuple[str, str]] = {}
        for home in homes:
            images, masks = self._find_inside(home, _IMAGES), self._find_inside(home, _MASKS)
            inner = self._inner_folders(masks)
            is_split = any(says_split(PurePosixPath(home).name, split, split) for split in SPLIT_NAMES)
            if len(homes) == 1 and not is_split and inner and inner <= self._inner_folders(images):
                return {name: (f"{images}/{name}", f"{masks}/{name}") for name in sorted(inner)}
            name = home[len(shared) :].strip("/") if len(homes) > 1 else PurePosixPath(home).name
            subsets[name or "default"] = images, masks
        return subsets

    def _find_inside(self, home: str, name: str) -> str:
        """Find the folder of this name, in any case, in another one."""
        parent = PurePosixPath(home)
        return next(own for own in self._folder.directories_named(name) if PurePosixPath(own).parent == parent)

    def _inner_folders(self, directory: str) -> set[str]:
        """List the folders in a folder, none if it holds files itself."""
        if self._folder.files_in(directory):
            return set()
        below = self._folder.files_in(directory, recursive=True)
        return {PurePosixPath(name).relative_to(directory).parts[0] for name in below}

    @staticmethod
    def find_signs(folder: Folder) -> list[str]:
        """List what shows that a folder is of this format."""
        return describe_semantic_folders(folder)

    def list_subsets(self) -> Mapping[str, tuple[str, ...]]:
        """List the subsets."""
        return dict.fromkeys(self._subsets, ())

    def read_subset(self, name: str, skips: SkipCounts) -> Subset:
        """Read one subset; see `Reader`."""
        images_directory, masks_directory = self._subsets[name]
        pairs = self._pair(images_directory, masks_directory, skips)
        label_map = self._read_label_map(masks_directory, [mask for _, mask in pairs])
        images: list[AnnotatedImage] = []
        seen: set[int] = set()
        for image, mask in show_progress(pairs, f"Reading masks of {name}"):
            try:
                classes_HW = read_index_mask(self._folder.path(mask), label_map.colors)
            except MaskFileError as error:
                skips.skip(error.reason, str(error.path))
                continue
            seen.update(find_values(classes_HW))
            image_id = PurePosixPath(image).relative_to(images_directory).as_posix()
            placed = place_image(image_id, self._folder.path(image), classes_HW.shape, skips)
            one = None if placed is None else self._read_objects(placed, mask, classes_HW, label_map, skips)
            if one is not None:
                images.append(one)
        if pairs and not any(map(len, images)) and set(skips.counts) <= {NO_ANNOTATIONS}:
            self._explain_values(masks_directory, seen, label_map)
        return Subset(label_map.categories, tuple(images))

    def _pair(self, images_directory: str, masks_directory: str, skips: SkipCounts) -> list[tuple[str, str]]:
        """Pair images with masks by their names; see `align_names`."""
        listed = self._list_by_stem(images_directory), self._list_by_stem(masks_directory)
        images, masks, note = align_names(*listed)
        if note:
            self._note(note)
        pairs = []
        for stem, mask_names in ((stem, prefer_masks(names)) for stem, names in masks.items()):
            image_names = images.get(stem, [])
            barred = next((name for name in (*image_names, mask_names[0]) if name in self._folder.barred), None)
            if barred is not None:
                skips.skip(self._folder.barred[barred], str(self._folder.path(barred)))
            elif len(mask_names) > 1:
                skips.skip(AMBIGUOUS_MASK, " and ".join(mask_names[:2]))
            elif len(image_names) == 1:
                pairs.append((image_names[0], mask_names[0]))
            elif image_names:
                skips.skip(AMBIGUOUS_IMAGE, f"{mask_names[0]}: {', '.join(image_names)}")
            else:
                skips.skip(MISSING_IMAGE, f"{mask_names[0]}: no image of this name in {images_directory}")
        for stem, image_names in images.items():
            if stem not in masks:
                skips.skip(NO_ANNOTATIONS, image_names[0])
        return pairs

    def _list_by_stem(self, directory: str) -> dict[str, list[str]]:
        """List the image files of a folder by their name without folder and ending."""
        found: dict[str, list[str]] = {}
        for name in self._folder.files_in(directory, recursive=True):
            if self._folder.has_image(name):
                relative = PurePosixPath(name).relative_to(directory)
                found.setdefault(compose(relative.with_suffix("").as_posix()), []).append(name)
        return {stem: prefer_read(names) for stem, names in found.items()}

    def _read_label_map(self, masks_directory: str, masks: list[str]) -> LabelMap:
        """Read the nearest dataset_meta.json, or make names for the values that occur."""
        for parent in PurePosixPath(masks_directory).parents:
            if path := self._folder.find_to_read((parent / META_FILE).as_posix()):
                return read_meta_file(path)
        survey = ValueSurvey()
        for mask in show_progress(masks, "Looking at mask values"):
            if PurePosixPath(mask).suffix.lower() in JPEG_SUFFIXES:
                raise DataError(f"{self._folder.path(mask)}: {BLURRED_MASKS}")
            with suppress(MaskFileError):  # counted when its objects are read
                survey.add(read_index_mask(self._folder.path(mask), {}))
        values = survey.values
        if any(value >= UNKNOWN_COLOR for value in values):
            raise DataError(
                f"{self._folder.root}: the masks are coloured, and no {META_FILE} says what the colours mean; write one "
                'such as {"label_map": {"0": "background", "1": "cell"}, "segmentation_colors": [[0,0,0], [255,0,0]]}'
            )
        if survey.looks_blurred():
            raise DataError(f"{self._folder.path(masks_directory)}: {BLURRED_MASKS}")
        void = find_void(values)
        positive = {value for value in values if value > 0}
        objects = positive if positive == {void} else positive - {void}
        self._note(f"no {META_FILE}: the classes are named after their pixel values")
        background = frozenset(values - objects)
        voids = ", ".join(str(value) for value in sorted(background - {0}))
        if voids:
            self._note(f"mask value {voids} is taken as void, not as a class; a {META_FILE} can say otherwise")
        return LabelMap({value: f"class {value}" for value in sorted(objects)}, background=background)

    def _note(self, note: str) -> None:
        """Report something once, whatever the number of subsets that it is true of."""
        if note not in self.notes:
            self.notes.append(note)

    def _read_objects(
        self,
        placed: PlacedImage,
        mask: str,
        classes_HW: IndexMask,
        label_map: LabelMap,
        skips: SkipCounts,
    ) -> AnnotatedImage | None:
        """Take the objects out of one class map."""
        if has_only_background(classes_HW, label_map):
            return take_unannotated(str(placed.path), lambda: placed, skips)
        path = self._folder.path(mask)
        objects = extract_objects(classes_HW, label_map, path, skips, by_component=self._by_component)
        return gather_objects(placed, objects, skips)

    def _explain_values(self, masks_directory: str, seen: set[int], label_map: LabelMap) -> None:
        """Report that no mask holds an object, and which values there are instead."""
        declared = ", ".join(f"{value} ('{label_map.names[value]}')" for value in label_map.object_values)
        raise DataError(
            f"{self._folder.path(masks_directory)}: nothing to learn from: the masks hold only background and void "
            f"(pixel values {', '.join(str(value) for value in sorted(seen)[:8])}); the values of objects are "
            f"{declared or 'not declared'}, see {META_FILE}"
        )


class ValueSurvey:
    """Gathers the values of masks, and how their pixels lie.

    Attributes:
        values: Every value that occurs.
    """

    def __init__(self) -> None:
        self.values: set[int] = set()
        self._pixels = np.zeros(_TABLE, dtype=np.int64)
        self._squares = np.zeros(_TABLE, dtype=np.int64)

    def add(self, values_HW: IndexMask) -> None:
        """Look at one mask."""
        values = find_values(values_HW)
        self.values.update(values)
        if values[0] < 0 or values[-1] >= _TABLE:
            return
        corner_HW = values_HW[:-1, :-1]
        is_square_HW = (
            (corner_HW == values_HW[1:, :-1]) & (corner_HW == values_HW[:-1, 1:]) & (corner_HW == values_HW[1:, 1:])
        )
        self._pixels += np.bincount(values_HW.ravel(), minlength=_TABLE)
        self._squares += np.bincount(corner_HW[is_square_HW], minlength=_TABLE)

    def looks_blurred(self) -> bool:
        """Return whether most values only make thin lines.

        Blurring leaves values between those of two regions: one pixel wide along their border, never an area. Squares
        of 2 x 2 equal pixels tell them from the many small classes that a data set may really have.
        """
        seen = self._pixels > 0
        thin = int((self._squares[seen] < _THIN_SHARE * self._pixels[seen]).sum())
        return thin > _FEW_THIN and 2 * thin > int(seen.sum())


def prefer_masks(names: list[str]) -> list[str]:
    """Pass over files that are no masks where others of them are: types that are not read, and JPEGs, which show masks."""
    read = prefer_read(names)
    return [name for name in read if PurePosixPath(name).suffix.lower() not in JPEG_SUFFIXES] or read


def align_names(images: Files, masks: Files) -> tuple[Files, Files, str]:
    """Bring the names of images and masks to a common form, the one that pairs most of them.

    Names that are alike as they stand are never changed.

    Returns:
        Images and masks by their common names, and a note about what was done; an empty one where names are alike.
    """
    images = _name_whole(images, masks)
    alike = set(images) & set(masks)
    before, after = _find_addition([name for name in masks if name not in alike], set(images) - alike)
    shortened: dict[str, list[str]] = {}
    for name, files in masks.items():
        short = _take_off(name, before, after) or name
        shortened.setdefault(name if name in alike or short in alike else short, []).extend(files)
    added = [f"'{text}' {place} them" for text, place in ((before, "before"), (after, "behind")) if text]
    note = f"masks are named as their images, with {' and '.join(added)}" if added else ""
    if alike:
        return images, shortened, note
    trimmed = "masks are paired with images by what their names have in common"
    ways = [
        (images, shortened, note),
        (_trim_common(images), _trim_common(masks), trimmed),
        (_trim_common(images, start=False), _trim_common(masks, start=False), trimmed),
    ]
    return max(ways, key=lambda way: len(set(way[0]) & set(way[1])))  # the first of equals


def _name_whole(images: Files, masks: Files) -> Files:
    """Name images by their names with ending where masks are called so: ``a.jpg.png`` is of ``a.jpg``, not of ``a.png``."""
    named: dict[str, list[str]] = {}
    for name, files in images.items():
        for file in files:
            whole = f"{name}{PurePosixPath(file).suffix}"
            named.setdefault(whole if whole in masks else name, []).append(file)
    return named


def _find_addition(masks: list[str], images: set[str]) -> tuple[str, str]:
    """Find what masks' names have before and behind their images' names; two empty texts where there is nothing.

    A single pair counts only if what is added speaks of masks: any two names could be taken for one.
    """
    votes = {addition for mask in masks[:_SAMPLE] for image in images for addition in _compare(mask, image)}
    ordered = sorted(votes, key=lambda one: (len(one[0]) + len(one[1]), one))  # of equals the shortest
    pairs = Counter({one: sum(_take_off(name, *one) in images for name in masks) for one in ordered})
    for (before, after), count in pairs.most_common():
        if count > 1 or any(word in f"{before} {after}".lower() for word in _MASK_WORDS):
            return before, after
    return "", ""


def _compare(mask: str, image: str) -> list[tuple[str, str]]:
    """List what a mask's name has before and behind an image's, at most one; both names may begin with folders."""
    folder, slash, own = mask.rpartition("/")
    name = image.removeprefix(folder + slash) if image.startswith(folder + slash) else "/"
    place = own.find(name)
    if place < 0 or "/" in name:
        return []
    before, after = own[:place], own[place + len(name) :]
    return [(before, after)] if not (_runs_on(before, name) or _runs_on(name, after)) else []


def _runs_on(first: str, second: str) -> bool:
    """Return whether two texts, one behind the other, are parts of one number or word."""
    edge = first[-1:] + second[:1]
    return len(edge) == 2 and (edge.isdigit() or edge.isalpha())


def _take_off(name: str, before: str, after: str) -> str | None:
    """Take an addition off a mask's name; None where it does not have it."""
    folder, slash, own = name.rpartition("/")
    if not (own.startswith(before) and own.endswith(after) and len(own) > len(before) + len(after)):
        return None
    return folder + slash + own[len(before) : len(own) - len(after)]


def find_common_start(texts: Sequence[str]) -> str:
    """Find the longest text that all texts begin with, letter by letter."""
    first, last = min(texts, default=""), max(texts, default="")
    same = (place for place, letter in enumerate(first) if place >= len(last) or letter != last[place])
    return first[: next(same, len(first))]


def _trim_common(names: Files, *, start: bool = True) -> dict[str, list[str]]:
    """Take the common beginning and end off names: ``gt_0001, gt_0002`` become 0001 and 0002."""
    stems = list(names)
    several = len(stems) > 1
    begin = len(find_common_start(stems).rstrip("0123456789")) if several and start else 0
    end = len(find_common_start([stem[::-1] for stem in stems]).rstrip("0123456789")) if several else 0
    trimmed: dict[str, list[str]] = {}
    for stem, files in names.items():
        trimmed.setdefault(stem[begin : len(stem) - end], []).extend(files)
    return trimmed
