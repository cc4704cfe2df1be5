"""Deliver the journals of runs to MLflow: those of pipelines and sweeps before those of their parts.

What is delivered again, after a crash between a delivery and its note, changes nothing.
"""

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vpexp.errors import CheckpointError, TrackingError, VpexpError
from vpexp.files import is_below
from vpexp.runfolder import RunFolder
from vpexp.tracking.journal import (
    FOLDER_TAG,
    METRICS,
    STATE,
    Entry,
    Journal,
    State,
    close_abandoned_runs,
    close_dead_run,
    open_journal,
    read_begin,
    read_state,
)
from vpexp.tracking.models import ArtifactError, log_made_model, log_taken_model, register_version
from vpexp.tracking.store import (
    clean_name,
    clean_params,
    clean_tags,
    clean_text,
    connect,
    describe_error,
    find_experiment,
    is_unreachable,
    normalize_uri,
)

log = logging.getLogger(__name__)

ITEMS_A_CALL = {"params": 100, "metrics": 1000, "tags": 100}  # MLflow's limits
ORIGIN_TAG = "checkpoint_run"
PARENT_TAG = "mlflow.parentRunId"  # by which MLflow shows runs below one another
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS")  # the store understood, and will never take it
MISSING = "RESOURCE_DOES_NOT_EXIST"
BUSY = "TEMPORARILY_UNAVAILABLE"  # a database that others write to
BUSY_TRIES, BUSY_PAUSE = 3, 2.0
_given_up: dict[Path, threading.Thread] = {}  # by run folder; what has a last request under way


class ParentNotOpenError(TrackingError):
    """The run that this one belongs to, or takes its checkpoint from, is not in the store yet."""


