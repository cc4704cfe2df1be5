"""What is worth looking at in a data set, in plain words, and what to do about each of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vpexp.config.compose import quote_value, quote_word
from vpexp.data.readers.label_images import is_background_name
from vpexp.data.skipped import BOX_ONLY, CROWD, VOID_REGION, advise, order_by_count
from vpexp.survey.duplicates import ALIKE, Pair
from vpexp.survey.measure import (
    FEWEST_PIXELS,
    SPECK_PIXELS,
    WHOLE_IMAGE,
    WITHOUT_OBJECTS,
    SplitMeasures,
    compute_sides,
    count_images_without_objects,
    count_objects_by_class,
)
from vpexp.survey.survey import Finding, Survey
from vpexp.survey.tables import format_share

MANY = 0.1
"""The share of objects from which they are reported."""
MOST = 0.5
FEW_IMAGES = 10
IMBALANCE = 20
"""How many times as many objects the largest class has before that is reported."""
UNEQUAL_SPLITS = 2.0
"""Factor between the typical objects of two splits before that is reported."""
LISTED = 5
CLASS_MASK_FORMATS = ("common_semantic_segmentation", "voc")
"""Formats in which ``data.instances`` decides what an object is."""
TYPICAL_PIXELS = 24.0
"""Side, in pixels of the model's input, that the typical object gets by tiles."""
TILE_STEP = 32
LARGE_MODEL_SIZE = 1024
"""Input of the original SAM models, in pixels."""
LEVELS = ("error", "warning", "note")
OWN_VAL = "give the data set a val split of whole scenes, beside its train split"


def find_findings(survey: Survey) -> list[Finding]:
    """Find what is worth looking at, the worst first."""
    sources: tuple[Callable[[Survey], Iterator[Finding]], ...] = (
        _find_leaks,
        _find_shortage,
        _find_damage,
        _find_boxes,
        _find_skipped,
        _find_repeated,
        _find_alike,
        _find_unseen_objects,
        _find_odd_masks,
        _find_missing_classes,
        _find_background_names,
        _find_few_images,
        _find_imbalance,
        _find_unlike_splits,
        _find_without_objects,
        _find_unread,
    )
    found = [finding for source in sources for finding in source(survey)]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def describe_pair(pair: Pair) -> str:
    """Name two images that are the same picture, or nearly so."""
    first, second = pair.first, pair.second
    sizes = {(one.width, one.height) for one in (first, second)}
    sized = "" if len(sizes) == 1 else f", {first.width}x{first.height} and {second.width}x{second.height}"
    sign = "~" if pair.kind == ALIKE else "="
    return f"{first.split} {first.image_id} {sign} {second.split} {second.image_id} ({pair.kind}{sized})"


def _find_leaks(survey: Survey) -> Iterator[Finding]:
    if survey.duplicates is None or not survey.duplicates.leak_count:
        return
    pairs = [pair for pair in survey.duplicates.pairs if pair.is_leak]
    totals = {split.name: split.image_count for split in survey.splits}
    counted = ", ".join(
        f"{count:,} of {totals[later]:,} images of {later} also in {earlier}"
        for (earlier, later), count in survey.duplicates.leaks.items()
    )
    own = _describe_own_division(survey, pairs)
    remedy = f"keep one of each, or {OWN_VAL}" if own else "take each of them out of one of its splits"
    yield Finding(
        "error",
        f"the same picture in two splits: {counted}{own}",
        f"what is measured on them is not to be trusted: {remedy}; duplicates.csv has all",
        _name([describe_pair(pair) for pair in pairs]),
    )


