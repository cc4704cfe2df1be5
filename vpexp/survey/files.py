"""The table of a survey's duplicates as a file."""

import csv
import io
from pathlib import Path

from vpexp.files import write_text
from vpexp.survey.duplicates import Duplicates

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


def write_duplicates(path: Path, duplicates: Duplicates) -> None:
    """Write all pairs of images that are the same picture as CSV, those of two splits first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(PAIR_COLUMNS)
    for pair in duplicates.pairs:
        one, other = pair.first, pair.second
        named = (one.split, one.image_id, other.split, other.image_id)
        sized = (one.width, one.height, other.width, other.height)
        rest = (one.objects, other.objects, one.path, other.path)
        writer.writerow((pair.kind, "yes" if pair.is_leak else "no", *named, *sized, *rest))
    write_text(path, text.getvalue())
