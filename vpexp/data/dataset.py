"""Loading a data set of any format: detect the format, read the splits, note what is unusual."""

import inspect
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpexp.config.schema import DataConfig
from vpexp.console import format_count
from vpexp.data.annotation_cache import FOLDER, WORTH_KEEPING_SECONDS, KeptAnnotations
from vpexp.data.annotations import (
    SPLIT_NAMES,
    AnnotatedDataset,
    ImageTable,
    PackedImages,
    Split,
    count_objects,
    list_places,
)
from vpexp.data.detect import AUTO, detect_format, get_reader
from vpexp.data.folder import Folder
from vpexp.data.readers.base import Reader
from vpexp.data.readers.json_files import (
    describe_unreadable,
    is_main_annotation,
    name_subset,
)
from vpexp.data.skipped import CROWD, NO_ANNOTATIONS, SkipCounts, advise, describe_remarks, explain_shortage
from vpexp.data.splits import ALIASES, SplitPlan, SplitSource, divide, plan_splits, says_split
from vpexp.errors import ConfigError, DataError
from vpexp.registry import FORMATS, load_target

PREPARED = {
    "wgisd": "scripts/prepare_wgisd lays out a clone of https://github.com/thsant/wgisd",
    "trashcan": "scripts/prepare_trashcan lays out https://conservancy.umn.edu/handle/11299/214865, unpacked",
}
"""What makes the data sets that have a group of their own."""


def load_dataset(
    settings: DataConfig,
    *,
    seed: int = 0,
    splits: Collection[str] = SPLIT_NAMES,
    keep_boxes: bool = False,
    keep_empty: bool = False,
    cache_dir: Path | None = None,
) -> AnnotatedDataset:
    """Read the annotations of a data set; pixels are left for later, but each image's header is looked at.

    Args:
        settings: the section ``data``; ``root`` is the data set's folder, or one annotation file of it.
        seed: Seeds the division of train where there is no val split.
        splits: The splits that are needed; only their files are read.
        keep_boxes: Keep objects that are annotated by a box alone; see ``AnnotatedImage.box_only_N``. Otherwise they are
            skipped and counted.
        keep_empty: Give a split without a single object as it is, with what was skipped, instead of raising an error.
        cache_dir: A folder of folders; in its ``annotations`` what was read is kept, and read from there as long as no file
            of the data set changes. None keeps nothing; nor is kept what a reader of the user's own has read.

    Raises:
        ConfigError: A reader of the user's own cannot be imported, or does not take ``data.options``.
        DataError: Nothing to read, nothing to learn from, a split that is not there, or (strict) a defect.
    """
    if settings._target_ is None and settings.format not in (*FORMATS, AUTO):
        raise DataError(f"data.format={settings.format}: expected one of {', '.join((*FORMATS, AUTO))}")
    if settings.root is None:
        raise ConfigError(
            f"data.root is not set: say where the data set lies, data.root=<folder> (data={settings.name})"
        )
    folder = Folder(Path(settings.root).expanduser(), allow_outside=settings.allow_outside)
    kept = None
    if cache_dir is not None and settings._target_ is None:
        same = ("format", "instances", "strict", "val_fraction", "crowd", "unannotated", "allow_outside")
        options = {name: getattr(settings, name) for name in same} | {"seed": seed, "keep_boxes": keep_boxes}
        options |= {"requested": _list_requested(settings), "splits": sorted(set(splits))}
        kept = KeptAnnotations(Path(cache_dir) / FOLDER, folder, options)
    dataset = kept.read() if kept is not None else None
    if dataset is None:
        started = time.monotonic()
        skips = partial(
            SkipCounts,
            strict=settings.strict,
            keep_boxes=keep_boxes,
            keep_crowds=settings.crowd == "keep",
            keep_unannotated=settings.unannotated == "keep",
        )
        dataset = _read_dataset(folder, settings, seed, splits, skips, keep_empty=keep_empty)
        is_whole = all(split.object_count for split in dataset.splits.values())  # what every caller may be given
        if kept is not None and is_whole and time.monotonic() - started >= WORTH_KEEPING_SECONDS:
            kept.write(dataset)
    return dataset


def _list_requested(settings: DataConfig) -> dict[str, str]:
    """List the data set's own name of each split."""
    return {"train": settings.train_split, "val": settings.val_split, "test": settings.test_split}


def _read_dataset(
    folder: Folder,
    settings: DataConfig,
    seed: int,
    splits: Collection[str],
    build_skips: Callable[[], SkipCounts],
    *,
    keep_empty: bool,
) -> AnnotatedDataset:
    notes: list[str] = []
    format_ = settings.format
    if settings._target_ is None and format_ == AUTO:
        detection = detect_format(folder)
        format_ = detection.format
        notes.append(detection.note)
    reader = _build_reader(folder, settings, format_)
    loading = _Loading(reader, folder, build_skips)
    requested = _list_requested(settings)
    notes += check_unreadable(reader, folder, requested, splits)
    plan = loading.plan(requested, splits)
    loaded = loading.build_splits(plan, settings.val_fraction, seed, keep_empty=keep_empty)
    return AnnotatedDataset(
        format=format_,
        root=folder.root,
        categories=loading.categories,
        splits=loaded,
        notes=(*notes, *reader.notes, *plan.notes, *loading.describe(loaded)),
    )


def _build_reader(folder: Folder, settings: DataConfig, format_: str) -> Reader:
    """Build the reader of a format, or the user's own; it is given ``instances`` where it takes that."""
    build = get_reader(format_) if settings._target_ is None else load_target("data._target_", settings._target_)
    if not (isinstance(build, type) and issubclass(build, Reader)):
        raise ConfigError(f"data._target_={settings._target_} is no subclass of vpexp.data.readers.base.Reader")
    signature = inspect.signature(build)
    arguments = {"instances": settings.instances} if "instances" in signature.parameters else {}
    try:
        signature.bind(folder, **arguments, **settings.options)
    except TypeError as error:
        raise ConfigError(f"data.options: {settings._target_ or format_} {error}") from error
    construct: Any = build
    reader: Reader = construct(folder, **arguments, **settings.options)
    return reader


