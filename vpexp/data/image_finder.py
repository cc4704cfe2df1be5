"""Finding the image files that annotations name, wherever data sets of a kind keep them."""

import os
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qsl, unquote

from vpexp.data.folder import Folder, compose, fold, is_annotation_folder, is_file
from vpexp.data.skipped import AMBIGUOUS_IMAGE, OUTSIDE
from vpexp.data.splits import ALIASES, find_split
from vpexp.errors import DataError

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:/+", re.IGNORECASE)  # two letters at least: C:/ is a drive
_UPLOAD_PREFIX = re.compile(r"(?=[0-9]*[a-f])([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}[-_]|[0-9a-f]{8}(-|__))(?=.)")
"""Label Studio puts it before the names of uploaded files. Eight digits without a letter are rather a date."""
_USUAL_PARENTS = ((), ("images",), ("data",))
"""Where a data set keeps the image folders of its subsets."""


class UnusableImageError(DataError):
    """An image file that is there and is not used; ``reason`` says why in a few words, for counting."""

    def __init__(self, reason: str, example: str) -> None:
        super().__init__(f"{example}: {reason}")
        self.reason = reason
        self.example = example


class AmbiguousImageError(UnusableImageError):
    """Several image files could be the one that an annotation names."""

    def __init__(self, name: str, candidates: list[str]) -> None:
        super().__init__(AMBIGUOUS_IMAGE, f"{name}: several image files have this name: {', '.join(candidates[:3])}")


