"""Common semantic segmentation: images beside masks whose pixels name a class, and a dataset_meta.json."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import PurePosixPath

from vpexp.data.folder import Folder, compose
from vpexp.data.image_files import prefer_read
from vpexp.data.ledger import AMBIGUOUS_IMAGE, AMBIGUOUS_MASK, MISSING_IMAGE, NO_ANNOTATIONS, SkipLedger
from vpexp.data.progress import show_progress
from vpexp.data.readers.base import PlacedImage, Subset, gather_objects, place_image, skip_unannotated
from vpexp.data.readers.class_maps import extract_objects, has_only_background
from vpexp.data.readers.index_masks import (
    UNKNOWN_COLOR,
    IndexMask,
    MaskFileError,
    find_values,
    find_void,
    read_index_mask,
)
from vpexp.data.readers.label_maps import META_FILE, LabelMap, read_meta_file
from vpexp.data.readers.mask_names import JPEG_SUFFIXES, align_names, find_common_start, prefer_masks
from vpexp.data.readers.mask_values import BLURRED_MASKS, ValueSurvey
from vpexp.data.splits import says_split
from vpexp.data.types import SPLIT_NAMES, AnnotatedImage
from vpexp.errors import DataError

_IMAGES, _MASKS = "images", "masks"


def find_semantic_folders(folder: Folder) -> list[str]:
    """List the folders that hold images/ beside masks/, as names relative to the root."""
    parents = {name: PurePosixPath(name).parent for name in folder.directories_named(_MASKS)}
    images = {PurePosixPath(name).parent for name in folder.directories_named(_IMAGES)}
    return sorted("" if parent == PurePosixPath() else parent.as_posix() for parent in set(parents.values()) & images)


def describe_semantic_folders(folder: Folder) -> list[str]:
    """List the folders that show that a data set is laid out so: images and masks side by side."""
    homes = [PurePosixPath(home) for home in find_semantic_folders(folder)]
    return [name for name in folder.directories_named(_IMAGES, _MASKS) if PurePosixPath(name).parent in homes]


class SemanticReader:
    """Reads class masks; a subset is a folder with images/ and masks/, or a folder inside of both."""

    format = "common_semantic_segmentation"

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

    def list_subsets(self) -> Mapping[str, tuple[str, ...]]:
        """List the subsets."""
        return dict.fromkeys(self._subsets, ())

    def read_subset(self, name: str, ledger: SkipLedger) -> Subset:
        """Read one subset; see `Reader`."""
        images_directory, masks_directory = self._subsets[name]
        pairs = self._pair(images_directory, masks_directory, ledger)
        label_map = self._read_label_map(masks_directory, [mask for _, mask in pairs])
        images: list[AnnotatedImage] = []
        seen: set[int] = set()
        for image, mask in show_progress(pairs, f"Reading masks of {name}"):
            try:
                classes_HW = read_index_mask(self._folder.path(mask), label_map.colors)
            except MaskFileError as error:
                ledger.skip(error.reason, str(error.path))
                continue
            seen.update(find_values(classes_HW))
            image_id = PurePosixPath(image).relative_to(images_directory).as_posix()
            placed = place_image(image_id, self._folder.path(image), classes_HW.shape, ledger)
            if placed is not None and (one := self._read_objects(placed, mask, classes_HW, label_map, ledger)):
                images.append(one)
        if pairs and not images and set(ledger.counts) <= {NO_ANNOTATIONS}:
            self._explain_values(masks_directory, seen, label_map)
        return Subset(label_map.categories, tuple(images))

    def _pair(self, images_directory: str, masks_directory: str, ledger: SkipLedger) -> list[tuple[str, str]]:
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
                ledger.skip(self._folder.barred[barred], str(self._folder.path(barred)))
            elif len(mask_names) > 1:
                ledger.skip(AMBIGUOUS_MASK, " and ".join(mask_names[:2]))
            elif len(image_names) == 1:
                pairs.append((image_names[0], mask_names[0]))
            elif image_names:
                ledger.skip(AMBIGUOUS_IMAGE, f"{mask_names[0]}: {', '.join(image_names)}")
            else:
                ledger.skip(MISSING_IMAGE, f"{mask_names[0]}: no image of this name in {images_directory}")
        for stem, image_names in images.items():
            if stem not in masks:
                skip_unannotated(image_names[0], ledger)
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
        """Say something once, whatever the number of subsets that it is true of."""
        if note not in self.notes:
            self.notes.append(note)

    def _read_objects(
        self,
        placed: PlacedImage,
        mask: str,
        classes_HW: IndexMask,
        label_map: LabelMap,
        ledger: SkipLedger,
    ) -> AnnotatedImage | None:
        """Take the objects out of one class map."""
        if has_only_background(classes_HW, label_map):
            skip_unannotated(str(placed.path), ledger)
            return None
        path = self._folder.path(mask)
        objects = extract_objects(classes_HW, label_map, path, ledger, by_component=self._by_component)
        return gather_objects(placed, objects, ledger)

    def _explain_values(self, masks_directory: str, seen: set[int], label_map: LabelMap) -> None:
        """Say that no mask holds an object, and which values there are instead."""
        declared = ", ".join(f"{value} ('{label_map.names[value]}')" for value in label_map.object_values)
        raise DataError(
            f"{self._folder.path(masks_directory)}: nothing to learn from: the masks hold only background and void "
            f"(pixel values {', '.join(str(value) for value in sorted(seen)[:8])}); the values of objects are "
            f"{declared or 'not declared'}, see {META_FILE}"
        )
