"""One walk through a data set's folder, and finding in it the image files that annotations name."""

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from vpexp.data.image_files import IMAGE_SUFFIXES
from vpexp.errors import DataError

_ANNOTATION_FOLDERS = ("annotation", "annotations", "coco_annotations")
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_HIDDEN = (".", "__MACOSX")
_MASK_FOLDERS = frozenset({"masks", "mask", "segmentationclass", "segmentationobject", *_ANNOTATION_FOLDERS})


class Folder:
    """The files below a data set's root, named by their path relative to it, in a fixed order.

    Attributes:
        root: The folder.
        files: Every file that is not hidden, as posix paths relative to the root, sorted.
        only_file: The one annotation file to read, where the user named a file and no folder.
    """

    def __init__(self, root: str | Path) -> None:
        """Walk through the folder once.

        Args:
            root: The data set's folder, or one annotation file of it.

        Raises:
            DataError: There is no such folder, no file in it, or a file that is no JSON.
        """
        path, is_one_file = _find_root(root)
        base = path.parent if is_one_file else path
        if is_one_file and is_annotation_folder(base.name):
            base = base.parent
        self.root = base
        self.only_file = path.relative_to(base).as_posix() if is_one_file else None
        self.files = tuple(list_files(base))
        if not self.files:
            raise DataError(f"{path}: the folder is empty; set data.root to the folder of the data set")
        self._directories = sorted({parent for name in self.files for parent in _parents(name)})
        self._images = {name for name in self.files if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES}
        self._images_by_base: dict[str, list[str]] | None = None

    def path(self, name: str) -> Path:
        """Turn a relative name into a path."""
        return self.root / name

    def files_with_suffix(self, suffix: str) -> list[str]:
        """List the files whose name ends so, in any case; only the one the user named, if it is of the kind."""
        if self.only_file is not None:
            return [self.only_file] if self.only_file.lower().endswith(suffix) else []
        return [name for name in self.files if name.lower().endswith(suffix)]

    def directories_named(self, *names: str) -> list[str]:
        """List the folders that are called so, in any case."""
        wanted = {name.lower() for name in names}
        return [directory for directory in self._directories if PurePosixPath(directory).name.lower() in wanted]

    def files_in(self, directory: str, *, recursive: bool = False) -> list[str]:
        """List the files of one folder; all below it if ``recursive``."""
        prefix = f"{directory}/" if directory else ""
        inside = [name for name in self.files if name.startswith(prefix)]
        return inside if recursive else [name for name in inside if "/" not in name[len(prefix) :]]

    def has_image(self, name: str) -> bool:
        """Say whether this relative name is an image file."""
        return name in self._images

    @property
    def image_count(self) -> int:
        """Count the image files of the folder."""
        return len(self._images)

    def images_called(self, base_name: str) -> list[str]:
        """List the image files with this last part of their name, in any case, outside of mask folders."""
        if self._images_by_base is None:
            index = defaultdict(list)
            for name in sorted(self._images):
                path = PurePosixPath(name)
                if not any(part.lower() in _MASK_FOLDERS or "panoptic" in part.lower() for part in path.parts[:-1]):
                    index[path.name.lower()].append(name)
            self._images_by_base = dict(index)
        return self._images_by_base.get(base_name.lower(), [])


def is_annotation_folder(name: str) -> bool:
    """Say whether data sets keep annotation files in folders of this name."""
    return name.lower() in _ANNOTATION_FOLDERS


def is_file(path: Path) -> bool:
    """Say whether there is a file of this name; a name that no file can have is no file, and no error."""
    try:
        return path.is_file()
    except OSError:
        return False


def _find_root(root: str | Path) -> tuple[Path, bool]:
    """Find what the user named, and say whether it is a file."""
    path = Path(root)
    try:
        path = path.expanduser()
        exists = path.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long; a user who does not exist
        raise DataError(f"{path}: no such folder ({error}); set data.root to the folder of the data set") from error
    if not exists:
        raise DataError(f"{path}: no such folder; set data.root to the folder of the data set")
    if not is_file(path) or path.suffix.lower() == ".json":
        return path, is_file(path)
    if path.suffix.lower() in _ARCHIVES:
        raise DataError(f"{path} is a file: unpack it and give the folder")
    raise DataError(f"{path} is a file: give the folder of the data set")


