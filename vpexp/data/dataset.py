"""Loading a data set of any format: detect the format, read the splits, note what is unusual."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vpexp.data.annotation_cache import FOLDER, WORTH_KEEPING_SECONDS, KeptAnnotations
from vpexp.data.annotations import (
    SPLIT_NAMES,
    AnnotatedDataset,
    ImageTable,
    PackedImages,
    Split,
    count_objects,
    list_paths,
)
from vpexp.data.folder import Folder
from vpexp.data.readers.base import Reader
from vpexp.data.readers.coco import CocoReader
from vpexp.data.readers.datumaro import DatumaroReader
from vpexp.data.readers.json_files import (
    describe_unreadable,
    find_json_files,
    find_unreadable,
    is_main_annotation,
    name_subset,
)
from vpexp.data.readers.semantic import SemanticReader, describe_semantic_folders
from vpexp.data.readers.voc import VocReader
from vpexp.data.readers.voc_files import describe_voc_folders
from vpexp.data.shortage import advise, explain_shortage
from vpexp.data.skipped import CROWD, NO_ANNOTATIONS, SkipLedger, describe_remarks
from vpexp.data.splits import ALIASES, SplitPlan, SplitSource, divide, plan_splits, says_split
from vpexp.errors import DataError

READERS: dict[str, Callable[[Folder, str], Reader]] = {
    "coco": lambda folder, _: CocoReader(folder),
    "voc": VocReader,
    "datumaro": lambda folder, _: DatumaroReader(folder),
    "common_semantic_segmentation": SemanticReader,
}
"""Format -> what builds its reader from the folder and the choice of instances."""

INSTANCES = ("components", "classes")
CROWDS = ("skip", "keep")
FORMAT_TITLES = {
    "coco": "COCO",
    "datumaro": "Datumaro",
    "voc": "Pascal VOC",
    "common_semantic_segmentation": "common semantic segmentation",
}
"""Format -> its name for people, in the order of preference where several fit: files that name single objects first."""

_SHOWN = 4


def load_dataset(
    *,
    format: str,  # noqa: A002 (the configuration's own word)
    root: Path | str,
    train_split: str = "train",
    val_split: str = "val",
    test_split: str = "test",
    val_fraction: float = 0.2,
    seed: int = 0,
    instances: str = "components",
    strict: bool = False,
    keep_boxes: bool = False,
    splits: Collection[str] = SPLIT_NAMES,
    cache_dir: Path | None = None,
    keep_empty: bool = False,
    crowd: str = "skip",
    allow_outside: bool = False,
) -> AnnotatedDataset:
    """Read the annotations of a data set; pixels are left for later, but each image's header is looked at.

    Args:
        format: coco, voc, datumaro, common_semantic_segmentation, or auto to find out by looking.
        root: The data set's folder, or one annotation file of it.
        train_split: The data set's own name of the split to learn from.
        val_split: Its name of the split that early stopping looks at.
        test_split: Its name of the split to test on.
        val_fraction: Share of train that is set aside where there is no val split.
        seed: Seeds that division.
        instances: Masks of classes become one object for each connected part (``components``, pixels that touch at a
            corner are connected) or one for the whole class (``classes``).
        strict: Raise at the first object or image that cannot be used instead of skipping and counting it.
        keep_boxes: Keep objects that are annotated by a box alone; see ``AnnotatedImage.box_only_N``. Otherwise they are
            skipped and counted.
        splits: The splits that are needed; only their files are read.
        cache_dir: A folder of folders; in its ``annotations`` what was read is kept, and read from there as long as no file
            of the data set changes. None keeps nothing.
        keep_empty: Give a split without a single object as it is, with what was skipped, instead of raising an error.
        crowd: Regions that are annotated as crowd are skipped and counted (``skip``), or objects like others (``keep``).
        allow_outside: Use files outside of the root too, which links, absolute paths or ``..`` name. Otherwise they are
            skipped and counted.

    Raises:
        DataError: Nothing to read, nothing to learn from, a split that is not there, or (strict) a defect.
    """
    _check_choice("data.format", format, (*READERS, "auto"))
    _check_choice("data.instances", instances, INSTANCES)
    _check_choice("data.crowd", crowd, CROWDS)
    folder = Folder(root, allow_outside=allow_outside)
    requested = {"train": train_split, "val": val_split, "test": test_split}
    options = {"format": format, "instances": instances, "strict": strict, "val_fraction": val_fraction, "seed": seed}
    options |= {"keep_boxes": keep_boxes, "requested": requested, "splits": sorted(set(splits))}
    options |= {"crowd": crowd, "allow_outside": allow_outside}
    kept = KeptAnnotations(Path(cache_dir) / FOLDER, folder, options) if cache_dir is not None else None
    dataset = kept.read() if kept is not None else None
    if dataset is None:
        started = time.monotonic()
        ledger = partial(SkipLedger, strict=strict, keep_boxes=keep_boxes, keep_crowds=crowd == "keep")
        dataset = _read_dataset(
            folder, format, instances, requested, splits, val_fraction, seed, ledger, keep_empty=keep_empty
        )
        is_whole = all(len(split.images) for split in dataset.splits.values())  # what every caller may be given
        if kept is not None and is_whole and time.monotonic() - started >= WORTH_KEEPING_SECONDS:
            kept.write(dataset)
    return dataset


def _read_dataset(  # noqa: PLR0917
    folder: Folder,
    format: str,  # noqa: A002
    instances: str,
    requested: dict[str, str],
    splits: Collection[str],
    val_fraction: float,
    seed: int,
    build_ledger: Callable[[], SkipLedger],
    *,
    keep_empty: bool,
) -> AnnotatedDataset:
    notes: list[str] = []
    if format == "auto":
        detection = detect_format(folder)
        format = detection.format  # noqa: A001
        notes.append(detection.note)
    reader = READERS[format](folder, instances)
    loading = _Loading(reader, folder, build_ledger)
    notes += check_unreadable(reader, folder, requested, splits)
    plan = loading.plan(requested, splits)
    loaded = loading.build_splits(plan, val_fraction, seed, keep_empty=keep_empty)
    return AnnotatedDataset(
        format=format,
        root=folder.root,
        categories=loading.categories,
        splits=loaded,
        notes=(*notes, *reader.notes, *plan.notes, *loading.describe(loaded)),
    )


def _check_choice(key: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise DataError(f"{key}={value}: expected one of {', '.join(choices)}")


@dataclass(frozen=True, slots=True)
class _ReadSubset:
    """A subset as the reader gave it, with labels that index its own categories, and what was skipped."""

    categories: tuple[str, ...]
    images: PackedImages
    ledger: SkipLedger


class _Loading:
    """The subsets of one data set while they are read: each once, all with one list of categories."""

    def __init__(self, reader: Reader, folder: Folder, build_ledger: Callable[[], SkipLedger]) -> None:
        self._reader = reader
        self._folder = folder
        self._build_ledger = build_ledger
        self._read: dict[str, _ReadSubset] = {}
        self._index: dict[str, int] = {}

    @property
    def categories(self) -> tuple[str, ...]:
        """List the categories of all splits that were built, joined by name."""
        return tuple(self._index)

    def plan(self, requested: dict[str, str], wanted: Collection[str]) -> SplitPlan:
        """Choose the subsets, passing over val and test subsets that were published without annotations."""
        subsets = self._reader.list_subsets()
        without: list[tuple[str, str]] = []
        notes: list[str] = []
        while True:
            plan = plan_splits(subsets, requested, wanted, without=without)
            bare = [
                (split, source.subset)
                for split, source in plan.sources.items()
                if split != "train"
                and source.part == "all"
                and requested[split].lower() in ALIASES[split]
                and (split, source.subset) not in without
                and self._is_unannotated(source.subset)
            ]
            if not bare:
                return SplitPlan(plan.sources, [*notes, *plan.notes])
            without += bare
            notes += [f"'{subset}' has no annotations: it is not used as {split}" for split, subset in bare]

    def _is_unannotated(self, name: str) -> bool:
        subset = self._read_subset(name)
        return not len(subset.images) and set(subset.ledger.counts) == {NO_ANNOTATIONS}

    def _read_subset(self, name: str) -> "_ReadSubset":
        """Read a subset once."""
        if name not in self._read:
            ledger = self._build_ledger()
            subset = self._reader.read_subset(name, ledger)
            images = PackedImages(ImageTable.pack(sorted(subset.images, key=lambda image: image.image_id)))
            self._read[name] = _ReadSubset(subset.categories, images, ledger)
        return self._read[name]

    def build_splits(
        self, plan: SplitPlan, val_fraction: float, seed: int, *, keep_empty: bool = False
    ) -> dict[str, Split]:
        """Read what the plan needs and divide it.

        Raises:
            DataError: A split without a single object, unless such are kept.
        """
        splits = {}
        tables: dict[str, ImageTable] = {}
        for name, source in plan.sources.items():
            subset = self._read_subset(source.subset)
            ledger = subset.ledger
            if not len(subset.images) and not keep_empty:
                raise DataError(explain_shortage(name, source.subset, ledger, self._folder))
            if source.subset not in tables:
                table = subset.images.table
                places = [self._index.setdefault(category, len(self._index)) for category in subset.categories]
                tables[source.subset] = replace(table, labels_M=np.array(places, dtype=np.int64)[table.labels_M])
            rows = _take_part(len(subset.images), source, val_fraction, seed)
            counted = source.part != "held out" or "train" not in plan.sources
            counts = dict(ledger.counts) if counted else {}
            examples = dict(ledger.examples) if counted else {}
            splits[name] = Split(name, source.subset, PackedImages(tables[source.subset], rows), counts, examples)
        return splits

    def describe(self, splits: dict[str, Split]) -> list[str]:
        """Describe what is unusual about the data that was read."""
        used = {split.source: self._read[split.source] for split in splits.values()}
        notes = describe_remarks(subset.ledger for subset in used.values())
        unsettled = sum(subset.ledger.unsettled_turns for subset in used.values())
        if unsettled:
            notes.append(
                f"{unsettled} of the images have an EXIF orientation that their annotation's size cannot settle: turned "
                "as viewers show them"
            )
        for name, subset in used.items():
            crowds, objects = subset.ledger.counts.get(CROWD, 0), int(count_objects(subset.images).sum())
            if crowds and crowds >= objects:
                notes.append(
                    f"{crowds} of the {crowds + objects} objects of '{name}' are crowd regions: {advise(CROWD)}"
                )
        lists = {name: subset.categories for name, subset in used.items()}
        if len({frozenset(categories) for categories in lists.values()}) > 1:
            sizes = ", ".join(f"{name} {len(categories)}" for name, categories in lists.items())
            notes.append(f"the splits declare different categories ({sizes}): joined by name to {len(self._index)}")
        files: dict[str, set[Path]] = {}
        for first, second in combinations(splits.values(), 2):
            notes += [note] if (note := _note_shared(first, second, files)) else []
        return notes


def _take_part(count: int, source: SplitSource, val_fraction: float, seed: int) -> NDArray[np.int64]:
    """Choose the rows of a split among those of its subset."""
    if source.part == "all":
        return np.arange(count, dtype=np.int64)
    kept, held_out = divide(range(count), val_fraction, seed)
    return np.array(kept if source.part == "kept" else held_out, dtype=np.int64)


def _note_shared(first: Split, second: Split, files: dict[str, set[Path]]) -> str | None:
    """Report that two splits share image files; a split that stands in for another one shares them all by design.

    ``files`` remembers the files of splits, because following links takes long.
    """
    if first.source == second.source and {first.name, second.name} == {"val", "test"}:
        return None
    for split in (first, second):
        if split.name not in files:
            files[split.name] = {path.resolve() for path in list_paths(split.images)}
    shared = files[first.name] & files[second.name]
    if not shared:
        return None
    return f"in both {first.name} and {second.name}: {len(shared)} of the images (such as {min(shared).name})"


@dataclass(frozen=True, slots=True)
class Detection:
    """The format of a folder, and the one line to say about how it was found."""

    format: str
    note: str


def detect_format(folder: Folder) -> Detection:
    """Find the format of a data set by looking at its folder.

    Where several fit, the first of `FORMAT_TITLES` is taken and the others are named.

    Raises:
        DataError: No format fits; the message lists what was looked for.
    """
    signs = {
        "coco": _describe(find_json_files(folder, "coco")),
        "datumaro": _describe(find_json_files(folder, "datumaro")),
        "voc": _describe(describe_voc_folders(folder)),
        "common_semantic_segmentation": _describe(describe_semantic_folders(folder)),
    }
    fitting = [name for name in FORMAT_TITLES if signs[name]]
    if not fitting:
        unreadable = describe_unreadable(find_unreadable(folder, every=True))
        raise DataError(
            f"{folder.root}: no known format; looked for COCO (*.json with 'images' and 'annotations'), Datumaro (*.json "
            "with 'items'), Pascal VOC (JPEGImages beside SegmentationObject, SegmentationClass or Annotations) and "
            f"common semantic segmentation (images beside masks){unreadable and f'; {unreadable}'}"
        )
    chosen, *others = fitting
    note = f"format: {FORMAT_TITLES[chosen]} (found {signs[chosen]})"
    if others:
        note += (
            f"; it could also be {' or '.join(FORMAT_TITLES[o] for o in others)}: data.format={others[0]} reads it so"
        )
    return Detection(chosen, note)


def _describe(signs: list[str]) -> str:
    """Name the first signs of a format."""
    more = f" and {len(signs) - _SHOWN} more" if len(signs) > _SHOWN else ""
    return ", ".join(signs[:_SHOWN]) + more


def check_unreadable(
    reader: Reader, folder: Folder, requested: Mapping[str, str], wanted: Collection[str]
) -> list[str]:
    """Look at the files that the reader could not use.

    Without this check another split would silently take the place of one whose file is damaged.

    Args:
        reader: The data set's reader.
        folder: The data set's folder.
        requested: Split -> name of its subset, as configured.
        wanted: The splits that are needed.

    Returns:
        What to tell the user of the files that are ignored.

    Raises:
        DataError: The file of a split that is needed, unless another file holds that split.
    """
    subsets = reader.list_subsets()
    there = {split for split, name in requested.items() if any(says_split(own, split, name) for own in subsets)}
    needed = {*wanted, "val"} if "test" in wanted and "test" not in there else set(wanted)  # val stands in for test
    for file, reason in reader.unreadable.items():
        for split in sorted(needed):
            is_meant = says_split(name_subset(file), split, requested[split])
            if is_meant and (is_main_annotation(file) or split not in there):
                raise DataError(f"{folder.path(file)}: no annotations for {split}: {reason}; mend or remove the file")
    note = describe_unreadable(reader.unreadable)
    return [note] if note else []
