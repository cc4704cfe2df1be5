"""Hand the entries of a journal to MLflow, one after another."""

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vpexp.errors import CheckpointError, VpexpError
from vpexp.runfolder import RunFolder
from vpexp.tracking.abandoned import close_abandoned_runs
from vpexp.tracking.journal import Entry, Journal, State, open_journal, read_state
from vpexp.tracking.models import log_made_model, log_taken_model, register_version
from vpexp.tracking.names import clean_name, clean_params, clean_tags
from vpexp.tracking.store import connect, find_experiment

log = logging.getLogger(__name__)

PARAMS_A_CALL = 100  # MLflow's limits
METRICS_A_CALL = 1000
PARENT_TAG = "mlflow.parentRunId"  # by which MLflow shows runs below one another
ORIGIN_TAG = "checkpoint_run"
TRIES = {
    "INVALID_PARAMETER_VALUE": 1,
    "RESOURCE_DOES_NOT_EXIST": 1,
    "RESOURCE_ALREADY_EXISTS": 1,
    "BAD_REQUEST": 4,  # a local database answers some passing troubles so
}


class ParentNotOpenError(Exception):
    """The run that this one belongs to is not in the store yet."""


class Courier:
    """Delivers the entries of one journal.

    Args:
        journal: is told what has arrived, and the MLflow run's id.
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

    def deliver(self, entry: Entry) -> None:
        """Deliver one entry; delivered again after a crash, it changes nothing.

        Raises:
            Exception: whatever the store raises; ``get_patience`` says how often to try.
        """
        hand_over = self._hand_over.get(entry.kind)
        if hand_over is not None:
            hand_over(entry)

    def _create(self, entry: Entry) -> None:
        state, content = self.journal.state, entry.content
        if state.run_id is not None:
            return
        tags = clean_tags(content["tags"])
        if content["parent"]:
            parent = read_state(Path(content["parent"]))
            if parent is None or parent.run_id is None:
                raise ParentNotOpenError(f"the run in {content['parent']} is not in the store yet")
            tags[PARENT_TAG] = parent.run_id
        experiment_id = find_experiment(self.client, state.uri, content["experiment"], Path(content["artifact_folder"]))
        run = self.client.create_run(experiment_id, start_time=entry.time, tags=tags, run_name=content["name"])
        state.run_id, state.experiment_id = run.info.run_id, experiment_id
        self.journal.save()
        close_abandoned_runs(self.client, experiment_id)

    def _reopen(self, entry: Entry) -> None:
        """Let a run that was stopped go on, without the error that stopped it."""
        del entry
        run_id = self.journal.state.run_id
        self.client.update_run(run_id, status="RUNNING")
        if "error" in self.client.get_run(run_id).data.tags:
            self.client.delete_tag(run_id, "error")

    def _log_params(self, entry: Entry) -> None:
        from mlflow.entities import Param

        params = [Param(name, value) for name, value in clean_params(entry.content).items()]
        for start in range(0, len(params), PARAMS_A_CALL):
            self.client.log_batch(self.journal.state.run_id, params=params[start : start + PARAMS_A_CALL])

    def _log_metrics(self, entry: Entry) -> None:
        from mlflow.entities import Metric

        step = entry.content["step"]
        metrics = [
            Metric(clean_name(name), value, entry.time, step) for name, value in entry.content["metrics"].items()
        ]
        for start in range(0, len(metrics), METRICS_A_CALL):
            self.client.log_batch(self.journal.state.run_id, metrics=metrics[start : start + METRICS_A_CALL])

    def _set_tags(self, entry: Entry) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(name, value) for name, value in clean_tags(entry.content).items()]
        self.client.log_batch(self.journal.state.run_id, tags=tags)

    def _log_artifact(self, entry: Entry) -> None:
        path, folder, run_id = Path(entry.content["path"]), entry.content["folder"], self.journal.state.run_id
        if path.is_dir():
            self.client.log_artifacts(run_id, str(path), folder or path.name)
        elif path.is_file():
            self.client.log_artifact(run_id, str(path), folder)

    def _log_dataset(self, entry: Entry) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        name, source, profile = entry.content["name"], entry.content["source"], entry.content["profile"]
        text = json.dumps(profile, sort_keys=True, default=str)
        digest = hashlib.sha256(f"{source} {text}".encode()).hexdigest()[:8]
        dataset = Dataset(name, digest, "local", json.dumps({"uri": source}), profile=text)
        entity = DatasetInput(dataset, [InputTag("mlflow.data.context", entry.content["context"])])
        self.client.log_inputs(self.journal.state.run_id, datasets=[entity])

    def _log_origin(self, entry: Entry) -> None:
        folder, state = Path(entry.content["folder"]), self.journal.state
        origin = self._read_run(folder)
        run_id = origin.run_id if origin else RunFolder(folder).read_run_json().get("mlflow_run_id")
        if run_id:
            self.client.set_tag(state.run_id, ORIGIN_TAG, run_id)
        if origin and origin.model_id and entry.content["is_model"]:
            log_taken_model(self.client, state, origin.model_id)

    def _log_model(self, entry: Entry) -> None:
        state = self.journal.state
        state.model_id = log_made_model(self.client, state, entry.content)
        self.journal.save()

    def _register(self, entry: Entry) -> None:
        maker = self._read_run(Path(entry.content["maker"]))
        register_version(self.client, maker if maker and maker.run_id else self.journal.state, entry.content)

    def _read_run(self, folder: Path) -> State | None:
        """Read where another run stands in the same store; what it could not deliver itself is delivered first."""
        if folder == self.journal.folder:
            return self.journal.state
        state, other = read_state(folder), RunFolder(folder)
        if state is None or state.uri != self.journal.state.uri:
            return None
        if other.is_held() or not os.access(folder, os.W_OK):  # of a run that goes on, or of somebody else
            return state
        try:
            with other.hold():
                journal = open_journal(folder)
                assert journal is not None
                deliver_waiting(journal)
                return journal.state
        except (ParentNotOpenError, CheckpointError) as error:  # of a pipeline that is not in the store; taken just now
            log.warning("tracking: %s: %s", folder, error)
            return read_state(folder)

    def _close(self, entry: Entry) -> None:
        self.client.set_terminated(self.journal.state.run_id, entry.content["status"], end_time=entry.time)


def deliver_waiting(journal: Journal) -> tuple[int, tuple[str, ...]]:
    """Deliver all that waits in the journal of a run that has ended, and write MLflow's id into the run's own record.

    Returns:
        How many entries arrived, and which the store refused for good.

    Raises:
        Exception: the store cannot be used; what has arrived stays noted.
    """
    courier, delivered, refused = Courier(journal), 0, []
    while (entry := journal.get_first()) is not None:
        try:
            courier.deliver(entry)
            delivered += 1
        except Exception as error:  # which are final is for the store's answer to say
            if get_patience(error) > 1:
                raise
            refused.append(f"{entry.kind}: {error}")
        journal.mark_delivered()
    folder = RunFolder(journal.folder)
    if folder.run_json.is_file() and journal.state.run_id:
        folder.update_run_json(mlflow_run_id=journal.state.run_id)
    return delivered, tuple(refused)


def get_patience(error: Exception) -> float:
    """Say how often a delivery is tried that failed so: once, where the store understood and refused."""
    if isinstance(error, VpexpError):  # of a run's own files, which will be no better the next time
        return 1
    code = getattr(error, "error_code", None)
    return TRIES.get(str(code), math.inf)
