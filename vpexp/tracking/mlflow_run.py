"""One run in MLflow. A store that fails never costs the run: it is said, and the run goes on with its own files."""

import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from vpexp.console import say

log = logging.getLogger(__name__)

PARAMS_A_CALL = 100  # MLflow's limits
METRICS_A_CALL = 1000
NAME_LENGTH = 250
VALUE_LENGTH = 6000
TAG_LENGTH = 5000
SQLITE = "sqlite:///"
PAUSE_SECONDS = 300  # how long a store that failed is left alone: asking it may take a minute each time


@dataclass(frozen=True, slots=True)
class RunDescription:
    """What a run is in MLflow before it starts."""

    uri: str
    experiment: str
    name: str
    tags: dict[str, str]
    params: dict[str, Any]
    artifact_folder: Path


class MlflowRun:
    """Writes to one MLflow run; every method is safe to call when the store is down.

    Attributes:
        run_id: MLflow's id; None where tracking is off or the store was down when the run began.
    """

    def __init__(self, client: Any = None, run_id: str | None = None) -> None:
        self.client = client
        self.run_id = run_id
        self._paused_until = 0.0

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters, with None and lists as text."""
        from mlflow.entities import Param

        entities = [Param(_clean_name(name), str(value)[:VALUE_LENGTH]) for name, value in params.items()]
        for part in self._split(entities, PARAMS_A_CALL):
            self._try("log parameters", partial(self.client.log_batch, self.run_id, params=part))

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log numbers; NaN, which says that there is no number, is left out."""
        if self.client is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entities = [
            Metric(_clean_name(name), float(value), now, step)
            for name, value in metrics.items()
            if math.isfinite(float(value))
        ]
        for part in self._split(entities, METRICS_A_CALL):
            self._try("log metrics", partial(self.client.log_batch, self.run_id, metrics=part))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Upload a file, or a folder with all that it holds."""
        if path.is_dir():
            self._try("upload files", lambda: self.client.log_artifacts(self.run_id, str(path), folder or path.name))
        elif path.is_file():
            self._try("upload a file", lambda: self.client.log_artifact(self.run_id, str(path), folder))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags."""
        if self.client is None:
            return
        from mlflow.entities import RunTag

        entities = [RunTag(name, value) for name, value in _clean_tags(tags).items()]
        self._try("set tags", lambda: self.client.log_batch(self.run_id, tags=entities))

    def log_dataset(self, name: str, source: str, context: str, profile: Mapping[str, Any]) -> None:
        """Log a split of a data set as an input of the run; its digest is that of the profile."""
        if self.client is None:
            return
        from mlflow.entities import Dataset, DatasetInput, InputTag

        text = json.dumps(profile, sort_keys=True, default=str)
        digest = hashlib.sha256(f"{source} {text}".encode()).hexdigest()[:8]
        dataset = Dataset(name, digest, "local", json.dumps({"uri": source}), profile=text)
        entity = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
        self._try("log the data set", lambda: self.client.log_inputs(self.run_id, datasets=[entity]))

    def close(self, status: str, error: str | None = None) -> None:
        """End the run: FINISHED, FAILED or KILLED, with the error as a tag."""
        if error:
            self.set_tags({"error": error})
        self._try("close the run", lambda: self.client.set_terminated(self.run_id, status))

    def try_again(self) -> None:
        """Ask a store that failed once more, before the run ends: it may have come back."""
        self._paused_until = 0.0

    def _split(self, entities: list[Any], size: int) -> list[list[Any]]:
        """Divide what MLflow takes only so many of at once; without a run there is nobody to give it to."""
        if self.client is None:
            return []
        return [entities[start : start + size] for start in range(0, len(entities), size)]

    def _try(self, what: str, action: Callable[[], None]) -> None:
        if self.client is None or self.run_id is None or time.monotonic() < self._paused_until:
            return
        try:
            action()
        except Exception as error:  # whatever the store does, training goes on
            log.warning("tracking: could not %s", what, exc_info=error)
            say(f"tracking: could not {what} ({_describe(error)}); going on without MLflow", style="yellow")
            self._paused_until = time.monotonic() + PAUSE_SECONDS


def open_mlflow_run(description: RunDescription, resume_id: str | None = None) -> MlflowRun:
    """Open a run in MLflow, or the one to resume, and log its parameters and tags.

    Where the store cannot be reached, one line says so and a run that records nothing is returned.
    """
    uri = description.uri
    try:
        from mlflow import MlflowClient

        if uri.startswith(SQLITE):
            file = Path(uri.removeprefix(SQLITE)).expanduser()
            file.parent.mkdir(parents=True, exist_ok=True)
            uri = f"{SQLITE}{file}"
            # The first client makes the tables, which two processes must not do at once.
            with FileLock(file.with_name(f".{file.name}.lock")):
                client = MlflowClient(tracking_uri=uri)
                client.search_experiments(max_results=1)
        else:
            client = MlflowClient(tracking_uri=uri)
        if resume_id is not None:
            _reopen(client, resume_id)
            return MlflowRun(client, resume_id)
        experiment_id = _find_experiment(client, description)
        run = client.create_run(experiment_id, tags=_clean_tags(description.tags), run_name=description.name)
    except Exception as error:  # whatever the store does, training goes on
        log.warning("tracking: %s", uri, exc_info=error)
        say(f"tracking: {uri} cannot be used ({_describe(error)}); going on without MLflow", style="yellow")
        return MlflowRun()
    opened = MlflowRun(client, run.info.run_id)
    opened.log_params(description.params)
    return opened


def _reopen(client: Any, run_id: str) -> None:
    """Let a run that was stopped go on, without the error that stopped it."""
    client.update_run(run_id, status="RUNNING")
    if "error" in client.get_run(run_id).data.tags:
        client.delete_tag(run_id, "error")


def _find_experiment(client: Any, description: RunDescription) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(description.experiment)
    if found is None:
        # A server keeps artifacts where it was told to; a local database would put them into the working folder.
        local = description.uri.startswith(SQLITE)
        location = description.artifact_folder.resolve().as_uri() if local else None
        try:
            return str(client.create_experiment(description.experiment, artifact_location=location))
        except MlflowException:
            found = client.get_experiment_by_name(description.experiment)  # another process was faster
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested keys to dotted ones: ``{"optimizer": {"lr": 1}}`` to ``{"optimizer.lr": 1}``."""
    flat: dict[str, Any] = {}
    for name, value in section.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{key}.")
        else:
            flat[key] = value
    return flat


def _clean_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    return {_clean_name(name): str(value)[:TAG_LENGTH] for name, value in tags.items()}


def _clean_name(name: str) -> str:
    """Keep what MLflow allows in a name: some characters, a length, and nothing that a path would lose (``a//..``)."""
    parts = re.sub(r"[^\w\-./ :]", "_", name).split("/")
    return "/".join("_" if part in ("", ".", "..") else part for part in parts)[:NAME_LENGTH].rstrip("/")


def _describe(error: BaseException) -> str:
    """Say what is wrong in a few words: for a connection, the system's words at the bottom of what libraries made of it."""
    innermost = error
    while (cause := innermost.__cause__ or innermost.__context__) is not None:
        innermost = cause
    if isinstance(innermost, OSError) and innermost.strerror:
        return innermost.strerror
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
