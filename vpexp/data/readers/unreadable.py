"""Annotation files that are there and cannot be read: an error where their split is needed, and a note elsewhere."""

from collections.abc import Collection, Mapping

from vpexp.data.folder import Folder
from vpexp.data.readers.base import Reader
from vpexp.data.readers.json_files import describe_unreadable, is_main_annotation, name_subset
from vpexp.data.splits import says_split
from vpexp.errors import DataError


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