class Uploader:
    """Delivers the entries of one journal.

    Args:
        journal: takes MLflow's id of the run.

    Attributes:
        delivered: how many entries have arrived.
        refused: what the store did not take, kind of entry and reason.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.delivered = 0
        self.refused: list[tuple[str, str]] = []
        self._client: Any = None
        self._starts_again = False
        self._handlers: dict[str, Callable[[Entry], None]] = {
            "create": self._create,
            "reopen": self._reopen,
            "params": self._log_params,
            "tags": self._set_tags,
            "artifact": self._log_artifact,
            "dataset": self._log_dataset,
            "origin": self._log_origin,
            "model": self._log_model,
            "register": self._register,
            "close": self._close,
        }

    def upload(self) -> None:
        """Deliver all that waits; an entry that the store does not take is left out.

        Raises:
            ParentNotOpenError: the store lacks a run without which this one has no place.
            TrackingError: the store cannot be used; what has arrived is noted.
        """
        previous = _given_up.pop(self.journal.folder.resolve(), None)
        if previous is not None and previous is not threading.current_thread():
            previous.join()  # its last request must not cross the first of this one
        while entries := self.journal.get_next():
            self._deliver(entries)

    def give_up(self, thread: threading.Thread) -> None:
        """Upload nothing more; a request that a thread has under way is left to itself, and its outcome is not noted."""
        self.journal.leave()
        if thread.is_alive():
            _given_up[self.journal.folder.resolve()] = thread

    @property
    def client(self) -> Any:
        """The store's client for the next request, connected when it is first needed.

        Raises:
            TrackingError: the upload has been given up.
        """
        if self.journal.has_left:
            raise TrackingError("the upload has been given up")
        if self._client is None:
            self._client = connect(self.journal.state.uri)
        return self._client

    @property
    def _run_id(self) -> str:
        assert self.journal.state.run_id is not None, "nothing is delivered before the run is open"
        return self.journal.state.run_id

    def _deliver(self, entries: list[Entry], tries: int = BUSY_TRIES) -> None:
        """Deliver an entry, or several metrics; where that fails, do what the failure asks for."""
        try:
            self._hand_over(entries)
        except TrackingError:
            raise
        except Exception as error:
            log.info("tracking: %s", entries[0].kind, exc_info=error)
            if getattr(error, "error_code", None) == BUSY and tries > 1:
                time.sleep(BUSY_PAUSE)
                self._deliver(entries, tries - 1)
            elif self._is_of_entry(error, entries[0]):
                self._leave_out(entries, error)
        else:
            self.delivered += len(entries)
            self.journal.settle(entries)

    def _leave_out(self, entries: list[Entry], error: Exception) -> None:
        """Leave an entry out that failed; of several, find out which."""
        if len(entries) > 1:
            for entry in entries:
                self._deliver([entry])
            return
        never = isinstance(error, VpexpError) or getattr(error, "error_code", None) in REFUSALS
        self.refused.append((entries[0].kind, describe_error(error)))
        self.journal.settle(entries, later=not never)

    def _is_of_entry(self, error: Exception, entry: Entry) -> bool:
        """Return whether a failure is of this entry alone; False: the store has lost the run, and gets everything again.

        Raises:
            TrackingError: the store cannot be used.
        """
        if isinstance(error, VpexpError):  # of files
            return True
        reason = describe_error(error)
        if self.journal.state.run_id is None or getattr(error, "error_code", None) == BUSY or is_unreachable(error):
            raise TrackingError(reason) from error
        try:
            run = self.client.get_run(self._run_id)
        except Exception as second:
            if getattr(second, "error_code", None) != MISSING or self._starts_again:
                raise TrackingError(describe_error(second)) from second
            self._starts_again = True
            self.journal.start_again()
            return False
        if run.info.lifecycle_stage == "deleted":
            restore = f"mlflow runs restore --run-id {run.info.run_id}"
            raise TrackingError(f"the run was deleted there; to have it back: {restore}") from error
        if entry.kind == "reopen":  # what follows would be recorded in a run that has ended
            raise TrackingError(reason) from error
        return True

    def _hand_over(self, entries: list[Entry]) -> None:
        kind = entries[0].kind
        if kind == METRICS:
            self._log_metrics(entries)
        elif kind in self._handlers:
            self._handlers[kind](entries[0])

    def _create(self, entry: Entry) -> None:
        state, content = self.journal.state, entry.content
        if state.run_id is None:
            tags = clean_tags(content["tags"])
            if parent := self._find_parent(content["parent"]):
                # In the parent's experiment, also where jobs of a sweep differ in their data: MLflow shows no others below it.
                tags[PARENT_TAG], state.experiment_id = str(parent.run_id), parent.experiment_id
            else:
                place = Path(content["artifact_folder"])
                state.experiment_id = find_experiment(self.client, state.uri, clean_text(content["experiment"]), place)
            run = self._find_created(entry.time, tags) or self.client.create_run(
                state.experiment_id, start_time=entry.time, tags=tags, run_name=clean_text(content["name"])
            )
            state.run_id = run.info.run_id
            self.journal.save()
        self._note_open()

    def _find_parent(self, folder: str | None) -> State | None:
        """Find where the run stands that this one belongs to; None where it is not in this store, and never will be."""
        if folder is None:
            return None
        parent = read_state(self.journal.folder / folder)
        if parent is None or parent.uri != self.journal.state.uri:
            return None
        if parent.run_id is None:
            raise ParentNotOpenError(f"the run in {(self.journal.folder / folder).resolve()} is not in the store yet")
        return parent

    def _find_created(self, began: int, tags: dict[str, str]) -> Any:
        """Find the run that an earlier try made, whose answer did not arrive."""
        found = self.client.search_runs([self.journal.state.experiment_id], f"attributes.start_time = {began}")
        return next((run for run in found if run.data.tags.get(FOLDER_TAG) == tags.get(FOLDER_TAG)), None)

    def _note_open(self) -> None:
        """Write MLflow's id into the run's own record, and put the runs in order that were left open."""
        folder = RunFolder(self.journal.folder)
        state = self.journal.state
        if folder.run_json.is_file() and folder.read_run_json().get("mlflow_run_id") != state.run_id:
            folder.update_run_json(mlflow_run_id=state.run_id)
        try:
            close_abandoned_runs(self.client)
        except Exception as error:  # the run itself is open
            log.warning("tracking: runs left open cannot be closed", exc_info=error)

    def _reopen(self, _: Entry) -> None:
        """Let a run that was stopped go on, without the error that stopped it."""
        self.client.update_run(self._run_id, status="RUNNING")
        if "error" in self.client.get_run(self._run_id).data.tags:
            self.client.delete_tag(self._run_id, "error")
        self._note_open()

    def _log_batch(self, **items: list[Any]) -> None:
        for name, values in items.items():
            step = ITEMS_A_CALL[name]
            for start in range(0, len(values), step):
                self.client.log_batch(self._run_id, **{name: values[start : start + step]})

    def _log_params(self, entry: Entry) -> None:
        from mlflow.entities import Param

        self._log_batch(params=[Param(name, value) for name, value in clean_params(entry.content).items()])

    def _log_metrics(self, entries: list[Entry]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(clean_name(name), value, entry.time, entry.content["step"])
            for entry in entries
            for name, value in entry.content["metrics"].items()
        ]
        self._log_batch(metrics=metrics)

    def _set_tags(self, entry: Entry) -> None:
        from mlflow.entities import RunTag

        self._log_batch(tags=[RunTag(name, value) for name, value in clean_tags(entry.content).items()])

    def _log_artifact(self, entry: Entry) -> None:
        path, folder = self._find_own(entry.content["path"]), entry.content["folder"]
        if path.is_dir():
            self.client.log_artifacts(self._run_id, str(path), folder or path.name)
        elif path.is_file():
            self.client.log_artifact(self._run_id, str(path), folder)
        else:
            raise ArtifactError(f"{path} is not there any more")

    def _find_own(self, name: str) -> Path:
        """Find a file of the run; its folder may have been made elsewhere, to name files of the user."""
        path = self.journal.folder / name
        if not is_below(path, self.journal.folder):
            raise ArtifactError(f"{path} is outside of the run's folder")
        return path

    def _log_dataset(self, entry: Entry) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        name, source = clean_text(entry.content["name"]), clean_text(entry.content["source"])
        text = json.dumps(entry.content["profile"], sort_keys=True, default=str)
        digest = hashlib.sha256(f"{source} {text}".encode()).hexdigest()[:8]
        dataset = Dataset(name, digest, "local", json.dumps({"uri": source}), profile=text)
        entity = DatasetInput(dataset, [InputTag("mlflow.data.context", entry.content["context"])])
        self.client.log_inputs(self._run_id, datasets=[entity])

    def _log_origin(self, entry: Entry) -> None:
        folder, state = Path(entry.content["folder"]), self.journal.state
        origin = self._read_run(folder)
        run_id = origin.run_id if origin else RunFolder(folder).read_run_json().get("mlflow_run_id")
        if run_id:
            self.client.set_tag(self._run_id, ORIGIN_TAG, run_id)
        if origin and origin.model_id and entry.content["is_model"]:
            log_taken_model(self.client, state, origin.model_id)

    def _log_model(self, entry: Entry) -> None:
        state = self.journal.state
        state.model_id = log_made_model(self.client, state, entry.content)
        self.journal.save()

    def _register(self, entry: Entry) -> None:
        content = {**entry.content, "package": self._find_own(entry.content["package"])}
        maker = self._read_run(Path(entry.content["maker"]))
        register_version(self.client, maker if maker and maker.run_id else self.journal.state, content)

    def _read_run(self, folder: Path) -> State | None:
        """Read where another run stands in the same store; what it could not deliver itself is delivered first."""
        if folder == self.journal.folder:
            return self.journal.state
        state, other = read_state(folder), RunFolder(folder)
        if state is None or state.uri != self.journal.state.uri:
            return None
        if not os.access(folder, os.W_OK):  # of somebody else
            return state
        if other.is_held():
            journal = open_journal(folder)
            if journal and not journal.is_open and journal.count_waiting() > len(state.set_aside):  # on its way
                raise ParentNotOpenError(f"the run in {folder} is still being uploaded")
            return state
        try:
            with other.hold():
                journal = open_journal(folder)
                assert journal is not None
                Uploader(journal).upload()
                return journal.state
        except (ParentNotOpenError, CheckpointError) as error:  # of a pipeline that is not in the store; taken just now
            log.warning("tracking: %s: %s", folder, error)
            return read_state(folder)

    def _close(self, entry: Entry) -> None:
        self.client.set_terminated(self._run_id, entry.content["status"], end_time=entry.time)


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


def upload_waiting(folders: list[Path], uri: str | None = None) -> Iterator[Uploader]:
    """Deliver what waits in the journals of runs; a run that is going on is left to its own process.

    Args:
        folders: of runs.
        uri: another store than the journals are for, which is sent everything; None: the store that each journal names.

    Yields:
        What came of each journal in which something waited.

    Raises:
        TrackingError: the store cannot be used; what has arrived stays noted.
    """
    for folder in map(RunFolder, folders):
        if folder.is_held():
            continue
        with folder.hold():
            journal = open_journal(folder.path, normalize_uri(uri) if uri else None)
            if journal is None:
                continue
            close_dead_run(folder, journal)
            if not journal.count_waiting():
                continue
            uploader = Uploader(journal)
            uploader.upload()
        yield uploader
