"""Deliver the journals of runs that have ended, those of pipelines and sweeps before those of their parts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vpexp.runfolder import RunFolder
from vpexp.tracking.delivery import deliver_waiting
from vpexp.tracking.journal import STATE, open_journal, read_begin
from vpexp.tracking.store import normalize_uri


@dataclass(frozen=True, slots=True)
class Upload:
    """What came of a run's journal.

    Attributes:
        folder: the run's.
        run_id: MLflow's id of the run, if it has one.
        delivered: entries that arrived now.
        refused: entries that the store refused for good, and why.
    """

    folder: Path
    run_id: str | None
    delivered: int
    refused: tuple[str, ...]


def find_tracked_folders(folder: Path) -> list[Path]:
    """Find the runs in a folder and below it, in the order they began: parents first, and what a run took up before it."""
    return sorted((path.parent for path in folder.rglob(STATE)), key=lambda path: (read_begin(path), len(path.parts)))


def upload_waiting(folders: list[Path], uri: str | None = None) -> Iterator[Upload]:
    """Deliver what waits in the journals of runs; a run that is going on is left to its own process.

    Args:
        folders: of runs.
        uri: another store than the journals are for, which is told everything; None: what each journal says.

    Raises:
        Exception: the store cannot be used; what has arrived stays noted.
    """
    for path in folders:
        folder = RunFolder(path)
        if folder.is_held():
            continue
        with folder.hold():
            journal = open_journal(path, normalize_uri(uri) if uri else None)
            if journal is not None and journal.count_waiting():
                delivered, refused = deliver_waiting(journal)
                yield Upload(path, journal.state.run_id, delivered, refused)