def _find_alike(survey: Survey) -> Iterator[Finding]:
    if survey.duplicates is None or not survey.duplicates.alike:
        return
    pairs = survey.duplicates.alike
    later: dict[tuple[str, str], set[str]] = {}
    for pair in pairs:
        later.setdefault((pair.first.split, pair.second.split), set()).add(pair.second.path)
    totals = {split.name: split.image_count for split in survey.splits}
    counted = ", ".join(
        f"{len(paths):,} of {totals[name]:,} images of {name} nearly alike one of {earlier}"
        for (earlier, name), paths in later.items()
    )
    own = _describe_own_division(survey, pairs)
    remedy = OWN_VAL if own else "move all frames of a scene into one split"
    yield Finding(
        "warning",
        f"this looks like frames of one video in two splits: {counted}{own}",
        f"what is measured on them is better than it will be on new scenes: {remedy}; duplicates.csv has all",
        _name([describe_pair(pair) for pair in pairs]),
    )


def _describe_own_division(survey: Survey, pairs: Sequence[Pair]) -> str:
    """Describe that images came apart because vpexp set the val split aside; nothing where the data set has its own."""
    sources = {split.name: split.source for split in survey.splits}
    is_own = sources.get("train") == sources.get("val")
    if not is_own or not any((pair.first.split, pair.second.split) == ("train", "val") for pair in pairs):
        return ""
    return f" (the data set has no val split: vpexp set it aside from '{sources['val']}' at random)"


def _find_repeated(survey: Survey) -> Iterator[Finding]:
    if survey.duplicates is None or not survey.duplicates.repeated_count:
        return
    pairs = [pair for pair in survey.duplicates.pairs if not pair.is_leak]
    unlike = sum(pair.first.objects != pair.second.objects for pair in pairs)
    counted = ", ".join(f"{_count(count, 'image')} of {name}" for name, count in survey.duplicates.repeated.items())
    yield Finding(
        "warning",
        f"the same picture twice in a split: {counted} repeat an earlier one"
        + (f"; of the copies {unlike:,} {_have(unlike)} another number of objects than that one" if unlike else ""),
        "copies count double in training and in what is measured: keep one of each; duplicates.csv has all",
        _name([describe_pair(pair) for pair in pairs]),
    )


def _find_shortage(survey: Survey) -> Iterator[Finding]:
    reported: set[str] = set()
    for split in survey.splits:
        if split.object_count or split.source in reported:
            continue
        reported.add(split.source)
        what = "nothing to learn from" if split.name == "train" else "nothing to measure"
        reasons = order_by_count(split.skipped)
        causes = ", ".join(f"{reason}: {count:,}" for reason, count in reasons)
        advice = advise(reasons[0][0]) if reasons else "check that the annotations belong to these images"
        yield Finding(
            "error",
            f"{split.title}: {what}, no object has a mask" + (f" ({causes})" if causes else ""),
            advice or "",
        )


def _find_damage(survey: Survey) -> Iterator[Finding]:
    if survey.damaged:
        count = len(survey.damaged)
        yield Finding(
            "warning",
            f"{_count(count, 'image file')} cannot be read",
            "they are passed over in training and test: copy them anew, or take them out",
            _name([f"{one.path} ({one.reason})" for one in survey.damaged]),
        )


def _find_boxes(survey: Survey) -> Iterator[Finding]:
    count = survey.count_skipped(BOX_ONLY)
    if not count:
        return
    command = (
        f"python -m vpexp stage=predict data={survey.format} {quote_word(f'data.root={quote_value(str(survey.root))}')} "
        "prompts=dataset output.format=coco"
    )
    yield Finding(
        "warning",
        "1 object is a box without a mask" if count == 1 else f"{count:,} objects are boxes without masks",
        f"vpexp learns from masks; a model makes masks of the boxes, a data set to train on: {command}",
        _list_examples(survey, BOX_ONLY),
    )


def _find_skipped(survey: Survey) -> Iterator[Finding]:
    reported = {BOX_ONLY, *WITHOUT_OBJECTS, *(one.reason for one in survey.damaged)}
    reasons = dict.fromkeys(reason for split in survey.splits for reason in split.skipped if reason not in reported)
    for reason in reasons:
        yield Finding(
            "note" if reason in (CROWD, VOID_REGION) else "warning",
            f"left out, {reason}: {survey.count_skipped(reason):,}",
            advise(reason) or "mend the annotations, or leave it at that: everything else is used",
            _list_examples(survey, reason),
        )


