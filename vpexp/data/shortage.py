"""Saying why a split has nothing to learn from, and what to do about it."""

from vpexp.data.folder import Folder
from vpexp.data.ledger import (
    BOX_ONLY,
    CROWD,
    EMPTY_MASK,
    MASK_SIZE_DIFFERS,
    MISSING_IMAGE,
    NO_ANNOTATIONS,
    NO_SHAPE,
    NOTHING_USABLE,
    SIZE_DIFFERS,
    UNDECLARED,
    UNKNOWN_IMAGE,
    SkipLedger,
    order_by_count,
)

_CAUSES = {
    BOX_ONLY: (
        "{count} objects are boxes without masks",
        "vpexp learns from masks: use annotations with polygons, RLE or mask images",
    ),
    NO_SHAPE: ("{count} annotations have neither mask nor box", "vpexp learns from masks: use instance annotations"),
    CROWD: ("{count} objects are crowd regions", "annotate single objects"),
    MISSING_IMAGE: (
        "{count} image files are missing",
        "put them in images/ or images/<split>/ below data.root, or set data.root to the folder that holds them",
    ),
    NO_ANNOTATIONS: ("{count} images have no annotations", "check that the annotations belong to this split"),
    SIZE_DIFFERS: (
        "{count} images are of another size than annotated",
        "use the images that were annotated, not resized copies",
    ),
    MASK_SIZE_DIFFERS: ("{count} masks are of another size than their image", "use the images that were annotated"),
    UNDECLARED: ("{count} objects are of undeclared categories", "declare their categories"),
    UNKNOWN_IMAGE: ("{count} annotations belong to undeclared images", "declare the images"),
    EMPTY_MASK: ("{count} masks have no pixel inside the image", "check the coordinates of the annotations"),
}


def explain_shortage(split: str, subset: str, ledger: SkipLedger, folder: Folder) -> str:
    """Explain in one line why a split has no object with a mask.

    Args:
        split: train, val or test.
        subset: The data set's own name of it.
        ledger: What was skipped while it was read.
        folder: The data set's folder.
    """
    what = "nothing to learn from" if split == "train" else "nothing to measure"
    where = f"{folder.root}: {what} in split {split} ('{subset}')"
    causes = [(reason, count) for reason, count in order_by_count(ledger.counts) if reason != NOTHING_USABLE]
    if not causes:
        if not folder.image_count:
            return f"{where}: the folder holds no image files; set data.root to the folder of the data set"
        return f"{where}: it has no images with annotations"
    (reason, count), *others = causes
    cause, advice = _CAUSES.get(reason, (f"{{count}} skipped: {reason}", "mend them"))
    everything = "all " if not others else ""
    more = "".join(f", {number} skipped: {other}" for other, number in others[:3])
    return f"{where}: {everything}{cause.format(count=count)}{more}; {advice} (first: {ledger.examples[reason]})"
