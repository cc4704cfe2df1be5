"""JSON annotations: COCO and Datumaro distinguished without reading gigabytes, and the subset that a file holds.

The entries of COCO files are kept in little memory, and read leniently, as tools write them.
"""

import gc
import json
import math
import re
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from vpexp.console import show_wait
from vpexp.data.annotations import read_whole
from vpexp.data.folder import Folder, is_annotation_folder
from vpexp.data.readers.base import Reader
from vpexp.errors import DataError

_HEAD_BYTES = 1 << 16
_DATUMARO_KEYS = re.compile(r'"(dm_format_version|items)"\s*:')
_COCO_KEYS = re.compile(r'"images"\s*:\s*\[')
_OBJECT_KEYS = re.compile(r'"(segments_info|segmentation|bbox)"\s*:')
_CHUNK = 1 << 20
_FILLER_WORDS = frozenset(
    {"instances", "instance", "annotations", "annotation", "coco", "stuff", "person", "keypoints", "gt", "json"}
)
_LISTED = 3
_UNNAMED = "default"
Entry = dict[str, Any]
Key = int | float | str


def classify_json(path: Path) -> str | None:
    """Return whether a JSON file is a data set: ``coco``, ``datumaro`` or None.

    Looks at the first 64 KiB, and reads the whole file only if that does not tell.
    """
    try:
        with path.open("rb") as file:
            head_bytes = file.read(_HEAD_BYTES)
    except OSError:
        return None
    head = head_bytes.decode(json.detect_encoding(head_bytes), errors="replace").lstrip()
    if not head.startswith("{"):
        return None
    is_datumaro, is_coco = _DATUMARO_KEYS.search(head), _COCO_KEYS.search(head)
    is_sure = (
        not is_datumaro or is_datumaro[1] != "items" or len(head_bytes) < _HEAD_BYTES
    )  # an attribute can be called so
    if bool(is_datumaro) != bool(is_coco) and is_sure:
        return "datumaro" if is_datumaro else "coco"
    return _classify_by_keys(path) if is_coco or len(head_bytes) == _HEAD_BYTES else None


def _classify_by_keys(path: Path) -> str | None:
    """Describe what a JSON file is by the keys of its whole content."""
    try:
        keys = set(_read_keys(path))
    except (DataError, OSError):
        return None
    if {"items", "categories"} <= keys:
        return "datumaro"
    return "coco" if "images" in keys else None


def find_json_files(folder: Folder, kind: str) -> list[str]:
    """List the JSON files of one kind, as names relative to the folder."""
    names = [name for name in folder.files_with_suffix(".json") if name not in folder.barred]
    return [name for name in names if classify_json(folder.path(name)) == kind]


def holds_objects(path: Path) -> bool:
    """Return whether a COCO file holds outlines or boxes of objects, and not captions, panoptic segments or nothing."""
    with path.open("rb") as file:
        encoding = json.detect_encoding(file.read(4))
    with path.open(encoding=encoding, errors="replace") as text:
        rest = ""
        while chunk := text.read(_CHUNK):
            if key := _OBJECT_KEYS.search(rest + chunk):
                return key[1] != "segments_info"
            rest = chunk[-32:]
    return False


def find_unreadable(folder: Folder, *, every: bool = False) -> dict[str, str]:
    """Find the JSON files that must be annotations by their name, place or content, and cannot be read.

    Args:
        folder: The data set's folder.
        every: Also list the first few other JSON files that are no data set: where nothing can be read at all.

    Returns:
        Name relative to the folder -> what is wrong with the file.
    """
    found = {}
    others = _LISTED if every else 0
    for name in folder.files_with_suffix(".json"):
        path = PurePosixPath(name)
        is_expected = name == folder.only_file or is_main_annotation(name) or is_annotation_folder(path.parent.name)
        if name in folder.barred:
            found[name] = folder.barred[name]
        elif (is_expected or others) and classify_json(folder.path(name)) is None:
            others -= not is_expected
            found[name] = _explain_unreadable(folder.path(name))
    return found | _find_hidden(folder)


def _find_hidden(folder: Folder) -> dict[str, str]:
    """Find hidden files that hold a data set; ``._name`` is what macOS keeps beside a file."""
    names = [PurePosixPath(name) for name in folder.hidden if name.lower().endswith(".json") and not folder.only_file]
    return {
        str(name): f"it is hidden: rename it to {name.name.lstrip('.')}"
        for name in names
        if not name.name.startswith("._") and classify_json(folder.path(str(name)))
    }


