"""Deliver the journals of runs that have ended, those of pipelines and sweeps before those of their parts."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vpexp.errors import TrackingError
from vpexp.runfolder import RunFolder
from vpexp.tracking.journal import STATE, close_dead_run, open_journal, read_begin
from vpexp.tracking.sender import Sender
from vpexp.tracking.store import normalize_uri


@dataclass(frozen=True, slots=True)
class Upload:
    """What came of a run's journal.

    Attributes:
        folder: the run's.
        run_id: MLflow's id of the run.
        delivered: entries that arrived now.
        refused: entries that the store did not take, and why.
    """

    folder: Path
    run_id: str | None
    delivered: int
    refused: tuple[str, ...]


def find_tracked_folders(folder: Path) -> list[Path]:
    """Find the runs in a folder and below it, in the order they began: parents first, and what a run took up before it."""
    return sorted((path.parent for path in folder.rglob(STATE)), key=lambda path: (read_begin(path), len(path.parts)))


def find_parent_folders(folder: Path) -> list[Path]:
    """Find the runs that the run in a folder belongs to, the outermost first."""
    return [path for path in reversed(folder.parents) if (path / STATE).is_file()]


def count_missing(folder: Path) -> int:
    """Count the records of a run, and of the runs inside it, that have not arrived."""
    journals = (open_journal(path) for path in find_tracked_folders(folder))
    return sum(journal.count_missing() for journal in journals if journal is not None)


def upload_waiting(folders: list[Path], uri: str | None = None, until: float = math.inf) -> Iterator[Upload]:
    """Deliver what waits in the journals of runs; a run that is going on is left to its own process.

    Args:
        folders: of runs.
        uri: another store than the journals are for, which is sent everything; None: the store that each journal names.
        until: when to give up (``time.monotonic``).

    Raises:
        TrackingError: the store cannot be used; what has arrived stays noted.
    """
    for path in folders:
        folder = RunFolder(path)
        if not folder.is_held():
            with folder.hold():
                upload = _upload(folder, normalize_uri(uri) if uri else None, until)
            if upload is not None:
                yield upload


def _upload(folder: RunFolder, uri: str | None, until: float) -> Upload | None:
    journal = open_journal(folder.path, uri)
    if journal is None:
        return None
    close_dead_run(folder, journal)
    if not journal.count_waiting():
        return None
    sender = Sender(journal, tells=False)
    sender.start()
    try:
        arrived = sender.wait(until)
    finally:
        sender.stop()
    if not arrived:
        raise TrackingError(sender.trouble.reason if sender.trouble else "no answer in time")
    return Upload(folder.path, journal.state.run_id, sender.delivered, tuple(sender.refused))
