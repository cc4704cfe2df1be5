"""Annotations that were read once, kept in one file, and read from there as long as no file of the data set changes.

A kept file is a ``.npz`` of arrays and of one JSON text, so that reading it runs no code. It holds the whole answer of one
call of ``load_dataset`` and is named by a hash of all that the answer depends on: the options, the versions of what reads,
and path, size and time of every file below the root. What is damaged or cannot be read is read anew from the data set.
"""

import hashlib
import json
import logging
import os
import time
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from vpexp.data.annotations import AnnotatedDataset, Arrays, ImageTable, PackedImages, Split
from vpexp.data.folder import Folder
from vpexp.data.skipped import MISSING_IMAGE, OUTSIDE
from vpexp.files import replacing

READER_VERSION = 6
"""To be raised whenever the same files are read in another way than before."""
FOLDER = "annotations"
"""Below the cache folder."""
WORTH_KEEPING_SECONDS = 0.1
"""What was read faster is not kept."""
MOST_FILES = 64
MOST_BYTES = 4 * 2**30
_STALE_DRAFT_SECONDS = 3600
_LIBRARIES = ("pillow", "pycocotools", "datumaro", "numpy")
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    zipfile.BadZipFile,
    zlib.error,
)

_log = logging.getLogger(__name__)


class KeptAnnotations:
    """What is kept of one data set, read with one set of options.

    Args:
        directory: where files of kept annotations lie.
        folder: the data set's folder, as it is now.
        options: everything else that decides what is read; plain values.
    """

    def __init__(self, directory: Path, folder: Folder, options: Mapping[str, Any]) -> None:
        self._directory = directory
        self._folder = folder
        self._key = _compute_key(folder, options, directory)
        self.path = directory / f"{self._key}.npz"

    def read(self) -> AnnotatedDataset | None:
        """Read what is kept; None where there is nothing that can be used."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}  # zip checks each of them by its checksum
            dataset = self._build(arrays)
        except FileNotFoundError:
            return None
        except _DAMAGE as error:
            _log.info("kept annotations %s cannot be used (%s): reading anew", self.path, error)
            return None
        with suppress(OSError):
            os.utime(self.path)  # the oldest go first
        return dataset

    def write(self, dataset: AnnotatedDataset) -> None:
        """Keep a data set, if its folder alone decides what it holds; a folder that cannot be written to is no error."""
        if not self._is_complete(dataset):
            return
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as draft, draft.open("wb") as file:
                np.savez(file, allow_pickle=False, **self._take_apart(dataset))
        except OSError as error:
            _log.info("annotations are not kept in %s (%s)", self._directory, error)
            return
        _prune(self._directory, self.path)

    def _is_complete(self, dataset: AnnotatedDataset) -> bool:
        """Return whether all images are among the files that were looked at; one elsewhere could change unseen."""
        if any(reason in split.skipped for split in dataset.splits.values() for reason in (MISSING_IMAGE, OUTSIDE)):
            return False
        known = {str(self._folder.path(name)) for name in self._folder.files}
        tables = {id(table): table for split in dataset.splits.values() for table in [_get_table(split)]}
        return all(str(place.path) in known for table in tables.values() for place in PackedImages(table).places)

    def _take_apart(self, dataset: AnnotatedDataset) -> Arrays:
        arrays: Arrays = {}
        tables: list[ImageTable] = []
        splits = []
        for split in dataset.splits.values():
            table = _get_table(split)
            number = next((i for i, one in enumerate(tables) if one is table), None)
            if number is None:
                number = len(tables)
                tables.append(table)
                arrays |= {f"table{number}.{name}": array for name, array in table.to_arrays().items()}
            assert isinstance(split.images, PackedImages)
            arrays[f"rows.{split.name}"] = split.images.rows
            splits.append(
                {
                    "name": split.name,
                    "source": split.source,
                    "table": number,
                    "skipped": split.skipped,
                    "examples": split.examples,
                }
            )
        header = {
            "key": self._key,
            "format": dataset.format,
            "categories": list(dataset.categories),
            "notes": list(dataset.notes),
            "splits": splits,
        }
        arrays["header"] = np.frombuffer(json.dumps(header).encode("ascii"), dtype=np.uint8)
        return arrays

    def _build(self, arrays: Arrays) -> AnnotatedDataset:
        header = json.loads(arrays["header"].tobytes())
        if header["key"] != self._key:
            raise ValueError("it is of another data set")
        tables: dict[int, ImageTable] = {}
        splits = {}
        for entry in header["splits"]:
            prefix = f"table{entry['table']}."
            if entry["table"] not in tables:
                own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
                tables[entry["table"]] = ImageTable.from_arrays(own)
            name = entry["name"]
            images = PackedImages(tables[entry["table"]], arrays[f"rows.{name}"])
            splits[name] = Split(name, entry["source"], images, entry["skipped"], entry["examples"])
        return AnnotatedDataset(
            format=header["format"],
            root=self._folder.root,
            categories=tuple(header["categories"]),
            splits=splits,
            notes=tuple(header["notes"]),
        )


def _get_table(split: Split) -> ImageTable:
    assert isinstance(split.images, PackedImages)
    return split.images.table


def _compute_key(folder: Folder, options: Mapping[str, Any], directory: Path) -> str:
    """Hash everything that decides what is read; the files that vpexp itself keeps below the root do not count."""
    root = os.path.abspath(folder.root)  # noqa: PTH100 (resolve would follow links, and images are named as given)
    head = {
        "reader": READER_VERSION,
        "libraries": {name: version(name) for name in _LIBRARIES},
        "options": dict(options),
        "root": [str(folder.root), root, folder.only_file],
    }
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    own = os.path.relpath(os.path.abspath(directory), root).replace(os.sep, "/") + "/"  # noqa: PTH100
    for name in folder.files:
        if name.startswith(own):
            continue
        try:
            status = os.stat(f"{root}/{name}")  # noqa: PTH116 (a Path for each of 100,000 files takes half a second)
            line = f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"
        except OSError:
            line = f"{name}\0gone\n"
        digest.update(line.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:40]


def _prune(directory: Path, newest: Path) -> None:
    """Remove the files that were not used for longest, and drafts of processes that died."""
    with suppress(OSError):
        for draft in directory.glob(".*.npz.*"):
            if time.time() - draft.stat().st_mtime > _STALE_DRAFT_SECONDS:
                draft.unlink(missing_ok=True)
        files = [(file.stat().st_mtime_ns, file.stat().st_size, file) for file in directory.glob("*.npz")]
        total = 0
        for number, (_, size, file) in enumerate(sorted(files, reverse=True)):
            total += size
            if file != newest and (number >= MOST_FILES or total > MOST_BYTES):
                file.unlink(missing_ok=True)