def describe_unreadable(unreadable: Mapping[str, str]) -> str:
    """Name the files that cannot be used, and why; an empty text if there are none."""
    files = [f"{file} ({reason})" for file, reason in unreadable.items()]
    more = f" and {len(files) - _LISTED} more" if len(files) > _LISTED else ""
    return f"not read as annotations: {', '.join(files[:_LISTED])}{more}" if files else ""


def is_main_annotation(file_name: str) -> bool:
    """Return whether only a file of object annotations is called so."""
    name = PurePosixPath(file_name).name.lower()
    return name.startswith("instances_") or name == "_annotations.coco.json"


def _explain_unreadable(path: Path) -> str:
    """Describe in a few words what a file that is no data set is."""
    try:
        if not path.stat().st_size:
            return "the file is empty"
        keys = _read_keys(path)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except DataError as error:
        return str(error).removeprefix(f"{path}: ")
    if wrong := [key for key in ("images", "items") if key in keys]:
        return f"its '{wrong[0]}' is no list"
    return f"it holds neither 'images' nor 'items', but {', '.join(keys[:4]) or 'nothing'}"


def _read_keys(path: Path) -> list[str]:
    """List the keys of a whole file, which is read once as long as it does not change; errors as of ``load_json``."""
    status = path.stat()
    return list(_parse_keys(path, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=16)
def _parse_keys(path: Path, size: int, time: int) -> tuple[str, ...]:
    del size, time  # they say which state of the file is remembered
    shapes: dict[tuple[str, ...], dict[str, Any]] = {}
    # values fall away as soon as they are read: objects of the same keys become one
    return tuple(load_json(path, lambda entry: shapes.setdefault(tuple(entry), dict.fromkeys(entry))))


def load_json(path: Path, on_object: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: The file.
        on_object: Called with each object of the file as soon as it is read; what it returns takes the object's place.

    Raises:
        DataError: The file is damaged, or holds something else.
    """
    try:
        with _without_collector(), show_wait(f"Reading {path.name}", path):
            content = json.loads(read_text(path), object_hook=on_object)
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no text, no JSON, or a number of 5000 digits
        raise DataError(f"{path}: no readable JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, found a {type(content).__name__}")
    return content


def read_text(path: Path, errors: str = "surrogatepass") -> str:
    """Read text in UTF-8, UTF-16 or UTF-32, as ``json.loads`` does of bytes, but without holding on to the bytes."""
    content = path.read_bytes()
    return content.decode(json.detect_encoding(content), errors)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Stop the search for circular garbage, of which parsing makes none: it would go through all objects many times."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def name_subset(file_name: str) -> str:
    """Name the subset that an annotation file holds.

    ``annotations/instances_train2017.json`` is train2017, ``train/_annotations.coco.json`` is train,
    ``train_polygons_instances.json`` is train_polygons, and a file without a telling name is ``default``.
    """
    path = PurePosixPath(file_name)
    for part in [path.stem, *reversed(path.parent.parts)]:
        words = [word for word in re.split(r"[_.\s-]+", part) if word and word.lower() not in _FILLER_WORDS]
        if words:
            return "_".join(words)
    return _UNNAMED


def name_subsets(files: list[str]) -> dict[str, str]:
    """Name the subset of each file; two of one name are named with their folders.

    Returns:
        Subset name -> file.
    """
    by_name: dict[str, list[str]] = {}
    for file in files:
        by_name.setdefault(name_subset(file), []).append(file)
    named = {}
    for name, same in by_name.items():
        for file in same:
            folder = PurePosixPath(file).parent.as_posix()
            named[name if len(same) == 1 else f"{folder}/{PurePosixPath(file).stem}"] = file
    return named


def compact_annotation(entry: Entry) -> Entry:
    """Reduce an annotation to what is read of it, its polygons to arrays of doubles; other objects stay as they are.

    A list of 50 Python numbers takes 2 kB, COCO has 860,000 of them.
    """
    segmentation = entry.get("segmentation")
    if not segmentation or type(segmentation) not in (dict, list):
        return entry
    if "image_id" not in entry or "file_name" in entry:
        return entry  # it is no annotation
    if type(segmentation) is list:
        segmentation = [_compact_numbers(part) for part in segmentation]
    compact: Entry = {key: entry[key] for key in ("id", "image_id", "category_id") if key in entry}
    compact["segmentation"] = segmentation
    if entry.get("iscrowd", 0) != 0:
        compact["iscrowd"] = entry["iscrowd"]
    if "bbox" in entry and not any(segmentation):
        compact["bbox"] = entry["bbox"]
    return compact


def _compact_numbers(part: Any) -> Any:
    """Pack a list of numbers; what is no such list stays, and is judged when it is used."""
    if type(part) is not list or not part:
        return part
    try:
        return array("d", part)
    except (OverflowError, TypeError):
        return part


def list_entries(content: Entry, key: str, path: Any) -> list[Entry]:
    """Take one of the file's lists."""
    entries = content.get(key)
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected a list under '{key}', found {type(entries).__name__}")
    return [entry if isinstance(entry, dict) else {} for entry in entries]


def read_key(value: Any) -> Key | None:
    """Read an id as it stands, but for 7.0, which is 7; None for what is none: nothing, True, NaN, blanks, a list."""
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    whole = read_whole(value)
    if whole is None and not math.isfinite(value):
        return None
    return value if whole is None else whole


class DeclaredIds:
    """The ids that a file declares, and which of them another id means.

    Ids are compared as they stand: ``"1_12"`` is not 112, and ``"01"`` is not ``"1"`` where both are declared. Only where
    none is the same, the one that is the same number is meant: 7, 7.0, "7", "7.0" and "07" are.
    """

    def __init__(self, ids: Iterable[Key | None]) -> None:
        self._ids = set(ids) - {None}
        by_number: dict[int, list[Key]] = defaultdict(list)
        for key in self._ids:
            if key is not None and (number := read_whole(key)) is not None:
                by_number[number].append(key)
        self._by_number = {number: keys[0] for number, keys in by_number.items() if len(keys) == 1}

    def find(self, value: Any) -> Key | None:
        """Find the declared id that is meant; None if there is none, or several that are the same number."""
        key = read_key(value)
        if key in self._ids:
            return key
        number = read_whole(key)
        return None if number is None else self._by_number.get(number)


def read_file_name(entry: Entry) -> str | None:
    """Read the name of an image's file, or its address where there is no name, as in LVIS; None if it has neither."""
    names = (entry.get(key) for key in ("file_name", "coco_url", "url", "flickr_url"))
    return next((name for name in names if isinstance(name, str) and name), None)


def read_size(entry: Entry) -> tuple[int, int] | None:
    """Read an image entry's (height, width); None if it has none."""
    height, width = read_whole(entry.get("height")), read_whole(entry.get("width"))
    return (height, width) if height and width and height > 0 and width > 0 else None


def is_true(value: Any) -> bool:
    """Return whether a flag is set, in whatever way it is written."""
    return value not in (0, False, None, "0", "", "false", "False")


def is_empty(segmentation: Any) -> bool:
    """Return whether there is no segmentation: absent, [], [[]] or an RLE without content."""
    if isinstance(segmentation, list):
        return all(isinstance(part, list) and not part for part in segmentation)
    return not segmentation


class JsonReader(Reader):
    """Reads a format of which every subset is one JSON file."""

    names_objects = True
    content: ClassVar[str]
    """What such a file has, and how it may be called, for people."""

    def __init__(self, folder: Folder) -> None:
        """Find the annotation files.

        Args:
            folder: The data set's folder.

        Raises:
            DataError: There is no file of the format, or none that holds object masks.
        """
        self.notes: list[str] = []
        self._folder = folder
        self.unreadable = find_unreadable(folder)
        files = self.find_signs(folder)
        if not files:
            unreadable = describe_unreadable(find_unreadable(folder, every=True))
            raise DataError(
                f"{folder.root}: no {self.title} annotations; looked for *.json files with {self.content}"
                f"{unreadable and f'; {unreadable}'}"
            )
        self._files = name_subsets(self._choose_files(files))

    def list_subsets(self) -> Mapping[str, tuple[str, ...]]:
        """List the subsets, each also by its file's name."""
        return {name: (PurePosixPath(file).stem, file) for name, file in self._files.items()}

    def _choose_files(self, files: list[str]) -> list[str]:
        """Choose the files that are read."""
        return files
