"""The numbers of a data set as tables, for the terminal and for the page; by name for ``data.json``; and lists of files."""

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from rich.console import Group
from rich.text import Text

from vpexp.console import PlainTable, show_progress
from vpexp.data.folder import list_files
from vpexp.data.image_files import DAMAGED_IMAGE, IMAGE_SUFFIXES, NOT_AN_IMAGE, ImageFileError
from vpexp.data.images import read_image_header
from vpexp.data.skipped import advise, order_by_count
from vpexp.errors import make_printable
from vpexp.files import write_text
from vpexp.survey.duplicates import Duplicates, Signature
from vpexp.survey.measure import (
    FEWEST_PIXELS,
    SplitMeasures,
    count_images_by_class,
    count_images_without_objects,
    count_objects_by_class,
    order_classes,
    summarize_images,
)
from vpexp.survey.survey import DamagedFile, DataTable, Finding, Survey

BROKEN = (NOT_AN_IMAGE, DAMAGED_IMAGE)
PAIR_COLUMNS = (
    *(
        "kind",
        "in_two_splits",
        "split_1",
        "image_1",
        "split_2",
        "image_2",
        "width_1",
        "height_1",
        "width_2",
        "height_2",
    ),
    *("objects_1", "objects_2", "path_1", "path_2"),
)
MOST_ROWS = 12
MOST_KINDS = 4
NO_SUFFIX = "without an ending"


def build_tables(survey: Survey, most_classes: int) -> list[DataTable]:
    """Build the tables that have something to say.

    Args:
        survey: the numbers.
        most_classes: so many classes are listed, the most frequent first.
    """
    if not survey.object_count:
        return []
    return [
        _build_counts(survey.splits),
        _build_classes(survey, most_classes),
        _build_image_sizes(survey.splits),
        _build_object_sizes(survey),
        _build_sides(survey),
    ]


def _build_counts(splits: Sequence[SplitMeasures]) -> DataTable:
    columns = ("split", "images", "objects", "objects an image: median", "most", "images without objects")
    rows = []
    for split in splits:
        counts_I = split.object_counts_I
        a_picture = (f"{np.median(counts_I):g}", f"{counts_I.max():,}") if len(counts_I) else ("-", "-")
        without = count_images_without_objects(split)
        rows.append((split.title, f"{split.image_count:,}", f"{split.object_count:,}", *a_picture, f"{without:,}"))
    return DataTable("Images and objects", columns, tuple(rows))


def _build_classes(survey: Survey, most: int) -> DataTable:
    classes, splits = len(survey.categories), survey.splits
    objects = [count_objects_by_class(split, classes) for split in splits]
    images = [count_images_by_class(split, classes) for split in splits]
    order = order_classes(splits, classes)
    rows = []
    for label in order[:most]:
        total = sum(int(counts_K[label]) for counts_K in objects)
        cells = [f"{o[label]:,} in {i[label]:,}" if o[label] else "0" for o, i in zip(objects, images, strict=True)]
        rows.append((survey.categories[label], *cells, format_share(total / survey.object_count)))
    note = f"and {classes - most:,} more classes, all in data.json" if classes > most else ""
    columns = ("class", *(f"{split.name}: objects in images" for split in splits), "of all objects")
    return DataTable("Classes", columns, tuple(rows), note)


def _build_image_sizes(splits: Sequence[SplitMeasures]) -> DataTable:
    columns = ("split", "smallest", "median", "largest", "most frequent", "different sizes")
    rows = []
    for split in splits:
        sizes = summarize_images(split)
        if sizes is None:
            continue
        named = [f"{width}x{height}" for width, height in (sizes.smallest, sizes.median, sizes.largest)]
        width, height = sizes.most_frequent
        share = format_share(sizes.most_frequent_count / split.image_count)
        rows.append((split.title, *named, f"{width}x{height} ({share})", f"{sizes.different:,}"))
    return DataTable("Sizes of images (width x height)", columns, tuple(rows))


