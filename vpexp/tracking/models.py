"""Models in MLflow: what a run made and what it took up, and the versions of a registered name.

Everything here may be done twice, after a crash between the doing and its note, and is there once.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vpexp.console import log_line
from vpexp.errors import VpexpError
from vpexp.tracking.journal import State
from vpexp.tracking.store import clean_model_name, clean_tags

log = logging.getLogger(__name__)

PACKAGE = "mlflow_model"  # an MLflow model among a run's files, where the store keeps no models of their own
READY = "READY"
VERSIONS_TAG = "mlflow.modelVersions"
UNKNOWN_TO_SERVER = "ENDPOINT_NOT_FOUND"


class ArtifactError(VpexpError):
    """What was to be uploaded is not there any more, or is none of the run's; trying again does not help."""


def log_made_model(client: Any, state: State, content: Mapping[str, Any]) -> str | None:
    """Log the model that a run made, as an output of it.

    Returns:
        MLflow's id of it; None where the server is of MLflow 2, which knows no models outside the registry.
    """
    from mlflow.entities import LoggedModelOutput

    tags = clean_tags(content["tags"])
    model_id = state.model_id or _find_made_model(client, state)
    try:
        if model_id is None:
            name = clean_model_name(content["name"])
            made = client.create_logged_model(state.experiment_id, name, state.run_id, tags, model_type=content["kind"])
            model_id = str(made.model_id)
        else:
            client.set_logged_model_tags(model_id, tags)
        client.finalize_logged_model(model_id, READY)
        if model_id not in {output.model_id for output in _list(client, state.run_id, "outputs")}:
            client.log_outputs(state.run_id, [LoggedModelOutput(model_id, step=0)])
    except Exception as error:
        if not _is_unknown_to_server(error):
            raise
        log.warning("tracking: %s is older than MLflow 3 and keeps no models: tags say where this one is", state.uri)
        return None
    return model_id


def log_taken_model(client: Any, state: State, model_id: str) -> None:
    """Log the model of another run as an input of this one."""
    from mlflow.entities import LoggedModelInput

    if model_id not in {taken.model_id for taken in _list(client, state.run_id, "inputs")}:
        client.log_inputs(state.run_id, models=[LoggedModelInput(model_id)])


def register_version(client: Any, maker: State, content: Mapping[str, Any]) -> None:
    """Upload an MLflow model and make it the next version of a name, unless its run has one there.

    Args:
        client: of the store.
        maker: of the run that made the model.
        content: name, package, tags and description.

    Raises:
        ArtifactError: the MLflow model is no longer where it was.
    """
    name, package, run_id = content["name"], Path(content["package"]), maker.run_id
    if client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
        return
    if not (package / "MLmodel").is_file():
        raise ArtifactError(f"{package} is gone, so {name} has no new version: run the stage again")
    source = _upload(client, maker, package)
    _create_name(client, name)
    version = client.create_model_version(
        name,
        source,
        run_id,
        # A database keeps no model_id of a version, so a tag says it.
        tags=clean_tags({**content["tags"], "run_id": run_id, "model_id": maker.model_id or "none"}),
        description=content["description"],
        model_id=maker.model_id,
    )
    if maker.model_id is not None:
        _link_version(client, maker.model_id, name, str(version.version))
    log_line(f"registered in MLflow: models:/{name}/{version.version}")


def _find_made_model(client: Any, state: State) -> str | None:
    """Find the model of a run whose id was lost between its making and its note."""
    try:
        found = client.search_logged_models([state.experiment_id], f"source_run_id = '{state.run_id}'", max_results=1)
    except Exception as error:
        if not _is_unknown_to_server(error):
            raise
        return None
    return str(found[0].model_id) if found else None


def _list(client: Any, run_id: str | None, side: str) -> list[Any]:
    """List the models that are inputs or outputs of a run."""
    run = client.get_run(run_id)
    if side == "outputs":
        return list(run.outputs.model_outputs) if run.outputs else []
    return list(run.inputs.model_inputs or []) if run.inputs else []


def _upload(client: Any, maker: State, package: Path) -> str:
    """Upload the files of an MLflow model, and say where they are: with the run's model, or among the run's files."""
    if maker.model_id is None:
        client.log_artifacts(maker.run_id, str(package), PACKAGE)
        return f"{client.get_run(maker.run_id).info.artifact_uri}/{PACKAGE}"
    client.log_model_artifacts(maker.model_id, str(package))
    # Not models:/<id>, which a local database looks up in the store of the whole process, not in its own.
    return str(client.get_logged_model(maker.model_id).artifact_location)


def _create_name(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _link_version(client: Any, model_id: str, name: str, version: str) -> None:
    """Let the page of the model show its version; a server has done so itself, a database has not."""
    link = {"name": name, "version": version}
    links = json.loads(client.get_logged_model(model_id).tags.get(VERSIONS_TAG, "[]"))
    if link not in links:
        client.set_logged_model_tags(model_id, {VERSIONS_TAG: json.dumps([*links, link])})


def _is_unknown_to_server(error: Exception) -> bool:
    return getattr(error, "error_code", None) == UNKNOWN_TO_SERVER
