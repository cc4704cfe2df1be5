"""The images of ``source=``: one file, a folder with all below it, or a pattern; and finding one of them by its name.

Names are paths relative to the source, with ``/`` on every system, so that files of one name in two folders stay apart.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from glob import glob, has_magic
from pathlib import Path, PurePosixPath

from vpexp.data.folder import compose, is_special, walk
from vpexp.data.image_files import IMAGE_SUFFIXES, NOT_A_FILE, UNREAD_SUFFIXES, describe_unread, is_image_file
from vpexp.data.skipped import OUTSIDE, SkipCounts, order_by_count
from vpexp.errors import ConfigError, DataError
from vpexp.files import is_below

_NO_IMAGES = "files that are no images, passed over: {total} (such as {example})"
ARCHIVE_LEFTOVERS = "__MACOSX"  # hidden on the system that made it


@dataclass(frozen=True, slots=True)
class SourceImage:
    """An image file to predict on.

    Attributes:
        number: its place among all images of the source, from 1; its id in COCO files.
        name: its path relative to the source, unique.
        path: the file.
    """

    number: int
    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class NameMatch:
    """Which image each given name means.

    Attributes:
        images: the image by the name that was given.
        unknown: names that no image has.
    """

    images: dict[str, SourceImage]
    unknown: tuple[str, ...]


def find_images(
    source: str,
    leave_out: Path | None = None,
    skips: SkipCounts | None = None,
    *,
    allow_outside: bool = False,
) -> list[SourceImage]:
    """Find the images that a source means, sorted by name.

    A file is taken as it is. A folder is searched with all folders below it, a pattern may hold ``*``, ``?``, ``[ab]`` and
    ``**``; of what they hold, files whose name ends as an image's does count, and files without an ending that are images;
    hidden ones do not.

    Args:
        source: a file, a folder or a pattern.
        leave_out: a folder that is passed over where it lies inside of the source: that of vpexp's own pictures.
        skips: counts the other files: image files of types that are not read, and files that are no images.
        allow_outside: take images that links in the folder lead to outside of it; otherwise they are counted.

    Raises:
        ConfigError: there is no such file or folder, or nothing fits the pattern.
        DataError: the folder or pattern has no image.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [SourceImage(1, path.name, path)]
    if path.is_dir():
        listing = walk(path, allow_outside=allow_outside)
        base, names, barred = path, listing.files, listing.barred
    else:
        base, pattern = _split_pattern(path)
        if (base / pattern).exists():
            raise ConfigError(f"source={source}: {NOT_A_FILE}")
        if not has_magic(pattern):
            raise ConfigError(f"source={source} does not exist: give an image, a folder, or a pattern as photos/*.jpg")
        found = glob(pattern, root_dir=base, recursive=True)  # noqa: PTH207 Path.glob would take hidden files too
        names = [name for name in found if ARCHIVE_LEFTOVERS not in Path(name).parts]
        if not names:
            raise ConfigError(f"source={source}: nothing fits the pattern")
        barred = {name: OUTSIDE for name in names if not allow_outside and not is_below(base / name, base)}
        barred |= {name: NOT_A_FILE for name in names if is_special(base / name)}
    names = [name for name in names if not name.startswith(_name_folder(base, leave_out))] if leave_out else names
    skips = SkipCounts() if skips is None else skips
    for name in [name for name in names if name in barred and PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]:
        skips.skip(barred[name], str(base / name))
    chosen = _select_images(base, [name for name in names if name not in barred], skips)
    images = [SourceImage(number, name, base / name) for number, name in enumerate(chosen, start=1)]
    if not images:
        passed = "".join(f"; {count} x {reason}" for reason, count in order_by_count(skips.counts))
        raise DataError(f"source={source}: no image among the {len(names)} files and folders found{passed}")
    return images