def _find_unseen_objects(survey: Survey) -> Iterator[Finding]:
    small = {name: sizes.hardly_seen for name, sizes in survey.object_sizes.items() if sizes.hardly_seen >= MANY}
    if not small:
        return
    advice = f"{_recommend_tile(survey) or 'cut the images into tiles (data.tile)'}, or leave such objects out"
    if survey.image_size < LARGE_MODEL_SIZE:
        sides = np.concatenate([compute_sides(split, LARGE_MODEL_SIZE, survey.tile) for split in survey.splits])
        rest = format_share(float((sides < FEWEST_PIXELS).mean()))
        advice = f"at {LARGE_MODEL_SIZE} px (model=sam_tiny_vit) {rest} of all objects are so small; or {advice}"
    yield Finding(
        "warning",
        f"many objects are smaller than {FEWEST_PIXELS:g} px once the {survey.shown} is resized to {survey.image_size} px "
        f"({survey.model}), and SAM hardly sees them: {_list_shares(small)}",
        advice,
    )


def _recommend_tile(survey: Survey) -> str | None:
    """Recommend the side of tiles in which the typical object has ``TYPICAL_PIXELS``, where it is hardly seen; else None."""
    sides = np.concatenate([compute_sides(split, survey.image_size, survey.tile) for split in survey.splits])
    original = float(np.median(np.concatenate([np.sqrt(split.areas_M) for split in survey.splits])))
    wanted = survey.image_size * original / TYPICAL_PIXELS
    tile = max(
        survey.image_size, int(np.ceil(wanted / TILE_STEP)) * TILE_STEP
    )  # no object is enlarged beyond its pixels
    seen = original * survey.image_size / tile
    if np.median(sides) >= min(FEWEST_PIXELS, seen):  # small images have nothing to gain
        return None
    return f"data.tile={tile} cuts the images into tiles in which the typical object measures {seen:.0f} px"


def _find_odd_masks(survey: Survey) -> Iterator[Finding]:
    rectangles = {name: sizes.rectangles for name, sizes in survey.object_sizes.items() if sizes.rectangles >= MOST}
    whole: list[str] = []
    specks: list[str] = []
    for split in survey.splits:
        shares_M = split.areas_M / split.sizes_I2.prod(axis=1)[split.image_of_M]
        whole += _name_images(split, shares_M > WHOLE_IMAGE)
        specks += _name_images(split, split.areas_M < SPECK_PIXELS)
    if rectangles:
        yield Finding(
            "warning",
            f"most masks are filled boxes: {_list_shares(rectangles)}",
            "from boxes a model learns to draw boxes: look at the pictures; objects that are no rectangles need outlines",
        )
    if whole:
        yield Finding(
            "warning",
            f"{_count(len(whole), 'object')} nearly as large as the whole image",
            "look whether that is background annotated as an object, or a mask turned inside out",
            _name(list(dict.fromkeys(whole))),
        )
    if specks:
        are_parts = survey.format in CLASS_MASK_FORMATS and len(specks) >= MANY * survey.object_count
        yield Finding(
            "note",
            f"{_count(len(specks), 'object')} of fewer than {SPECK_PIXELS} pixels",
            "often slips of the pen; they count as objects in training and test"
            + ("; of class masks, data.instances=classes makes one object a class, not one a part" * are_parts),
            _name(list(dict.fromkeys(specks))),
        )


def _name_images(split: SplitMeasures, chosen_M: NDArray[np.bool_]) -> list[str]:
    """Name the image of each chosen object."""
    return [f"{split.name} {split.image_ids[row]}" for row in split.image_of_M[chosen_M].tolist()]


def _list_shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{format_share(share)} of {name}" for name, share in shares.items())