def _build_object_sizes(survey: Survey) -> DataTable:
    columns = ("split", "median area", "of the image", "small", "medium", "large", "at the border", "in parts")
    rows = []
    for split in survey.splits:
        sizes = survey.object_sizes.get(split.name)
        if sizes is not None:
            shares = (sizes.median_share, sizes.small, sizes.medium, sizes.large, sizes.at_border, sizes.in_parts)
            rows.append((split.title, f"{sizes.median_area:,.0f} px", *(format_share(share) for share in shares)))
    note = (
        "small, medium, large: COCO's, up to 32x32, up to 96x96 and from 96x96 pixels; in parts: several pieces, "
        "counted on 1,000 objects at most"
    )
    return DataTable("Sizes of objects (pixels of the original image)", columns, tuple(rows), note)


def _build_sides(survey: Survey) -> DataTable:
    columns = ("split", "5 % are below", "median", f"share below {FEWEST_PIXELS:g} px")
    rows = []
    for split in survey.splits:
        sizes = survey.object_sizes.get(split.name)
        if sizes is not None:
            sides = (f"{sizes.low_side:.1f} px", f"{sizes.median_side:.1f} px")
            rows.append((split.title, *sides, format_share(sizes.hardly_seen)))
    title = f"Sizes of objects as {survey.model} sees them (longest side of the {survey.shown}: {survey.image_size} px)"
    return DataTable(title, columns, tuple(rows), "size: root of the mask's area")


def build_skipped(survey: Survey) -> DataTable | None:
    """Build the table of what was left out, by reason; None where everything is used."""
    rows = [
        (split.title, reason, f"{count:,}", split.examples[reason], advise(reason) or "")
        for split in survey.splits
        for reason, count in order_by_count(split.skipped)
    ]
    columns = ("split", "reason", "objects or images", "the first", "what to do")
    return DataTable("Left out", columns, tuple(rows)) if rows else None


def render(table: DataTable) -> Group:
    """Render a table for the terminal, its title above and its note below in full width."""
    shown = PlainTable()
    for place, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if place else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*row)
    title = Text(f"\n{make_printable(table.title)}", style="bold")
    return Group(title, shown, *([Text(make_printable(table.note), style="dim")] if table.note else []))


def format_share(share: float) -> str:
    """Format a share as percent; a small share is not rounded to 0."""
    percent = 100 * share
    if 0 < percent < 0.1:
        return "< 0.1 %"
    return f"{percent:.1f} %" if percent < 10 and percent else f"{percent:.0f} %"


def list_damaged(root: Path, splits: Iterable[SplitMeasures], signatures: Iterable[Signature]) -> list[DamagedFile]:
    """List the image files that cannot be read.

    Args:
        root: the data set's folder.
        splits: whose images were found good as far as their headers and ends go.
        signatures: of these images, if they were read whole.
    """
    splits = tuple(splits)
    damaged = {one.path: one.damage for one in signatures if one.damage}
    if any(reason in split.skipped for split in splits for reason in BROKEN):
        damaged |= _look_through(root, {path for split in splits for path in split.paths})
    return [DamagedFile(path, reason) for path, reason in sorted(damaged.items())]