def find_source_folder(source: str) -> Path:
    """Find the folder that a source's images lie in or below."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    return path.parent if path.is_file() else _split_pattern(path)[0]


def match_names(given: Sequence[str], images: Sequence[SourceImage], origin: str) -> NameMatch:
    """Find the image that each name means: its path relative to the source, or the end of its path.

    Accents may be composed (NFC) in the one and not (NFD, as macOS writes names) in the other.

    Args:
        given: names as people write them: ``a.jpg``, ``left/a.jpg``, ``./a.jpg``, or a whole path.
        images: all images of the source.
        origin: where the names come from, for errors.

    Raises:
        DataError: a name fits several images, or two names mean one image.
    """
    by_name = {compose(image.name): image for image in images} | {image.name: image for image in images}
    by_base: dict[str, list[SourceImage]] = defaultdict(list)
    for one in images:
        by_base[compose(one.path.name)].append(one)
    found: dict[str, SourceImage] = {}
    taken: dict[str, str] = {}
    unknown: list[str] = []
    for name in given:
        image = _find(name, by_name, by_base, origin)
        if image is None:
            unknown.append(name)
            continue
        if image.name in taken:
            raise DataError(f"{origin}: '{taken[image.name]}' and '{name}' are the same image, {image.path}; keep one")
        taken[image.name] = name
        found[name] = image
    return NameMatch(found, tuple(unknown))


def suggest_name(wrong: str, images: Iterable[SourceImage]) -> str | None:
    """Find the image whose name is most like a wrong one; None where none is like it."""
    close = get_close_matches(PurePosixPath(wrong).name, [image.path.name for image in images], n=1)
    return close[0] if close else None


def _split_pattern(path: Path) -> tuple[Path, str]:
    """Split into the folder that is there, whatever signs its name has, and the pattern below it."""
    base = Path(path.anchor)
    parts = path.parts[1:] if path.anchor else path.parts
    for depth, part in enumerate(parts):
        if not (base / part).is_dir():
            return base, str(Path(*parts[depth:]))
        base /= part
    return base, ""


def _select_images(base: Path, names: Iterable[str], skips: SkipCounts) -> list[str]:
    """Keep image files, each once, sorted by name; the others are counted."""
    chosen = []
    for name in sorted({Path(name).as_posix() for name in names if (base / name).is_file()}):
        if not is_image_file(base, name):
            skips.remark({_NO_IMAGES: 1}, str(base / name))
        elif PurePosixPath(name).suffix.lower() in UNREAD_SUFFIXES:
            skips.skip(describe_unread(name), str(base / name))
        else:
            chosen.append(name)
    return chosen


def _name_folder(base: Path, folder: Path) -> str:
    """Name a folder as the names of what lies in it begin; where it is not below the base, as no name begins."""
    base, folder = base.resolve(), folder.resolve()
    return f"{folder.relative_to(base).as_posix()}/" if base in folder.parents else "/"


def _find(
    given: str, by_name: Mapping[str, SourceImage], by_base: Mapping[str, Sequence[SourceImage]], origin: str
) -> SourceImage | None:
    if given in by_name:
        return by_name[given]
    parts = _split_name(given)
    if not parts:
        return None
    candidates = [image for image in by_base.get(parts[-1], ()) if _ends_with(image, parts)]
    exact = [image for image in candidates if _split_name(image.name) == parts]
    candidates = exact or candidates
    if len(candidates) > 1:
        listed = ", ".join(image.name for image in candidates[:3]) + (", ..." if len(candidates) > 3 else "")
        raise DataError(
            f"{origin}: '{given}' fits {len(candidates)} images ({listed}); write the path below the source"
        )
    return candidates[0] if candidates else None


def _split_name(name: str) -> list[str]:
    return [part for part in compose(name).replace("\\", "/").split("/") if part not in ("", ".")]


def _ends_with(image: SourceImage, parts: Sequence[str]) -> bool:
    return [compose(part) for part in image.path.absolute().parts[-len(parts) :]] == list(parts)
