"""One walk through a data set's folder: its files by name, and which of them are not to be opened."""

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from vpexp.data.image_files import NOT_A_FILE, is_image_file
from vpexp.data.skipped import OUTSIDE
from vpexp.errors import DataError
from vpexp.files import is_below

HIDDEN = (".", "__MACOSX")
_ANNOTATION_FOLDERS = ("annotation", "annotations", "coco_annotations")
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_MASK_FOLDERS = frozenset({"masks", "mask", "segmentationclass", "segmentationobject", *_ANNOTATION_FOLDERS})
_MOST_OUTSIDE = 100_000
"""So many names are listed of what a folder's links lead to outside of it: a link may lead to the whole disk."""


@dataclass(slots=True)
class Listing:
    """What a walk through a folder found, by path relative to it.

    Attributes:
        files: Everything that is no folder and not hidden, sorted.
        barred: Those of them that are not to be opened -> why.
        hidden: Hidden files of folders that are not hidden, links left out.
        empty: Folders without anything that is not hidden.
    """

    files: list[str] = field(default_factory=list)
    barred: dict[str, str] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)


class Folder:
    """The files below a data set's root, named by their path relative to it, in a fixed order.

    Attributes:
        root: The folder.
        allow_outside: Whether files that lie outside of it may be used.
        files: Every file that is not hidden, as posix paths relative to the root, sorted.
        barred: Those of them that are not to be opened -> why.
        hidden: Hidden files, such as ``.annotations.coco.json``.
        only_file: The one annotation file to read, where the user named a file and no folder.
    """

    def __init__(self, root: str | Path, *, allow_outside: bool = False) -> None:
        """Walk through the folder once.

        Args:
            root: The data set's folder, or one annotation file of it.
            allow_outside: Use what links, absolute paths and ``..`` name outside of the folder.

        Raises:
            DataError: There is no such folder, no file in it, or a file that is no JSON.
        """
        path, is_one_file = _find_root(root)
        base = path.parent if is_one_file else path
        if is_one_file and is_annotation_folder(base.name):
            base = base.parent
        self.root = base
        self.allow_outside = allow_outside
        self.only_file = path.relative_to(base).as_posix() if is_one_file else None
        listing = walk(base, allow_outside=allow_outside)
        self.files = tuple(sorted({*listing.files, *([self.only_file] if self.only_file else [])}))
        self.barred = {name: reason for name, reason in listing.barred.items() if name != self.only_file}
        self.hidden = tuple(listing.hidden)
        if not self.files:
            raise DataError(f"{path}: the folder is empty; set data.root to the folder of the data set")
        self._names = frozenset(self.files)
        self._composed = {compose(name): name for name in self.files if not name.isascii()}
        self._directories = sorted({parent for name in self.files for parent in _parents(name)})
        unopened = {name for name in self.barred if not PurePosixPath(name).suffix}  # names alone say nothing of these
        self._images = {name for name in self.files if name not in unopened and is_image_file(base, name)}
        self._image_folders = {parent for name in self._images for parent in _parents(name)}.union(listing.empty)
        self._images_by_base: dict[str, list[str]] | None = None

    def path(self, name: str) -> Path:
        """Turn a relative name into a path."""
        return self.root / name

    def find(self, name: str) -> str | None:
        """Find a file by its relative name, whether its accents are composed (NFC) or not; None if there is none."""
        return name if name in self._names else self._composed.get(compose(name))

    def holds(self, path: Path) -> bool:
        """Return whether a file lies in the folder once links are followed, and is one that may be opened."""
        return is_file(path) and is_below(path, self.root)

    def find_to_read(self, name: str) -> Path | None:
        """Find a file that is about to be opened; None if there is none.

        Raises:
            DataError: It is not to be opened.
        """
        found = self.find(name)
        if found in self.barred:
            raise DataError(f"{self.path(found)}: {self.barred[found]}")
        return None if found is None else self.path(found)

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
        """Return whether this relative name is an image file."""
        return name in self._images

    @property
    def image_count(self) -> int:
        """Count the image files of the folder."""
        return len(self._images)

    @property
    def image_folders(self) -> list[str]:
        """List the folders that hold images, themselves or below, and those that hold nothing; without mask folders."""
        return [name for name in sorted(self._image_folders) if not _is_in_mask_folder(f"{name}/")]

    def images_called(self, base_name: str) -> list[str]:
        """List the image files with this last part of their name, in any case, outside of mask folders."""
        if self._images_by_base is None:
            index = defaultdict(list)
            for name in sorted(self._images):
                if not _is_in_mask_folder(name):
                    index[fold(PurePosixPath(name).name)].append(name)
            self._images_by_base = dict(index)
        return self._images_by_base.get(fold(base_name), [])


