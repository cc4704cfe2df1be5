"""Where the files of a run lie, how its records are read and written, and which run was the last that succeeded.

``<output_dir>/<stage>/<YYYYMMDD_HHMMSS_microseconds>/`` holds one run; ``<output_dir>/.latest/<stage>`` is a symbolic
link to the last successful one, swapped atomically. ``metrics.csv`` has one row an epoch, columns joined as new metrics appear.
"""

import csv
import errno
import fcntl
import logging
import math
import os
import struct
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from vpexp.errors import CheckpointError, ConfigError
from vpexp.files import is_below, read_json, replacing, write_json

TIME_FORMAT = "%Y-%m-%dT%H:%M:%S%z"  # of started and ended in run.json
CHECKPOINTS = "checkpoints"
LATEST = "latest"  # what checkpoint= and resume= call the last run
# struct flock of fcntl(2): on Linux, and on macOS.
FLOCK, FLOCK_FIELDS = ("hhlli", ("l_type", "l_whence", "l_start", "l_len", "l_pid"))
if sys.platform == "darwin":
    FLOCK, FLOCK_FIELDS = ("qqihh", ("l_start", "l_len", "l_pid", "l_type", "l_whence"))
RESERVED_BYTES = 64 * 1024
# What run.json may hold, as far as anything relies on it: the folder may come from elsewhere.
RECORD_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("stage", "status", "error", "host", "started", "ended", "mlflow_run_id"), (str,)),
    **dict.fromkeys(("best_checkpoint", "config_hash", "job_name"), (str,)),
    **dict.fromkeys(("process", "job", "best_job", "epochs", "encoder_passes"), (int,)),
    **dict.fromkeys(("before", "steps", "splits", "cache", "values", "sweep", "versions"), (dict,)),
}
_held_here: dict[Path, tuple[TextIO, int]] = {}  # the open lock file, and how many hold it
_hold_lock = threading.Lock()
_record_lock = threading.Lock()  # the thread that talks to MLflow writes into run.json too

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths inside one run's folder."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved, complete configuration."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """``epoch_NNN.ckpt`` (best), ``last.ckpt``, and ``start.ckpt`` while a training goes on, or where it did not help."""
        return self.path / CHECKPOINTS

    @property
    def start_checkpoint(self) -> Path:
        """What was to be trained, as it was before: it competes with the epochs."""
        return self.checkpoints / "start.ckpt"

    @property
    def blend_checkpoint(self) -> Path:
        """Mixture of the start and the best epoch, where ``trainer.blend`` found one."""
        return self.checkpoints / "blend.ckpt"

    @property
    def images_before(self) -> Path:
        """Pixel sums of each image before a training, by split."""
        return self.path / "images_before.json"

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint that ``resume=`` continues from."""
        return self.checkpoints / "last.ckpt"

    @property
    def metrics_csv(self) -> Path:
        """One row an epoch."""
        return self.path / "metrics.csv"

    def images_of(self, split: str) -> Path:
        """One row an image that was evaluated."""
        return self.path / f"images_{split}.csv"

    @property
    def metrics_json(self) -> Path:
        """The final metrics."""
        return self.path / "metrics.json"

    @property
    def run_json(self) -> Path:
        """What ran, with what, on how many images, and how it ended."""
        return self.path / "run.json"

    @property
    def overlays(self) -> Path:
        """Pictures of ground truth, prompt and prediction."""
        return self.path / "overlays"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def log(self) -> Path:
        """The run's log."""
        return self.path / "vpexp.log"

    @property
    def lock(self) -> Path:
        """Held by the process that works in the folder."""
        return self.path / ".lock"

    @property
    def reserved(self) -> Path:
        """Space that is given back when the disk is full, for the record of how the run ended."""
        return self.path / ".reserved"

    def read_run_json(self) -> dict[str, Any]:
        """Read ``run.json``; an empty dict where it is absent.

        Raises:
            CheckpointError: it is no JSON object, or one of its fields is of another type than vpexp writes.
        """
        if not self.run_json.is_file():
            return {}
        record = read_json(self.run_json)
        for name, kinds in RECORD_TYPES.items():
            value = record.get(name)
            if value is not None and not isinstance(value, kinds):
                raise CheckpointError(
                    f"{self.run_json}: {name} is a {type(value).__name__}: no record of vpexp, or changed"
                )
        if not str(record.get("stage") or "none").isidentifier():  # the name of a folder
            raise CheckpointError(f"{self.run_json}: stage={record['stage']} is no stage")
        for parts in (record.get("before") or {}, record.get("steps") or {}):
            if not all(isinstance(part, dict) for part in parts.values()):
                raise CheckpointError(f"{self.run_json}: before and steps hold objects: no record of vpexp, or changed")
        return record

    def read_metrics_json(self) -> dict[str, Any]:
        """Read ``metrics.json``: its ``metrics`` are numbers or null by name, its ``details`` an object.

        Raises:
            CheckpointError: it is damaged, or nothing that vpexp wrote.
        """
        content = read_json(self.metrics_json)
        metrics, details = content.get("metrics"), content.get("details", {})
        if not isinstance(metrics, dict) or not isinstance(details, dict):
            raise CheckpointError(f"{self.metrics_json}: holds no metrics: not written by vpexp, or changed")
        for name, value in metrics.items():
            if not isinstance(value, int | float | None):
                raise CheckpointError(f"{self.metrics_json}: {name} is no number")
        return content

    def update_run_json(self, **fields: Any) -> None:
        """Add or replace fields of ``run.json``, atomically."""
        with _record_lock:
            write_json(self.run_json, {**self.read_run_json(), **fields})

    def refuse_links(self) -> None:
        """Refuse a folder of a run whose files lie elsewhere: it may come from others, and a run writes into its own.

        Raises:
            CheckpointError: a link leads out of it.
        """
        place = self.path.resolve()
        for folder in (place, *(place / name for name in (CHECKPOINTS, "tensorboard", "overlays"))):
            for path in folder.iterdir() if folder.is_dir() else ():
                if path.is_symlink() and not is_below(path, place):
                    raise CheckpointError(
                        f"{path} is a link to {path.readlink()}: a run writes into its own folder alone; if it is yours, "
                        "put there what the link names"
                    )

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the folder for this process: the lock goes with the process, however it ends, or with its last holder.

        Raises:
            CheckpointError: another process works in this folder, or a link leads out of it.
        """
        place = self.path.resolve()
        with _hold_lock:
            file = _held_here[place][0] if place in _held_here else _lock(self)
            _held_here[place] = (file, _held_here.get(place, (file, 0))[1] + 1)
        try:
            yield
        finally:
            with _hold_lock:
                count = _held_here.pop(place)[1] - 1
                if count:
                    _held_here[place] = (file, count)
                else:
                    self.lock.unlink(missing_ok=True)  # while it is held: no other process can hold it now
                    file.close()

    @contextmanager
    def reserve(self) -> Iterator[None]:
        """Reserve the space that the record of the run's end takes.

        Raises:
            OSError: there is no such space.
        """
        try:
            self.reserved.write_bytes(bytes(RESERVED_BYTES))
            yield
        finally:
            self.reserved.unlink(missing_ok=True)

    def is_held(self) -> bool:
        """Return whether a process works in the folder; where the file system has no locks that is unknown: True.

        The lock is asked for, not taken: a process that begins to work in the folder meanwhile gets it.
        """
        with _hold_lock:
            if self.path.resolve() in _held_here:  # to open and close the file would end this process's lock
                return True
            try:
                with self.lock.open() as file:
                    return _is_locked(file)
            except FileNotFoundError:
                return False
            except OSError:
                return True


def _is_locked(file: TextIO) -> bool:
    """Whether another process holds a lock on a file, by F_GETLK on the whole of it."""
    fields = {"l_type": fcntl.F_WRLCK, "l_whence": os.SEEK_SET, "l_start": 0, "l_len": 0, "l_pid": 0}
    answer = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(FLOCK, *(fields[name] for name in FLOCK_FIELDS)))
    kind = struct.unpack(FLOCK, answer)[FLOCK_FIELDS.index("l_type")]
    return bool(kind != fcntl.F_UNLCK)


def _lock(folder: RunFolder) -> TextIO:
    folder.refuse_links()
    file = folder.lock.open("a")
    while not _is_same(file, folder.lock):  # its last holder took it away between our opening and locking it
        file.close()
        file = folder.lock.open("a")
    return file


def _is_same(file: TextIO, path: Path) -> bool:
    _lock_file(file, path)
    try:
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _lock_file(file: TextIO, path: Path) -> None:
    try:
        # Not flock, which processes that read images beside a training would keep after its end.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            raise CheckpointError(f"{path.parent} is in use by another process: wait for its end") from None
        log.warning("%s cannot be locked: %s", path.parent, error.strerror)  # a file system without locks


def create_run_folder(output_dir: Path, stage: str, path: Path | None = None) -> RunFolder:
    """Create the folder of a new run; ``path`` (a sweep's job folder) overrides the timed name.

    Raises:
        ConfigError: the folder cannot be written.
    """
    if path is None:
        path = output_dir / stage / datetime.now().astimezone().strftime("%Y%m%d_%H%M%S_%f")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"paths.output_dir={output_dir} cannot be written: {error.strerror} ({error.filename})"
        ) from error
    return RunFolder(path.resolve())


def mark_latest(output_dir: Path, stage: str, folder: RunFolder) -> None:
    """Point ``<output_dir>/.latest/<stage>`` at ``folder``, in one atomic swap."""
    latest = output_dir.resolve() / ".latest"
    latest.mkdir(parents=True, exist_ok=True)
    draft = latest / f".{stage}.{os.getpid()}"
    draft.unlink(missing_ok=True)
    draft.symlink_to(os.path.relpath(folder.path, latest))
    draft.replace(latest / stage)


def find_maker(file: Path) -> RunFolder | None:
    """Find the run whose folder a checkpoint or a file of an exported model lies in; None where it is no run's folder."""
    folder = file.parent.parent if file.parent.name == CHECKPOINTS else file.parent
    maker = RunFolder(folder.resolve())
    return maker if maker.run_json.is_file() else None


def find_latest(output_dir: Path, stage: str) -> RunFolder | None:
    """Find the last run of ``stage`` that succeeded; None if there is none."""
    link = output_dir / ".latest" / stage
    return RunFolder(link.resolve()) if link.exists() else None


def append_metrics(path: Path, epoch: int, metrics: Mapping[str, float]) -> None:
    """Add the row of an epoch; a row of the same or a later epoch (from before a resume) is replaced.

    The file is written anew and moved into place, so that it is never half written. A number without meaning (NaN) is
    left empty.
    """
    rows = [row for row in read_metrics(path) if int(row["epoch"]) < epoch]
    numbers = {name: repr(float(value)) if math.isfinite(value) else "" for name, value in sorted(metrics.items())}
    rows.append({"epoch": str(epoch)} | numbers)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Read the rows; none where the file does not exist.

    Raises:
        CheckpointError: it is no table in UTF-8 whose rows begin with the number of an epoch.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, restkey="", restval=""))
        for row in rows:
            int(row["epoch"])
    except (KeyError, ValueError, csv.Error) as error:
        raise CheckpointError(f"{path} is no table of epochs as vpexp writes it: {error}") from error
    if any("" in row for row in rows):
        raise CheckpointError(f"{path} is no table of epochs as vpexp writes it: a row is longer than the head")
    return rows