def _find_missing_classes(survey: Survey) -> Iterator[Finding]:
    classes = len(survey.categories)
    counts = {split.name: count_objects_by_class(split, classes) for split in survey.splits if split.object_count}
    if not counts:
        return
    somewhere_K = sum(counts.values(), np.zeros(classes, dtype=np.int64)) > 0
    nowhere = [survey.categories[label] for label in np.flatnonzero(~somewhere_K)]
    if nowhere:
        yield Finding("note", f"declared, but no object: {_join(nowhere)}", "a class list may be longer than the data")
    for name, counts_K in counts.items():
        missing = [survey.categories[label] for label in np.flatnonzero(somewhere_K & (counts_K == 0))]
        if missing:
            what = "was never seen in training" if name == "train" else f"is not measured on {name}"
            yield Finding(
                "warning",
                f"{name} has no object of: {_join(missing)}",
                f"what is missing {what}: move some images there from the other splits",
            )


def _find_background_names(survey: Survey) -> Iterator[Finding]:
    names = [name for name in survey.categories if is_background_name(name)]
    if names:
        yield Finding(
            "warning",
            f"a class is called {names[0]}",
            "its objects are taken as objects here, but Pascal VOC, Datumaro and class masks mean no object by that: call it "
            "otherwise, or leave it out",
        )


def _find_few_images(survey: Survey) -> Iterator[Finding]:
    for split in survey.splits:
        if 0 < split.image_count < FEW_IMAGES:
            what = "to learn from" if split.name == "train" else "to measure on: numbers will jump from run to run"
            yield Finding("note", f"{split.name}: only {_count(split.image_count, 'image')} {what}")


def _find_imbalance(survey: Survey) -> Iterator[Finding]:
    train = next((split for split in survey.splits if split.name == "train" and split.object_count), None)
    if train is None:
        return
    counts_K = count_objects_by_class(train, len(survey.categories))
    present = np.flatnonzero(counts_K)
    most, least = present[counts_K[present].argmax()], present[counts_K[present].argmin()]
    ratio = counts_K[most] / counts_K[least]
    if ratio >= IMBALANCE:
        yield Finding(
            "note",
            f"train: {survey.categories[most]} has {ratio:,.0f} times as many objects as {survey.categories[least]} "
            f"({counts_K[most]:,} and {counts_K[least]:,})",
            "masks are learnt from all classes together, so that the large ones decide: look at map_per_class of the test",
        )


def _find_unlike_splits(survey: Survey) -> Iterator[Finding]:
    typical = {name: sizes.median_side for name, sizes in survey.object_sizes.items()}
    if "train" not in typical:
        return
    for name, side in typical.items():
        if max(side, typical["train"]) > UNEQUAL_SPLITS * min(side, typical["train"]):
            yield Finding(
                "note",
                f"the typical object of {name} measures {side:.0f} px and that of train {typical['train']:.0f} px (image at "
                f"{survey.image_size} px): the splits are not alike",
                "divide the images anew, unless that is meant",
            )


def _find_without_objects(survey: Survey) -> Iterator[Finding]:
    count = sum(count_images_without_objects(split) for split in survey.splits)
    if count and survey.object_count:
        yield Finding(
            "note",
            f"{_count(count, 'image')} without objects {_are(count)} left out",
            "nothing to do if they are meant to be empty: prompts are only given for objects that are there",
            tuple(example for reason in WITHOUT_OBJECTS for example in _list_examples(survey, reason)),
        )


def _find_unread(survey: Survey) -> Iterator[Finding]:
    if survey.duplicates is None:
        yield Finding("note", "copies and damaged images were not looked for", "stage.duplicates=true reads all images")


def _list_examples(survey: Survey, reason: str) -> tuple[str, ...]:
    return tuple(split.examples[reason] for split in survey.splits if reason in split.skipped)


def _name(examples: list[str]) -> tuple[str, ...]:
    """Take the first few examples, and say how many more there are."""
    more = (f"and {len(examples) - LISTED:,} more",) if len(examples) > LISTED else ()
    return (*examples[:LISTED], *more)


def _join(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _have(count: int) -> str:
    return "has" if count == 1 else "have"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