class ImageFinder:
    """Finds the image files of one annotation file.

    They are looked for in ``images/``, beside the annotations, and in folders called as the subset: ``train``,
    ``images/train``, ``train/images``; at last anywhere in the data set, by the longest common end of their paths. Where
    the subset has a folder of its own, a name without folders means a file in it and nowhere else.
    """

    def __init__(
        self, folder: Folder, annotation_file: str, subset_names: Iterable[str], file_names: Iterable[str] = ()
    ) -> None:
        """Prepare the places to look in.

        Args:
            folder: The data set's folder.
            annotation_file: Relative name of the annotation file.
            subset_names: What the subset's own image folder may be called, the subset's name first.
            file_names: All names that are going to be looked for, as far as they are known.
        """
        self._folder = folder
        self._file_names = file_names
        names = [name for name in subset_names if name and not is_annotation_folder(name)]
        self._subset = names[0] if names else ""
        self._wanted = {fold(name) for name in names}
        beside = base = PurePosixPath(annotation_file).parent
        while any(is_annotation_folder(part) for part in base.parts):
            base = base.parent
        self._own = self._find_own_folders(base)
        self._is_beside_own = find_split(beside.name) is not None
        places = [
            (place / inner).as_posix()
            for place in dict.fromkeys([base, beside, PurePosixPath()])
            for subset in [*names, ""]
            for inner in (f"images/{subset}", subset, f"{subset}/images", f"data/{subset}")
        ]
        self._own_places = [place for own in self._own for place in (own, f"{own}/images")]
        self._places = list(dict.fromkeys([*self._own_places, *places]))

    def find(self, file_name: str) -> Path | None:
        """Find an image file by the name or address that the annotation gives it, sub-folders included.

        Returns:
            The file's path, None if it is nowhere.

        Raises:
            UnusableImageError: Several files of this name, and nothing tells which is meant; a file outside of the
                folder where such are not allowed; or no regular file.
        """
        outside = self._find_outside(file_name.replace("\\", "/"))
        for name in list_meanings(file_name):
            inside = self._find_in_places(name) or self._find_directly(name)
            if inside is None and outside is not None and self._folder.allow_outside:
                return outside
            inside = inside or self._find_anywhere(name)
            if inside is not None:
                if inside in self._folder.barred:
                    raise UnusableImageError(self._folder.barred[inside], str(self._folder.path(inside)))
                return self._folder.path(inside)
        if outside is not None:
            raise UnusableImageError(OUTSIDE, str(outside))
        return None

    def _find_own_folders(self, base: PurePosixPath) -> list[str]:
        """Find the folders of images that are called as the subset, or else with an alias of its split."""
        split = find_split(self._subset)
        aliases = ALIASES[split] if split else ()
        below = [name for name in self._folder.image_folders if PurePosixPath(name).is_relative_to(base)]
        for is_own in (
            lambda own: own == fold(self._subset),
            lambda own: re.sub(r"images?|imgs?|[\W\d_]", "", own) in aliases,
        ):
            named = [name for name in below if is_own(fold(PurePosixPath(name).name))]
            usual = [name for name in named if PurePosixPath(name).relative_to(base).parts[:-1] in _USUAL_PARENTS]
            if named:
                return usual or named
        return []

    def _find_in_places(self, name: str) -> str | None:
        """Find a file where the subset's images are expected; below its own folder none that a longer name means."""
        depth = name.count("/")
        for place, found in self._list_in_places(name):
            if not self._own or place in self._own or self._claimed.get(found, 0) <= depth:
                return found
        return None

    def _list_in_places(self, name: str) -> Iterator[tuple[str, str]]:
        """List the places where the subset's images are expected that have a file of this name, and the file."""
        if name.startswith("/"):
            return
        for place in self._places if "/" in name or not self._own else self._own_places:
            found = self._folder.find(os.path.normpath(f"{place}/{name}"))
            if found:
                yield place, found

    def _find_directly(self, name: str) -> str | None:
        """Find a file of the folder by its whole path, hidden ones too."""
        if self._own and "/" not in name:
            return None
        root = os.path.realpath(self._folder.root)
        path = Path(root, name)
        if not self._folder.holds(path):
            return None
        relative = os.path.relpath(path, root)
        if relative.startswith(".."):  # another way to the same folder
            relative = os.path.relpath(os.path.realpath(path), root)
        return self._folder.find(relative) or relative

    def _find_outside(self, name: str) -> Path | None:
        """Find a file outside of the folder by its absolute path, or by one that leads up from it."""
        path = self._folder.root / os.path.normpath(name)
        is_named = name.startswith("/") or os.path.normpath(name).startswith("../")
        return path if is_named and is_file(path) and not self._folder.holds(path) else None

    def _find_anywhere(self, name: str) -> str | None:
        """Find the file that shares the most trailing parts of its path with the given name."""
        parts = PurePosixPath(fold(name)).parts
        best: tuple[int, bool] = (0, False)
        winners: list[str] = []
        for candidate in self._folder.images_called(parts[-1]) if parts else ():
            if candidate in self._claimed:
                continue
            own = PurePosixPath(fold(candidate)).parts
            shared = 0
            while shared < min(len(own), len(parts)) and own[-1 - shared] == parts[-1 - shared]:
                shared += 1
            score = shared, bool(self._wanted.intersection(own))
            if score >= best and self._may_take(candidate, own[:-shared], own[-shared:-1]):
                winners = [*winners, candidate] if score == best else [candidate]
                best = score
        if len(winners) > 1:
            raise AmbiguousImageError(name, winners)
        return winners[0] if winners else None

    def _may_take(self, candidate: str, above: tuple[str, ...], named: tuple[str, ...]) -> bool:
        """Return whether a file may be the one that is meant, and not that of another split.

        Args:
            candidate: The file.
            above: The folders that it lies in, but for those that the annotation names too.
            named: The folders that the annotation names.
        """
        if any(candidate.startswith(f"{own}/") for own in self._own):
            return True
        is_of_another = any(find_split(part) not in (None, find_split(self._subset)) for part in above)
        if self._own:
            return any(find_split(part) for part in named) and not is_of_another
        # Where images of the subset lie where they are expected, no other split's folder can be meant.
        is_elsewhere = self._is_beside_own or bool(self._claimed)
        return not (is_of_another and find_split(self._subset) and is_elsewhere)

    @cached_property
    def _claimed(self) -> dict[str, int]:
        """Files where they are expected under one of the names, and how many folders the longest of these has."""
        claimed: dict[str, int] = {}
        for name in (name for given in self._file_names for name in list_meanings(given)):
            for _, found in islice(self._list_in_places(name), 1):
                claimed[found] = max(claimed.get(found, 0), name.count("/"))
        return claimed


def list_meanings(file_name: str) -> Iterator[str]:
    """List the paths that a name in an annotation file can mean, likeliest first, each once.

    That is the name as it stands; decoded where it holds ``%20``; without scheme, query and fragment where it is an address,
    or what its query names (``/data/local-files/?d=a.png``); and each of these without the prefix of an upload.
    """
    plain = compose(file_name.replace("\\", "/"))
    seen = [""]
    for name in chain([compose(file_name), plain], _read_address(plain)):
        path = os.path.normpath(name) if name and not name.endswith("/") else ""
        for meaning in (path, _strip_upload(path)):
            if meaning not in seen:
                seen.append(meaning)
                yield meaning


def _read_address(text: str) -> Iterator[str]:
    yield unquote(text)
    address, _, query = text.partition("?")
    if query or _SCHEME.match(text):
        yield unquote(_SCHEME.sub("", address.partition("#")[0], count=1))
        for _, value in parse_qsl(query.replace("+", "%2B")):
            yield _SCHEME.sub("", value, count=1)


def _strip_upload(path: str) -> str:
    """Take the prefix of an upload off the last part of a path; an empty text where it has none."""
    above, slash, name = path.rpartition("/")
    prefix = _UPLOAD_PREFIX.match(name)
    return f"{above}{slash}{name[prefix.end() :]}" if prefix else ""
