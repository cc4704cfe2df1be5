"""What a run has to tell MLflow, on disk before it is sent: nothing is lost when the store or the process goes away.

``tracking.jsonl`` in the run's folder holds one entry a line, in order; ``tracking.json`` says where they go, which MLflow
run they belong to, and how many have arrived.
"""

import json
import logging
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vpexp.runfolder import write_json

log = logging.getLogger(__name__)

ENTRIES = "tracking.jsonl"
STATE = "tracking.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing to tell.

    Attributes:
        kind: create, reopen, params, metrics, tags, artifact, dataset, origin, model, register or close.
        time: when it was said, milliseconds since 1970.
        content: depends on the kind; what JSON can hold.
    """

    kind: str
    time: int
    content: dict[str, Any]


@dataclass(slots=True)
class State:
    """Where a journal stands.

    Attributes:
        uri: the store.
        run_id: MLflow's id of the run; None until the store has opened it.
        delivered: entries that have arrived.
        experiment_id: MLflow's id of the experiment.
        model_id: MLflow's id of the model that the run made, for the runs that take it up.
    """

    uri: str
    run_id: str | None = None
    delivered: int = 0
    experiment_id: str | None = None
    model_id: str | None = None


@dataclass(slots=True)
class Journal:
    """The journal of one run; one process writes to it at a time, any number of its threads.

    Attributes:
        folder: the run's folder.
        state: of the delivery; ``save`` after a change.
    """

    folder: Path
    state: State
    _waiting: list[Entry] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def append(self, kind: str, content: dict[str, Any]) -> None:
        """Add an entry. A disk that is full costs its copy on disk, not the entry."""
        entry = Entry(kind, int(time.time() * 1000), content)
        line = json.dumps({"kind": entry.kind, "time": entry.time, "content": content}, default=str)
        with self._lock:
            self._waiting.append(entry)
            try:
                with (self.folder / ENTRIES).open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
            except OSError as error:
                log.warning("tracking: %s cannot be written: %s", self.folder / ENTRIES, error)

    def get_first(self) -> Entry | None:
        """Get the oldest entry that has not arrived."""
        with self._lock:
            return self._waiting[0] if self._waiting else None

    def mark_delivered(self) -> None:
        """Note that the oldest entry has arrived, or that it never can."""
        with self._lock:
            self._waiting.pop(0)
            self.state.delivered += 1
        self.save()

    def count_waiting(self) -> int:
        """Count the entries that have not arrived."""
        with self._lock:
            return len(self._waiting)

    def save(self) -> None:
        """Write down where the delivery stands."""
        state = self.state
        try:
            write_json(
                self.folder / STATE,
                {
                    "uri": state.uri,
                    "run_id": state.run_id,
                    "delivered": state.delivered,
                    "experiment_id": state.experiment_id,
                    "model_id": state.model_id,
                },
            )
        except OSError as error:
            log.warning("tracking: %s cannot be written: %s", self.folder / STATE, error)


def open_journal(folder: Path, uri: str | None = None) -> Journal | None:
    """Open the journal of a run, with what an earlier process has left there.

    Args:
        folder: the run's folder.
        uri: the store; another one than the journal was for is told everything from the start. None: as it was.

    Returns:
        The journal; None where there is none and ``uri`` is None.
    """
    state = read_state(folder)
    is_new = uri is not None and (state is None or state.uri != uri)
    if is_new:
        state = State(str(uri))
    if state is None:
        return None
    _end_last_line(folder / ENTRIES)
    journal = Journal(folder, state, _read_entries(folder / ENTRIES)[state.delivered :])
    if is_new:
        journal.save()  # by which it is found later, whether or not the store ever answers this process
    return journal


def read_state(folder: Path) -> State | None:
    """Read where the delivery of a run stands; None where it was never tracked."""
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        return State(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        log.warning("tracking: %s is not readable: %s", path, error)
        return None


def read_begin(folder: Path) -> int:
    """Read when a run began to tell, milliseconds since 1970; 0 where it has told nothing."""
    path = folder / ENTRIES
    if not path.is_file():
        return 0
    with path.open(encoding="utf-8", errors="replace") as file:
        try:
            return int(json.loads(file.readline())["time"])
        except (ValueError, KeyError, TypeError):  # half a line
            return 0


def _read_entries(path: Path) -> list[Entry]:
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            fields = json.loads(line)
            entries.append(Entry(fields["kind"], fields["time"], fields["content"]))
        except (ValueError, KeyError, TypeError):  # the last line of a process that was killed while writing it
            log.warning("tracking: a line of %s is not readable", path)
            entries.append(Entry("unreadable", 0, {}))
    return entries


def _end_last_line(path: Path) -> None:
    """A process that was killed while writing leaves half a line, which must not swallow the next."""
    if path.is_file() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")
