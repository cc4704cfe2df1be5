"""The numbers of a data set as tables, for the terminal and for the page."""

from collections.abc import Sequence

import numpy as np
from rich.console import Group
from rich.text import Text

from vpexp.console import PlainTable
from vpexp.data.ledger import order_by_count
from vpexp.data.shortage import advise
from vpexp.errors import make_printable
from vpexp.survey.counts import (
    count_images_by_class,
    count_images_without_objects,
    count_objects_by_class,
    order_classes,
)
from vpexp.survey.measure import SplitMeasures
from vpexp.survey.sizes import FEWEST_PIXELS, summarize_images
from vpexp.survey.types import DataTable, Survey


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
    title = f"Sizes of objects as {survey.model} sees them (longest side of an image: {survey.image_size} px)"
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
    """Format a share as percent; what is little is not said to be nothing."""
    percent = 100 * share
    if 0 < percent < 0.1:
        return "< 0.1 %"
    return f"{percent:.1f} %" if percent < 10 and percent else f"{percent:.0f} %"
