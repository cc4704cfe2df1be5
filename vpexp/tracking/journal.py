"""What MLflow is to record of a run, in the run's folder before it is sent: from there it can be sent again at any time.

``tracking.jsonl`` holds one numbered entry a line, in order, with its time; ``tracking.json`` says where they go, which
MLflow run they belong to, and up to which number they have arrived. Runs whose process is gone without a word (killed,
out of memory, power cut) do not stay RUNNING.
"""

import itertools
import json
import logging
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from vpexp.console import log_line
from vpexp.files import write_json
from vpexp.runfolder import RunFolder
from vpexp.tracking.store import list_experiments

ENTRIES = "tracking.jsonl"
STATE = "tracking.json"
ENTRY_TYPES = {"kind": (str,), "time": (int,), "content": (dict,), "number": (int,)}
STATE_TYPES = {
    "uri": (str,),
    "delivered": (int,),
    "set_aside": (list,),
    **dict.fromkeys(("run_id", "experiment_id", "model_id"), (str, type(None))),
}
METRICS = "metrics"  # entries of this kind are delivered many at once: a slow store is asked less often
METRICS_A_CALL = 1000  # MLflow's limit
HOST_TAG = "host"
FOLDER_TAG = "run_folder"
MOST = 1000
ERROR = "the process ended without a word: killed, out of memory, or the machine stopped"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing to tell.

    Attributes:
        kind: create, reopen, params, metrics, tags, artifact, dataset, origin, model, register or close.
        time: of the record, milliseconds since 1970.
        content: depends on the kind; what JSON can hold.
        number: its place in the journal, from 1.
    """

    kind: str
    time: int
    content: dict[str, Any]
    number: int = 0


@dataclass(slots=True)
class State:
    """Where a journal stands.

    Attributes:
        uri: the store.
        run_id: MLflow's id of the run; None until the store has opened it.
        delivered: number of the last entry that was dealt with; all before it were too.
        experiment_id: MLflow's id of the experiment.
        model_id: MLflow's id of the model that the run made, for the runs that take it up.
        set_aside: numbers of entries before it that the store did not take; the next upload tries them again.
    """

    uri: str
    run_id: str | None = None
    delivered: int = 0
    experiment_id: str | None = None
    model_id: str | None = None
    set_aside: list[int] = field(default_factory=list)


class Journal:
    """The journal of one run; one process writes to it at a time, any number of its threads.

    Args:
        folder: the run's folder.
        state: of the delivery; ``save`` after a change.
        entries: all that are on disk.

    Attributes:
        is_open: whether the last record is not the run's end.
        last_time: of the last record; 0 where there is none.
        has_left: whether another process may deliver what is left.
    """

    def __init__(self, folder: Path, state: State, entries: list[Entry]) -> None:
        self.folder = folder
        self.state = state
        self.is_open = False
        self.last_time = 0
        self._last_number = state.delivered
        self._waiting: list[Entry] = []
        self._left_for_later: list[Entry] = []
        self._unwritten: list[Entry] = []  # that a full disk did not take
        self.has_left = False
        self._lock = threading.RLock()
        for entry in entries:
            self._note(entry, waits=entry.number > state.delivered or entry.number in state.set_aside)

    def append(self, kind: str, content: dict[str, Any], at: int | None = None) -> None:
        """Add an entry; ``at`` says when it happened, if not now. A full disk costs its copy on disk, not the entry."""
        with self._lock:
            entry = Entry(kind, int(time.time() * 1000) if at is None else at, content, self._last_number + 1)
            self._note(entry, waits=True)
            self._unwritten.append(entry)
            lines = [
                json.dumps({part.name: getattr(new, part.name) for part in fields(new)}, default=str, skipkeys=True)
                for new in self._unwritten
            ]
            try:
                with (self.folder / ENTRIES).open("a", encoding="utf-8") as file:
                    # Before a line, not after it: half a line of a killed process, or of a full disk, swallows nothing.
                    file.write(("\n" if file.tell() else "") + "\n".join(lines))
            except OSError as error:
                if len(lines) == 1:
                    log.warning("tracking: %s cannot be written: %s", self.folder / ENTRIES, error)
            else:
                self._unwritten.clear()

    def get_next(self) -> list[Entry]:
        """Get the oldest entry that has not arrived, with those that can go with it."""
        with self._lock:
            if self.has_left:
                return []
            together = itertools.takewhile(lambda entry: entry.kind == METRICS, self._waiting)
            return list(itertools.islice(together, METRICS_A_CALL)) or self._waiting[:1]

    def settle(self, entries: list[Entry], *, later: bool = False) -> None:
        """Note that entries have arrived, or never can, or (``later``) are left for the next upload to try again."""
        with self._lock:
            numbers = {entry.number for entry in entries}
            self._waiting = [entry for entry in self._waiting if entry.number not in numbers]
            self._left_for_later += entries if later else []
            self.state.set_aside = sorted({*self.state.set_aside} - numbers | (numbers if later else set()))
            self.state.delivered = max(self.state.delivered, *numbers)
            self.save()

    def take_up_again(self) -> None:
        """Let what was left for later wait again, behind what waits."""
        with self._lock:
            self._waiting += self._left_for_later
            self._left_for_later = []

    def count_waiting(self) -> int:
        """Count the entries that are still to be delivered."""
        with self._lock:
            return len(self._waiting)

    def count_missing(self) -> int:
        """Count the entries that have not arrived: those that wait, and those left for later."""
        with self._lock:
            return len({entry.number for entry in self._waiting} | set(self.state.set_aside))

    def start_again(self) -> None:
        """The store has lost the run: everything is to be sent anew."""
        with self._lock:
            self.state = State(self.state.uri)
            self._waiting, self._left_for_later = [*_read_entries(self.folder / ENTRIES), *self._unwritten], []
            self.save()

    def leave(self) -> None:
        """Deliver nothing more, and write no more about it: from here on another process may deliver what is left."""
        with self._lock:
            self.has_left = True

    def save(self) -> None:
        """Write down where the delivery stands."""
        with self._lock:
            if self.has_left:
                return
            try:
                write_json(self.folder / STATE, asdict(self.state))
            except OSError as error:
                log.warning("tracking: %s cannot be written: %s", self.folder / STATE, error)

    def _note(self, entry: Entry, *, waits: bool) -> None:
        if waits:
            self._waiting.append(entry)
        self._last_number = max(self._last_number, entry.number)
        self.last_time = max(self.last_time, entry.time)
        if entry.kind in ("create", "reopen", "close"):
            self.is_open = entry.kind != "close"


def open_journal(folder: Path, uri: str | None = None) -> Journal | None:
    """Open the journal of a run, with what an earlier process has left there.

    Args:
        folder: the run's folder.
        uri: the store; another one than the journal was for is sent everything from the start. None: as it was.

    Returns:
        The journal; None where there is none and ``uri`` is None.
    """
    state = read_state(folder)
    is_new = uri is not None and (state is None or state.uri != uri)
    if uri is not None and is_new:
        state = State(uri)
    if state is None:
        return None
    journal = Journal(folder, state, _read_entries(folder / ENTRIES))
    if is_new:
        journal.save()  # at once: a run that never reaches its store is uploaded by what is written here
    return journal


def read_state(folder: Path) -> State | None:
    """Read where the delivery of a run stands; None where it was never tracked."""
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        state = State(**json.loads(path.read_text(encoding="utf-8")))
        _check_types(state, STATE_TYPES)
    except (ValueError, TypeError, RecursionError) as error:
        log.warning("tracking: %s is not readable: %s", path, error)
        return None
    return state


def _read_entries(path: Path) -> list[Entry]:
    if not path.is_file():
        return []
    entries: dict[int, Entry] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        if not line:
            continue
        try:
            entry = Entry(**json.loads(line))
            _check_types(entry, ENTRY_TYPES)
        except (ValueError, TypeError, RecursionError):  # half a line: the process was killed, or the disk was full
            log.info("tracking: a line of %s is not readable", path)
        else:
            entries[entry.number] = entry
    return [entries[number] for number in sorted(entries)]


def _check_types(read: Entry | State, types: Mapping[str, tuple[type, ...]]) -> None:
    """Raise a TypeError where what was read is of other types than what is written."""
    for name, kinds in types.items():
        value = getattr(read, name)
        if type(value) not in kinds or (isinstance(value, list) and not all(type(number) is int for number in value)):
            raise TypeError(f"{name} is a {type(value).__name__}")


def read_begin(folder: Path) -> int:
    """Read the time of a run's first record, milliseconds since 1970; 0 where there is none."""
    path = folder / ENTRIES
    if not path.is_file():
        return 0
    with path.open(encoding="utf-8", errors="replace") as file:
        try:
            return int(json.loads(file.readline())["time"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):  # half a line
            return 0


def get_host() -> str:
    """Name this machine."""
    return socket.gethostname()


def close_abandoned_runs(client: Any) -> int:
    """Close the runs of this machine that MLflow believes to be running and whose process is gone, as KILLED.

    A living process holds the lock of its run folder. Runs of other machines are not judged: their locks may not reach
    here.

    Returns:
        How many were closed.
    """
    wanted = f"attributes.status = 'RUNNING' and tags.{HOST_TAG} = '{get_host()}'"
    closed = 0
    for run in client.search_runs(list_experiments(client), wanted, max_results=MOST):
        folder = RunFolder(Path(run.data.tags.get(FOLDER_TAG, "")))
        if not run.data.tags.get(FOLDER_TAG) or folder.is_held():
            continue
        if client.get_run(run.info.run_id).info.status != "RUNNING":  # it ended while the others were looked at
            continue
        client.set_tag(run.info.run_id, "error", ERROR)
        client.set_terminated(run.info.run_id, "KILLED", end_time=_find_last_sign(folder))
        mark_killed(folder)
        closed += 1
        log_line(f"closed as KILLED: {folder.path}, {ERROR}")
    return closed


def close_dead_run(folder: RunFolder, journal: Journal) -> None:
    """End the journal of a run whose process is gone and whose end is not recorded, at the time of its last record."""
    if not journal.is_open:
        return
    mark_killed(folder)
    record = folder.read_run_json()
    if record.get("error"):
        journal.append("tags", {"error": record["error"]}, at=journal.last_time)
    journal.append("close", {"status": record.get("status", "KILLED")}, at=journal.last_time)


def mark_killed(folder: RunFolder) -> bool:
    """Write into a run's own record that its process is gone; return whether it was believed to be running."""
    record = folder.read_run_json()
    if record.get("status") != "RUNNING":
        return False
    folder.update_run_json(status="KILLED", error=ERROR)
    return True


def _find_last_sign(folder: RunFolder) -> int | None:
    """Find the time of a run's last record, milliseconds since 1970; None where it is unknown."""
    try:
        return int((folder.path / ENTRIES).stat().st_mtime * 1000)
    except OSError:
        return None
