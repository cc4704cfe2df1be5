"""One run in MLflow. A store that fails never costs the run: it is said once, and the run goes on with its own files."""

import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpexp.console import console

log = logging.getLogger(__name__)

PARAMS_A_CALL = 100  # MLflow's limits
VALUE_LENGTH = 6000
TAG_LENGTH = 5000


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

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log numbers; NaN, which says that there is no number, is left out."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entities = [
            Metric(_clean_name(name), float(value), now, step)
            for name, value in metrics.items()
            if math.isfinite(float(value))
        ]
        self._try("log metrics", lambda: self.client.log_batch(self.run_id, metrics=entities))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Upload a file, or a folder with all that it holds."""
        if path.is_dir():
            self._try("upload files", lambda: self.client.log_artifacts(self.run_id, str(path), folder or path.name))
        elif path.is_file():
            self._try("upload a file", lambda: self.client.log_artifact(self.run_id, str(path), folder))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        entities = [RunTag(name, str(value)[:TAG_LENGTH]) for name, value in tags.items()]
        self._try("set tags", lambda: self.client.log_batch(self.run_id, tags=entities))

    def log_dataset(self, name: str, source: str, context: str, profile: Mapping[str, Any]) -> None:
        """Log a split of a data set as an input of the run; its digest is that of the profile."""
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

    def _try(self, what: str, action: Callable[[], None]) -> None:
        if self.client is None or self.run_id is None:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001  whatever the store does, training goes on
            log.warning("tracking: could not %s: %s", what, error)
            console.print(f"[yellow]tracking: could not {what} ({_first_line(error)}); going on without MLflow[/]")
            self.client = None


def open_mlflow_run(description: RunDescription, resume_id: str | None = None) -> MlflowRun:
    """Open a run in MLflow, or the one to resume, and log its parameters and tags.

    Where the store cannot be reached, one line says so and a run that records nothing is returned.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        if description.uri.startswith("sqlite:///"):
            Path(description.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        client = MlflowClient(tracking_uri=description.uri)
        if resume_id is not None:
            client.update_run(resume_id, status="RUNNING")
            return MlflowRun(client, resume_id)
        experiment_id = _find_experiment(client, description)
        run = client.create_run(experiment_id, tags=description.tags, run_name=description.name)
        params = [Param(name, _to_text(value)) for name, value in description.params.items()]
        for start in range(0, len(params), PARAMS_A_CALL):
            client.log_batch(run.info.run_id, params=params[start : start + PARAMS_A_CALL])
        return MlflowRun(client, run.info.run_id)
    except Exception as error:  # noqa: BLE001  whatever the store does, training goes on
        log.warning("tracking: %s: %s", description.uri, error)
        console.print(
            f"[yellow]tracking: {description.uri} cannot be used ({_first_line(error)}); going on without MLflow[/]"
        )
        return MlflowRun()


def _find_experiment(client: Any, description: RunDescription) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(description.experiment)
    if found is None:
        # A server keeps artifacts where it was told to; a local database would put them into the working folder.
        local = description.uri.startswith("sqlite:")
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


def _to_text(value: Any) -> str:
    return str(value)[:VALUE_LENGTH]


def _clean_name(name: str) -> str:
    """Keep what MLflow allows in a metric's name."""
    return re.sub(r"[^\w\-./ :]", "_", name)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
