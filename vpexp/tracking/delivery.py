"""Hand the entries of a journal to MLflow, and judge what a failure says of the store."""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from vpexp.errors import CheckpointError, VpexpError
from vpexp.files import is_below
from vpexp.runfolder import RunFolder
from vpexp.tracking.journal import FOLDER_TAG, Entry, Journal, State, close_abandoned_runs, open_journal, read_state
from vpexp.tracking.models import PackageMissingError, log_made_model, log_taken_model, register_version
from vpexp.tracking.store import (
    clean_name,
    clean_params,
    clean_tags,
    clean_text,
    connect,
    describe_error,
    find_experiment,
    is_unreachable,
)

log = logging.getLogger(__name__)

PARAMS_A_CALL = 100  # MLflow's limits
METRICS_A_CALL = 1000
ORIGIN_TAG = "checkpoint_run"
PARENT_TAG = "mlflow.parentRunId"  # by which MLflow shows runs below one another
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS")  # the store understood, and will never take it
MISSING = "RESOURCE_DOES_NOT_EXIST"
BUSY = "TEMPORARILY_UNAVAILABLE"  # a database that others write to


class ParentNotOpenError(Exception):
    """The run that this one belongs to is not in the store yet."""


class ArtifactError(Exception):
    """A file that was to be uploaded is not there any more, or is none of the run's."""