def _look_through(root: Path, good: Collection[Path]) -> dict[Path, str]:
    """Look at the headers and ends of all image files of a folder that no split uses."""
    names = [name for name in list_files(root) if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    damaged = {}
    for name in show_progress(names, "looking for damaged files"):
        path = root / name
        if path in good:
            continue
        try:
            read_image_header(path)
        except ImageFileError as error:
            if error.reason in BROKEN:
                damaged[path] = error.reason
    return damaged


def write_duplicates(path: Path, duplicates: Duplicates) -> None:
    """Write all pairs of images that are the same picture as CSV, those of two splits first; then those nearly alike."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(PAIR_COLUMNS)
    for pair in (*duplicates.pairs, *duplicates.alike):
        one, other = pair.first, pair.second
        named = (one.split, one.image_id, other.split, other.image_id)
        sized = (one.width, one.height, other.width, other.height)
        rest = (one.objects, other.objects, one.path, other.path)
        writer.writerow((pair.kind, "yes" if pair.is_leak else "no", *named, *sized, *rest))
    write_text(path, text.getvalue())


def build_folder_table(root: Path) -> DataTable | None:
    """Build a table of the files of a folder: how many of each kind in each of its folders; None where there are none."""
    if not root.is_dir():
        return None
    kinds: dict[str, Counter[str]] = {}
    for name in list_files(root):
        path = PurePosixPath(name)
        kinds.setdefault(path.parent.as_posix(), Counter())[path.suffix.lower() or NO_SUFFIX] += 1
    if not kinds:
        return None
    rows = tuple((folder, _join_kinds(counts)) for folder, counts in list(kinds.items())[:MOST_ROWS])
    more = f"and {len(kinds) - MOST_ROWS} more folders" if len(kinds) > MOST_ROWS else ""
    return DataTable(f"What is in {root}", ("folder", "files"), rows, more)


def _join_kinds(counts: Counter[str]) -> str:
    named = [f"{count:,} {kind}" for kind, count in counts.most_common(MOST_KINDS)]
    rest = sum(counts.values()) - sum(count for _, count in counts.most_common(MOST_KINDS))
    return ", ".join(named + ([f"{rest:,} others"] if rest else []))


def list_metrics(survey: Survey) -> dict[str, float]:
    """List the numbers that are logged: of the whole data set as ``data/...``, of each split under its name."""
    metrics = {
        "data/images": float(survey.image_count),
        "data/objects": float(survey.object_count),
        "data/classes": float(len(survey.categories)),
        "data/left_out": float(survey.count_skipped()),
    }
    if survey.duplicates is not None:
        metrics["data/leaks"] = float(survey.duplicates.leak_count)
        metrics["data/repeated"] = float(survey.duplicates.repeated_count)
        metrics["data/damaged"] = float(len(survey.damaged))
    for split in survey.splits:
        metrics[f"{split.name}/images"] = float(split.image_count)
        metrics[f"{split.name}/objects"] = float(split.object_count)
        metrics[f"{split.name}/left_out"] = float(sum(split.skipped.values()))
        sizes = survey.object_sizes.get(split.name)
        if sizes is not None:
            metrics[f"{split.name}/objects_an_image"] = float(np.median(split.object_counts_I))
            metrics[f"{split.name}/median_area"] = sizes.median_area
            metrics[f"{split.name}/median_side"] = sizes.median_side
            metrics[f"{split.name}/hardly_seen"] = sizes.hardly_seen
    return metrics


def describe_survey(survey: Survey, findings: Sequence[Finding]) -> dict[str, Any]:
    """Describe a survey with all its numbers, as plain containers."""
    duplicates = survey.duplicates
    return {
        "name": survey.name,
        "root": str(survey.root),
        "format": survey.format,
        "model": survey.model,
        "image_size": survey.image_size,
        "tile": survey.tile,
        "categories": list(survey.categories),
        "splits": {split.name: _describe_split(split, survey) for split in survey.splits},
        "duplicates": None
        if duplicates is None
        else {
            "leaks": {f"{earlier} and {later}": count for (earlier, later), count in duplicates.leaks.items()},
            "repeated": duplicates.repeated,
            "alike": len(duplicates.alike),
        },
        "damaged": {str(one.path): one.reason for one in survey.damaged},
        "findings": [asdict(finding) for finding in findings],
        "notes": list(survey.notes),
    }


def _describe_split(split: SplitMeasures, survey: Survey) -> dict[str, Any]:
    classes = len(survey.categories)
    objects_K, images_K = count_objects_by_class(split, classes), count_images_by_class(split, classes)
    images, objects = summarize_images(split), survey.object_sizes.get(split.name)
    counts = split.object_counts_I
    return {
        "source": split.source,
        "images": split.image_count,
        "objects": split.object_count,
        "images_without_objects": count_images_without_objects(split),
        "objects_an_image": {"median": float(np.median(counts)), "most": int(counts.max())} if len(counts) else None,
        "classes": {
            name: {"objects": int(objects_K[label]), "images": int(images_K[label])}
            for label, name in enumerate(survey.categories)
        },
        "image_sizes": images and asdict(images),
        "object_sizes": objects and asdict(objects),
        "skipped": {
            reason: {"count": count, "first": split.examples[reason]} for reason, count in split.skipped.items()
        },
    }