def list_files(root: Path) -> list[str]:
    """List all files that are not hidden; links to folders are followed, but not in circles."""
    found: list[str] = []
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        prefix, above = pending.pop()
        try:
            status = (root / prefix).stat()
            with os.scandir(root / prefix) as listing:
                entries = [(entry.name, entry.is_dir()) for entry in listing if not entry.name.startswith(_HIDDEN)]
        except OSError as error:
            raise DataError(f"{root / prefix}: the folder cannot be read ({error.strerror})") from error
        own = (status.st_dev, status.st_ino)
        if own in above:
            continue
        for name, is_directory in entries:
            if is_directory:
                pending.append((f"{prefix}{name}/", above | {own}))
            else:
                found.append(prefix + name)
    return sorted(found)


def _parents(name: str) -> Iterable[str]:
    """List the folders above a relative name, the root (an empty string) left out."""
    parts = name.split("/")[:-1]
    return ("/".join(parts[: depth + 1]) for depth in range(len(parts)))


class AmbiguousImageError(DataError):
    """Several image files could be the one that an annotation names."""


class ImageFinder:
    """Finds the image files of one annotation file, wherever data sets of this kind keep them."""

    def __init__(self, folder: Folder, annotation_file: str, subset_names: Iterable[str]) -> None:
        """Prepare the places to look in.

        Args:
            folder: The data set's folder.
            annotation_file: Relative name of the annotation file.
            subset_names: What the subset's own image folder may be called, likeliest first.
        """
        self._folder = folder
        self._subset_names = [name for name in subset_names if name]
        beside = PurePosixPath(annotation_file).parent
        base = beside
        while any(is_annotation_folder(part) for part in base.parts):
            base = base.parent
        bases = list(dict.fromkeys([base, beside, PurePosixPath()]))
        self._places = [
            (place / inner).as_posix()
            for place in bases
            for subset in [*self._subset_names, ""]
            for inner in (f"images/{subset}", subset, f"{subset}/images", f"data/{subset}")
        ]
        self._places = list(dict.fromkeys(self._places))

    def find(self, file_name: str) -> Path | None:
        """Find an image file by the name that the annotation gives it, sub-folders included.

        Returns:
            The file's path, None if it is nowhere.

        Raises:
            AmbiguousImageError: Several files of this name, and nothing tells which is meant.
        """
        name = os.path.normpath(file_name.replace("\\", "/"))
        if not Path(name).is_absolute():
            for place in self._places:
                candidate = os.path.normpath(f"{place}/{name}")
                if self._folder.has_image(candidate):
                    return self._folder.path(candidate)
        direct = Path(name) if Path(name).is_absolute() else self._folder.root / name
        if is_file(direct):
            return direct
        return self._find_anywhere(name)

    def _find_anywhere(self, name: str) -> Path | None:
        """Find the file that shares the most trailing parts of its path with the given name."""
        parts = PurePosixPath(name.lower()).parts
        candidates = self._folder.images_called(parts[-1]) if parts else []
        if not candidates:
            return None
        wanted = {subset.lower() for subset in self._subset_names}

        def score(candidate: str) -> tuple[int, bool]:
            own = PurePosixPath(candidate.lower()).parts
            shared = 0
            while shared < min(len(own), len(parts)) and own[-1 - shared] == parts[-1 - shared]:
                shared += 1
            return shared, bool(wanted.intersection(own))

        best = max(score(candidate) for candidate in candidates)
        winners = [candidate for candidate in candidates if score(candidate) == best]
        if len(winners) > 1:
            raise AmbiguousImageError(f"{name}: several image files have this name: {', '.join(winners[:3])}")
        return self._folder.path(winners[0])