def compose(name: str) -> str:
    """Compose accents (NFC): macOS takes names apart (NFD), annotation files hardly ever do."""
    return name if name.isascii() else normalize("NFC", name)


def fold(name: str) -> str:
    """Bring names that differ by case or by the form of their accents alone to one form."""
    return compose(name).lower()


def is_annotation_folder(name: str) -> bool:
    """Return whether data sets keep annotation files in folders of this name."""
    return name.lower() in _ANNOTATION_FOLDERS


def _is_in_mask_folder(name: str) -> bool:
    return any(part.lower() in _MASK_FOLDERS or "panoptic" in part.lower() for part in name.split("/")[:-1])


def is_file(path: Path) -> bool:
    """Return whether there is a regular file of this name; a name that no file can have is no file, and no error."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_special(path: Path) -> bool:
    """Return whether there is something of this name that is neither a file nor a folder: a pipe, a socket, a device."""
    try:
        return path.exists() and not path.is_file() and not path.is_dir()
    except (OSError, ValueError):
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
    if path.is_dir() or (is_file(path) and path.suffix.lower() == ".json"):
        return path, not path.is_dir()
    if is_special(path):
        raise DataError(f"{path}: {NOT_A_FILE}; give the folder of the data set")
    if path.suffix.lower() in _ARCHIVES:
        raise DataError(f"{path} is a file: unpack it and give the folder")
    raise DataError(f"{path} is a file: give the folder of the data set")


def walk(root: Path, *, allow_outside: bool = False) -> Listing:
    """List what lies below a folder; links to folders are followed, but not in circles.

    Where a link leads out of the folder and that is not allowed, what it leads to is listed by name, and barred.

    Raises:
        DataError: A folder that cannot be read.
    """
    found = Listing()
    home = os.path.realpath(root)
    pending: list[tuple[str, frozenset[tuple[int, int]], bool]] = [("", frozenset(), False)]
    while pending:
        prefix, above, is_outside = pending.pop()
        if is_outside and len(found.barred) > _MOST_OUTSIDE:
            continue
        try:
            status = (root / prefix).stat()
            with os.scandir(root / prefix) as listing:
                entries = list(listing)
        except OSError as error:
            if is_outside:
                continue
            raise DataError(f"{root / prefix}: the folder cannot be read ({error.strerror})") from error
        own = (status.st_dev, status.st_ino)
        if own in above:
            continue
        if prefix and all(entry.name.startswith(HIDDEN) for entry in entries):
            found.empty.append(prefix.rstrip("/"))
        hidden = [entry for entry in entries if entry.name.startswith(HIDDEN) and not is_outside]
        found.hidden += [prefix + entry.name for entry in hidden if entry.is_file(follow_symlinks=False)]
        for entry in (entry for entry in entries if not entry.name.startswith(HIDDEN)):
            name = prefix + entry.name
            leads_out = is_outside or (entry.is_symlink() and not allow_outside and not is_below(entry.path, home))
            if _get_kind(entry) == "folder":
                pending.append((f"{name}/", above | {own}, leads_out))
                continue
            found.files.append(name)
            if reason := _find_reason(_get_kind(entry), leads_out=leads_out):
                found.barred[name] = reason
    found.files.sort()
    return found


def _get_kind(entry: "os.DirEntry[str]") -> str:
    """Return what an entry is, links followed: a folder, a file, something else, or nothing where a link leads nowhere."""
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() else "else" if Path(entry.path).exists() else "nothing"
    except OSError:  # a link to itself
        return "nothing"


def _find_reason(kind: str, *, leads_out: bool) -> str | None:
    """Find the reason for which a file is not to be opened; None if there is none."""
    if kind == "nothing":  # opening it fails, and is counted then
        return None
    return NOT_A_FILE if kind == "else" else OUTSIDE if leads_out else None


def list_files(root: Path) -> list[str]:
    """List all files of a folder that are not hidden and may be opened, sorted; errors as of ``walk``."""
    found = walk(root)
    return [name for name in found.files if name not in found.barred]


def _parents(name: str) -> Iterable[str]:
    """List the folders above a relative name, the root (an empty string) left out."""
    parts = name.split("/")[:-1]
    return ("/".join(parts[: depth + 1]) for depth in range(len(parts)))
