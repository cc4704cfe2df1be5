"""What had to be left out of a data set, counted by reason, so that nothing disappears silently; and what to do about it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vpexp.errors import DataError, make_printable

BOX_ONLY = "box only, no mask"
NO_SHAPE = "neither mask nor box"
CROWD = "crowd region"
VOID_REGION = "void region"
UNDECLARED = "undeclared category"
UNDECLARED_VALUE = "undeclared pixel value"
UNDECLARED_COLOR = "undeclared colour"
EMPTY_MASK = "no pixel of the mask inside the image"
NO_ANNOTATIONS = "image without annotations"
NOTHING_USABLE = "image left without objects"
SIZE_DIFFERS = "image size differs from annotation"
MASK_SIZE_DIFFERS = "mask size differs from image"
MISSING_IMAGE = "image file is missing"
DAMAGED_XML = "XML file is damaged"
MISSING_MASK = "mask file is missing"
DAMAGED_MASK = "mask file is truncated or damaged"
AMBIGUOUS_IMAGE = "several image files of this name"
AMBIGUOUS_MASK = "several mask files of this name"
UNKNOWN_IMAGE = "annotation of an undeclared image"
REPEATED_IMAGE = "image declared twice"
SHARED_ID = "image id of several files"
OF_SHARED_ID = "annotation of an image id of several files"
OUTSIDE = "file outside the given folder (data.allow_outside=true uses it)"
BAD_ENTRY = "entry that is no annotation"
NO_IMAGE = "item without an image"
NO_MASK_TYPE = "annotation type without a mask"
BAD_PART = "polygon part dropped"
UNREAD_TYPE, UNREAD_KIND = "file type not read", "kind of"
"""How the reasons begin for which sound files are not read."""

LEGITIMATE = frozenset({CROWD, VOID_REGION, NO_ANNOTATIONS, NOTHING_USABLE})
"""Reasons that are no defect of the data set: ``strict`` does not stop at them."""

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
        "check that the annotations belong to this split; data.unannotated=keep takes them as images in which there is nothing",
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


@dataclass(slots=True)
class Remark:
    """How often something about the reading of images was remarked.

    Attributes:
        images: Images that it is true of.
        total: Of what it counts in them, such as pages.
        example: The first of the images.
    """

    images: int
    total: int
    example: str


class SkipCounts:
    """Counts what is skipped while one subset is read, and keeps the first example of each reason.

    Attributes:
        counts: Reason -> objects or images skipped.
        examples: Reason -> the first file or object that it hit.
        unsettled_turns: Images with an EXIF orientation that the annotated size neither confirms nor denies.
        remarks: Text with places for the numbers -> how often it is true; of images that are used, and not as they are.
        keep_boxes: Whether readers hand on objects that are boxes only, as filled boxes, instead of skipping them here.
        keep_crowds: Whether readers hand on crowd regions as objects, instead of skipping them here.
        keep_unannotated: Whether readers hand on images without annotations, instead of skipping them here.
    """

    def __init__(
        self,
        *,
        strict: bool = False,
        keep_boxes: bool = False,
        keep_crowds: bool = False,
        keep_unannotated: bool = False,
    ) -> None:
        """Start with nothing skipped.

        Args:
            strict: Raise at the first defect instead of counting it.
            keep_boxes: See above.
            keep_crowds: See above.
            keep_unannotated: See above.
        """
        self.strict = strict
        self.keep_boxes = keep_boxes
        self.keep_crowds = keep_crowds
        self.keep_unannotated = keep_unannotated
        self.counts: dict[str, int] = {}
        self.examples: dict[str, str] = {}
        self.remarks: dict[str, Remark] = {}
        self.unsettled_turns = 0

    def skip(self, reason: str, example: str, *, count: int = 1) -> None:
        """Count what is left out.

        Args:
            reason: Why, in a few words; the same words for the same cause.
            example: The file and object, for people.
            count: How many objects or images.

        Raises:
            DataError: In strict mode, unless the reason is no defect.
        """
        if count < 1:
            return
        example = make_printable(example)
        if self.strict and reason not in LEGITIMATE:
            raise DataError(f"{example}: {reason} (data.strict=false skips and counts it)")
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.examples.setdefault(reason, example)

    def remark(self, counts: Mapping[str, int], example: str) -> None:
        """Count what is remarkable about the reading of one image that is used."""
        for text, count in counts.items():
            one = self.remarks.setdefault(text, Remark(0, 0, make_printable(example)))
            one.images += 1
            one.total += count


def describe_remarks(counts: Iterable[SkipCounts]) -> list[str]:
    """Describe what is remarkable about the reading of images, a line a remark."""
    joined: dict[str, Remark] = {}
    for skips in counts:
        for text, own in skips.remarks.items():
            one = joined.setdefault(text, Remark(0, 0, own.example))
            one.images += own.images
            one.total += own.total
    return [text.format(images=one.images, total=one.total, example=one.example) for text, one in joined.items()]


def order_by_count(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Order reasons by how often they occurred, the most frequent first, then by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def advise(reason: str) -> str | None:
    """Describe what to do about objects or images that were left out for a reason; None where nothing is known."""
    if reason.removeprefix("mask: ").startswith((UNREAD_TYPE, UNREAD_KIND)):
        return "save them as PNG, or as TIFF of one or three channels; mask arrays as PNG of whole numbers"
    return _CAUSES[reason][1] if reason in _CAUSES else None


def explain_shortage(split: str, subset: str, skips: SkipCounts, root: Path, image_count: int) -> str:
    """Explain in one line why a split has no object with a mask.

    Args:
        split: train, val or test.
        subset: The data set's own name of it.
        skips: What was skipped while it was read.
        root: The data set's folder.
        image_count: How many image files lie in it.
    """
    what = "nothing to learn from" if split == "train" else "nothing to measure"
    where = f"{root}: {what} in split {split} ('{subset}')"
    causes = [(reason, count) for reason, count in order_by_count(skips.counts) if reason not in _CONSEQUENCES]
    if not causes:
        if not image_count:
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
