"""Which mask belongs to which image, by their names: alike, with ``_mask`` or the like added, or both with endings of their own."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from vpexp.data.image_files import prefer_read

Files = Mapping[str, list[str]]
"""Name without folder of its kind and ending -> files that have it."""

_MASK_WORDS = ("mask", "seg", "label", "gt", "truth", "annot", "inst", "class")
_SAMPLE = 20
"""Masks that are looked at for what is added to their names."""
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")


def prefer_masks(names: list[str]) -> list[str]:
    """Pass over files that are no masks where others of them are: types that are not read, and JPEGs, which show masks."""
    read = prefer_read(names)
    return [name for name in read if PurePosixPath(name).suffix.lower() not in JPEG_SUFFIXES] or read


def align_names(images: Files, masks: Files) -> tuple[Files, Files, str]:
    """Bring the names of images and masks to a common form, the one that pairs most of them.

    Names that are alike as they stand are never changed.

    Returns:
        Images and masks by their common names, and a note about what was done; an empty one where names are alike.
    """
    images = _name_whole(images, masks)
    alike = set(images) & set(masks)
    before, after = _find_addition([name for name in masks if name not in alike], set(images) - alike)
    shortened: dict[str, list[str]] = {}
    for name, files in masks.items():
        short = _take_off(name, before, after) or name
        shortened.setdefault(name if name in alike or short in alike else short, []).extend(files)
    added = [f"'{text}' {place} them" for text, place in ((before, "before"), (after, "behind")) if text]
    note = f"masks are named as their images, with {' and '.join(added)}" if added else ""
    if alike:
        return images, shortened, note
    trimmed = "masks are paired with images by what their names have in common"
    ways = [
        (images, shortened, note),
        (_trim_common(images), _trim_common(masks), trimmed),
        (_trim_common(images, start=False), _trim_common(masks, start=False), trimmed),
    ]
    return max(ways, key=lambda way: len(set(way[0]) & set(way[1])))  # the first of equals


def _name_whole(images: Files, masks: Files) -> Files:
    """Name images by their names with ending where masks are called so: ``a.jpg.png`` is of ``a.jpg``, not of ``a.png``."""
    named: dict[str, list[str]] = {}
    for name, files in images.items():
        for file in files:
            whole = f"{name}{PurePosixPath(file).suffix}"
            named.setdefault(whole if whole in masks else name, []).append(file)
    return named


def _find_addition(masks: list[str], images: set[str]) -> tuple[str, str]:
    """Find what masks' names have before and behind their images' names; two empty texts where there is nothing.

    A single pair counts only if what is added speaks of masks: any two names could be taken for one.
    """
    votes = {addition for mask in masks[:_SAMPLE] for image in images for addition in _compare(mask, image)}
    ordered = sorted(votes, key=lambda one: (len(one[0]) + len(one[1]), one))  # of equals the shortest
    pairs = Counter({one: sum(_take_off(name, *one) in images for name in masks) for one in ordered})
    for (before, after), count in pairs.most_common():
        if count > 1 or any(word in f"{before} {after}".lower() for word in _MASK_WORDS):
            return before, after
    return "", ""


def _compare(mask: str, image: str) -> list[tuple[str, str]]:
    """List what a mask's name has before and behind an image's, at most one; both names may begin with folders."""
    folder, slash, own = mask.rpartition("/")
    name = image.removeprefix(folder + slash) if image.startswith(folder + slash) else "/"
    place = own.find(name)
    if place < 0 or "/" in name:
        return []
    before, after = own[:place], own[place + len(name) :]
    return [(before, after)] if not (_runs_on(before, name) or _runs_on(name, after)) else []


def _runs_on(first: str, second: str) -> bool:
    """Say whether two texts, one behind the other, are parts of one number or word."""
    edge = first[-1:] + second[:1]
    return len(edge) == 2 and (edge.isdigit() or edge.isalpha())


def _take_off(name: str, before: str, after: str) -> str | None:
    """Take an addition off a mask's name; None where it does not have it."""
    folder, slash, own = name.rpartition("/")
    if not (own.startswith(before) and own.endswith(after) and len(own) > len(before) + len(after)):
        return None
    return folder + slash + own[len(before) : len(own) - len(after)]


def find_common_start(texts: Sequence[str]) -> str:
    """Find the longest text that all texts begin with, letter by letter."""
    first, last = min(texts, default=""), max(texts, default="")
    same = (place for place, letter in enumerate(first) if place >= len(last) or letter != last[place])
    return first[: next(same, len(first))]


def _trim_common(names: Files, *, start: bool = True) -> dict[str, list[str]]:
    """Take the common beginning and end off names: ``gt_0001, gt_0002`` become 0001 and 0002."""
    stems = list(names)
    several = len(stems) > 1
    begin = len(find_common_start(stems).rstrip("0123456789")) if several and start else 0
    end = len(find_common_start([stem[::-1] for stem in stems]).rstrip("0123456789")) if several else 0
    trimmed: dict[str, list[str]] = {}
    for stem, files in names.items():
        trimmed.setdefault(stem[begin : len(stem) - end], []).extend(files)
    return trimmed