def check_root(settings: DataConfig, splits: Collection[str] = ()) -> None:
    """Look whether there is a data set of the right format, without reading annotations.

    Args:
        settings: the section ``data``.
        splits: the splits that are needed.

    Raises:
        DataError: there is no such folder, another format in it, or no such split; the message names what is there.
    """
    if settings._target_ is not None or settings.root is None or settings.format not in (*FORMATS, AUTO):
        return  # a reader of the user's own has its own rules; load_dataset reports the others
    root = Path(settings.root).expanduser()
    if not root.exists() and settings.name in PREPARED:
        raise DataError(
            f"{settings.root}: no such folder; {PREPARED[settings.name]}, or set data.root to where it lies"
        )
    folder = Folder(root, allow_outside=settings.allow_outside)
    is_auto = settings.format == AUTO
    try:
        reader = _build_reader(folder, settings, detect_format(folder).format if is_auto else settings.format)
    except DataError as error:
        if is_auto:
            raise
        fitting = [format_ for format_ in FORMATS if get_reader(format_).find_signs(folder)]
        if not fitting or settings.format in fitting:
            raise
        titles = " or ".join(get_reader(format_).title for format_ in fitting)
        raise DataError(f"{error}; it looks like {titles}: data={AUTO} finds the format") from error
    requested = _list_requested(settings)
    check_unreadable(reader, folder, requested, splits)
    plan_splits(reader.list_subsets(), requested, splits)


@dataclass(frozen=True, slots=True)
class _ReadSubset:
    """A subset as the reader gave it, with labels that index its own categories, and what was skipped."""

    categories: tuple[str, ...]
    images: PackedImages
    skips: SkipCounts


class _Loading:
    """The subsets of one data set while they are read: each once, all with one list of categories."""

    def __init__(self, reader: Reader, folder: Folder, build_skips: Callable[[], SkipCounts]) -> None:
        self._reader = reader
        self._folder = folder
        self._build_skips = build_skips
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
        if len(subset.images):
            return not count_objects(subset.images).any()
        return set(subset.skips.counts) == {NO_ANNOTATIONS}

    def _read_subset(self, name: str) -> "_ReadSubset":
        """Read a subset once."""
        if name not in self._read:
            skips = self._build_skips()
            subset = self._reader.read_subset(name, skips)
            images = PackedImages(ImageTable.pack(sorted(subset.images, key=lambda image: image.image_id)))
            self._read[name] = _ReadSubset(subset.categories, images, skips)
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
            skips = subset.skips
            if not count_objects(subset.images).any() and not keep_empty:
                place = self._folder
                raise DataError(explain_shortage(name, source.subset, skips, place.root, place.image_count))
            if source.subset not in tables:
                table = subset.images.table
                places = [self._index.setdefault(category, len(self._index)) for category in subset.categories]
                tables[source.subset] = replace(table, labels_M=np.array(places, dtype=np.int64)[table.labels_M])
            has_objects_I = subset.images.object_counts > 0  # each kind is divided, so that each part has some of it
            parts = [
                _take_part(np.flatnonzero(kind_I), source, val_fraction, seed)
                for kind_I in (has_objects_I, ~has_objects_I)
            ]
            rows = np.sort(np.concatenate(parts))
            counted = source.part != "held out" or "train" not in plan.sources
            counts = dict(skips.counts) if counted else {}
            examples = dict(skips.examples) if counted else {}
            splits[name] = Split(name, source.subset, PackedImages(tables[source.subset], rows), counts, examples)
        return splits

    def describe(self, splits: dict[str, Split]) -> list[str]:
        """Describe what is unusual about the data that was read."""
        used = {split.source: self._read[split.source] for split in splits.values()}
        notes = describe_remarks(subset.skips for subset in used.values())
        unsettled = sum(subset.skips.unsettled_turns for subset in used.values())
        if unsettled:
            notes.append(
                f"{unsettled} of the images have an EXIF orientation that their annotation's size cannot settle: turned "
                "as viewers show them"
            )
        for name, subset in used.items():
            empty = int((subset.images.object_counts == 0).sum())
            if empty:
                notes.append(
                    f"{format_count(empty, 'image')} of '{name}' without objects: the prompter learns from them, the decoder does not"
                )
            crowds, objects = subset.skips.counts.get(CROWD, 0), int(count_objects(subset.images).sum())
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


def _take_part(rows: NDArray[np.int64], source: SplitSource, val_fraction: float, seed: int) -> NDArray[np.int64]:
    """Choose the rows of a split among some of its subset."""
    if source.part == "all" or not len(rows):
        return rows
    kept, held_out = divide(rows.tolist(), val_fraction, seed)
    return np.array(kept if source.part == "kept" else held_out, dtype=np.int64)


def _note_shared(first: Split, second: Split, files: dict[str, set[Path]]) -> str | None:
    """Report that two splits share image files; a split that stands in for another one shares them all by design.

    ``files`` remembers the files of splits, because following links takes long.
    """
    if first.source == second.source and {first.name, second.name} == {"val", "test"}:
        return None
    for split in (first, second):
        if split.name not in files:
            files[split.name] = {place.path.resolve() for place in list_places(split.images)}
    shared = files[first.name] & files[second.name]
    if not shared:
        return None
    return f"in both {first.name} and {second.name}: {len(shared)} of the images (such as {min(shared).name})"


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
