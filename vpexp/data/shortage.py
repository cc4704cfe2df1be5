"""Explaining why a split has nothing to learn from, and what to do about it."""

from vpexp.data.folder import Folder
from vpexp.data.image_files import UNREAD_KIND, UNREAD_TYPE
from vpexp.data.skipped import (
    BOX_ONLY,
    CROWD,
    EMPTY_MASK,
    MASK_SIZE_DIFFERS,
    MISSING_IMAGE,
    NO_ANNOTATIONS,
    NO_SHAPE,
    NOTHING_USABLE,
    OF_SHARED_ID,
    OUTSIDE,
    SHARED_ID,
    SIZE_DIFFERS,
    UNDECLARED,
    UNKNOWN_IMAGE,
    SkipCounts,
    order_by_count,
)

_CAUSES = {
    BOX_ONLY: (
        ("object is a box without a mask", "objects are boxes without masks"),
        "vpexp learns from masks: use annotations with polygons, RLE or mask images",
    ),
    NO_SHAPE: (
        ("annotation has neither mask nor box", "annotations have neither mask nor box"),
        "vpexp learns from masks: use instance annotations",
    ),
    CROWD: (
        ("object is a crowd region", "objects are crowd regions"),
        "data.crowd=keep takes them as objects (CVAT writes all masks of its brush as crowd)",
    ),
    OUTSIDE: (
        ("file lies outside the given folder", "files lie outside the given folder"),
        "data.allow_outside=true uses them, or put them into it",
    ),
    SHARED_ID: (
        ("image has an id that another file has too", "images have ids that other files have too"),
        "give each image its own id, and its annotations the same",
    ),
    MISSING_IMAGE: (
        ("image file is missing", "image files are missing"),
        "put them in images/ or images/<split>/ below data.root, or set data.root to the folder that holds them",
    ),
    NO_ANNOTATIONS: (
        ("image has no annotations", "images have no annotations"),
        "check that the annotations belong to this split",
    ),
    SIZE_DIFFERS: (
        ("image is of another size than annotated", "images are of another size than annotated"),
        "use the images that were annotated, not resized copies",
    ),
    MASK_SIZE_DIFFERS: (
        ("mask is of another size than its image", "masks are of another size than their image"),
        "use the images that were annotated",
    ),
    UNDECLARED: (
        ("object is of an undeclared category", "objects are of undeclared categories"),
        "declare all categories in the annotation file",
    ),
    UNKNOWN_IMAGE: (
        ("annotation belongs to an undeclared image", "annotations belong to undeclared images"),
        "declare all images in the annotation file",
    ),
    EMPTY_MASK: (
        ("mask has no pixel inside the image", "masks have no pixel inside the image"),
        "check the coordinates of the annotations",
    ),
}
"""Reason -> what to say of one and of several, and what to do."""
_CONSEQUENCES = (NOTHING_USABLE, OF_SHARED_ID)
"""Reasons that another one brings about."""


def advise(reason: str) -> str | None:
    """Describe what to do about objects or images that were left out for a reason; None where nothing is known."""
    if reason.removeprefix("mask: ").startswith((UNREAD_TYPE, UNREAD_KIND)):
        return "save them as PNG, or as TIFF of one or three channels; mask arrays as PNG of whole numbers"
    return _CAUSES[reason][1] if reason in _CAUSES else None


def explain_shortage(split: str, subset: str, skips: SkipCounts, folder: Folder) -> str:
    """Explain in one line why a split has no object with a mask.

    Args:
        split: train, val or test.
        subset: The data set's own name of it.
        skips: What was skipped while it was read.
        folder: The data set's folder.
    """
    what = "nothing to learn from" if split == "train" else "nothing to measure"
    where = f"{folder.root}: {what} in split {split} ('{subset}')"
    causes = [(reason, count) for reason, count in order_by_count(skips.counts) if reason not in _CONSEQUENCES]
    if not causes:
        if not folder.image_count:
            return f"{where}: the folder holds no image files; set data.root to the folder of the data set"
        return f"{where}: it has no images with annotations"
    (reason, count), *others = causes
    one, several = _CAUSES[reason][0] if reason in _CAUSES else (f"skipped: {reason}", f"skipped: {reason}")
    advice = advise(reason) or "mend the data set"
    cause = f"the only {one}" if count == 1 else f"all {count} {several}"
    if others:
        cause = f"{count} {one if count == 1 else several}"
    more = "".join(f", {number} skipped: {other}" for other, number in others[:3])
    return f"{where}: {cause}{more}; {advice} (first: {skips.examples[reason]})"
