"""Finding out by looking which format a data set's folder is in."""

from dataclasses import dataclass

from vpexp.data.folder import Folder
from vpexp.data.readers.json_files import describe_unreadable, find_json_files, find_unreadable
from vpexp.data.readers.semantic import describe_semantic_folders
from vpexp.data.readers.voc_files import describe_voc_folders
from vpexp.errors import DataError

FORMAT_TITLES = {
    "coco": "COCO",
    "datumaro": "Datumaro",
    "voc": "Pascal VOC",
    "common_semantic_segmentation": "common semantic segmentation",
}
"""Format -> its name for people, in the order of preference where several fit: files that name single objects first."""


_SHOWN = 4


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