class Trouble(Enum):
    """What a failed delivery says."""

    AWAY = "the store cannot be used"
    BUSY = "the store is there, others use it"
    PARENT = "the store has not opened the run that this one belongs to"
    LOST = "the store does not know the run any more"
    ALONE = "the store is there, but this entry fails"
    REFUSED = "the store will never take this entry"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a failed delivery says, and why, for people."""

    trouble: Trouble
    reason: str


class Courier:
    """Delivers the entries of one journal.

    Args:
        journal: takes MLflow's id of the run.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._client: Any = None
        self._hand_over: dict[str, Callable[[Entry], None]] = {
            "create": self._create,
            "reopen": self._reopen,
            "params": self._log_params,
            "metrics": self._log_metrics,
            "tags": self._set_tags,
            "artifact": self._log_artifact,
            "dataset": self._log_dataset,
            "origin": self._log_origin,
            "model": self._log_model,
            "register": self._register,
            "close": self._close,
        }

    @property
    def client(self) -> Any:
        """The store's client, connected when it is first needed."""
        if self._client is None:
            self._client = connect(self.journal.state.uri)
        return self._client

    @property
    def _run_id(self) -> str:
        assert self.journal.state.run_id is not None, "nothing is delivered before the run is open"
        return self.journal.state.run_id

    def deliver(self, entries: list[Entry]) -> None:
        """Deliver an entry, or several metrics; delivered again after a crash, they change nothing.

        Raises:
            Exception: whatever the store raises; ``judge`` says what it means.
        """
        if len(entries) > 1:
            self._log_all_metrics(entries)
        elif (hand_over := self._hand_over.get(entries[0].kind)) is not None:
            hand_over(entries[0])

    def judge(self, error: Exception, entry: Entry) -> Judgement:
        """Judge a failed delivery; where the error leaves it open, the store is asked whether it is there."""
        reason, code = describe_error(error), getattr(error, "error_code", None)
        if isinstance(error, ParentNotOpenError):
            trouble = Trouble.PARENT
        elif isinstance(error, ArtifactError | PackageMissingError | VpexpError):  # of files, no better the next time
            trouble = Trouble.REFUSED
        elif code == BUSY:
            trouble = Trouble.BUSY
        elif self.journal.state.run_id is None or is_unreachable(error):
            trouble = Trouble.AWAY
        elif (judgement := self._ask_for_run()) is not None:
            return judgement
        elif entry.kind == "reopen":  # what follows would be recorded in a run that has ended
            trouble = Trouble.AWAY
        else:
            trouble = Trouble.REFUSED if code in REFUSALS else Trouble.ALONE
        return Judgement(trouble, reason)

    def _ask_for_run(self) -> Judgement | None:
        """Ask the store for the run; None: it is there."""
        try:
            run = self.client.get_run(self._run_id)
        except Exception as error:  # noqa: BLE001  (whatever it is, the store is not there as it should be)
            lost = getattr(error, "error_code", None) == MISSING
            return Judgement(Trouble.LOST if lost else Trouble.AWAY, describe_error(error))
        if run.info.lifecycle_stage != "deleted":
            return None
        restore = f"mlflow runs restore --run-id {run.info.run_id}"
        return Judgement(Trouble.AWAY, f"the run was deleted there; to have it back: {restore}")

    def _create(self, entry: Entry) -> None:
        state, content = self.journal.state, entry.content
        if state.run_id is None:
            tags = clean_tags(content["tags"])
            if parent := self._find_parent(content["parent"]):
                tags[PARENT_TAG] = parent
            place = Path(content["artifact_folder"])
            state.experiment_id = find_experiment(self.client, state.uri, clean_text(content["experiment"]), place)
            run = self._find_created(entry.time, tags) or self.client.create_run(
                state.experiment_id, start_time=entry.time, tags=tags, run_name=clean_text(content["name"])
            )
            state.run_id = run.info.run_id
            self.journal.save()
        self._note_open()

    def _find_parent(self, folder: str | None) -> str | None:
        """Find MLflow's id of the run that this one belongs to; None where it has none in this store, and never will."""
        if folder is None:
            return None
        parent = read_state(self.journal.folder / folder)
        if parent is None or parent.uri != self.journal.state.uri:
            return None
        if parent.run_id is None:
            raise ParentNotOpenError(f"the run in {(self.journal.folder / folder).resolve()} is not in the store yet")
        return parent.run_id

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
            close_abandoned_runs(self.client, str(state.experiment_id))
        except Exception as error:  # the run itself is open
            log.warning("tracking: runs left open cannot be closed", exc_info=error)

    def _reopen(self, entry: Entry) -> None:
        """Let a run that was stopped go on, without the error that stopped it."""
        del entry
        run_id = self._run_id
        self.client.update_run(run_id, status="RUNNING")
        if "error" in self.client.get_run(run_id).data.tags:
            self.client.delete_tag(run_id, "error")
        self._note_open()

    def _log_params(self, entry: Entry) -> None:
        from mlflow.entities import Param

        params = [Param(name, value) for name, value in clean_params(entry.content).items()]
        for start in range(0, len(params), PARAMS_A_CALL):
            self.client.log_batch(self._run_id, params=params[start : start + PARAMS_A_CALL])

    def _log_metrics(self, entry: Entry) -> None:
        self._log_all_metrics([entry])

    def _log_all_metrics(self, entries: list[Entry]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(clean_name(name), value, entry.time, entry.content["step"])
            for entry in entries
            for name, value in entry.content["metrics"].items()
        ]
        for start in range(0, len(metrics), METRICS_A_CALL):
            self.client.log_batch(self._run_id, metrics=metrics[start : start + METRICS_A_CALL])

    def _set_tags(self, entry: Entry) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(name, value) for name, value in clean_tags(entry.content).items()]
        self.client.log_batch(self._run_id, tags=tags)

    def _log_artifact(self, entry: Entry) -> None:
        path, folder, run_id = self.journal.folder / entry.content["path"], entry.content["folder"], self._run_id
        self._check_own(path)
        if path.is_dir():
            self.client.log_artifacts(run_id, str(path), folder or path.name)
        elif path.is_file():
            self.client.log_artifact(run_id, str(path), folder)
        else:
            raise ArtifactError(f"{path} is not there any more")

    def _check_own(self, path: Path) -> None:
        """Refuse to upload what is not the run's: its folder may have been made elsewhere, to name files of the user."""
        if not is_below(path, self.journal.folder):
            raise ArtifactError(f"{path} is outside of the run's folder")

    def _log_dataset(self, entry: Entry) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        name, source = clean_text(entry.content["name"]), clean_text(entry.content["source"])
        profile = entry.content["profile"]
        text = json.dumps(profile, sort_keys=True, default=str)
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
        package = self.journal.folder / entry.content["package"]
        self._check_own(package)
        maker = self._read_run(Path(entry.content["maker"]))
        content = {**entry.content, "package": package}
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
            if journal is not None and not journal.is_open and journal.count_waiting():  # on its way, from a thread
                raise ParentNotOpenError(f"the run in {folder} is still being uploaded")
            return journal.state if journal else state
        try:
            with other.hold():
                journal = open_journal(folder)
                assert journal is not None
                _deliver_waiting(journal)
                return journal.state
        except (ParentNotOpenError, CheckpointError) as error:  # of a pipeline that is not in the store; taken just now
            log.warning("tracking: %s: %s", folder, error)
            return read_state(folder)

    def _close(self, entry: Entry) -> None:
        self.client.set_terminated(self._run_id, entry.content["status"], end_time=entry.time)


def _deliver_waiting(journal: Journal) -> None:
    """Deliver all that waits in the journal of a run that has ended; what the store does not take is set aside.

    Raises:
        Exception: the store cannot be used; what has arrived stays noted.
    """
    courier = Courier(journal)
    while entries := journal.get_next(1):
        try:
            courier.deliver(entries)
        except Exception as error:
            if courier.judge(error, entries[0]).trouble not in (Trouble.ALONE, Trouble.REFUSED):
                raise
            log.warning("tracking: %s: %s", journal.folder, entries[0].kind, exc_info=error)
            journal.set_aside(entries)
        else:
            journal.mark_delivered(entries)
