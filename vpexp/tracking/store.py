"""The MLflow store: reach it, and find the experiment in it."""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from filelock import FileLock

from vpexp.tracking.database import create_database

SQLITE = "sqlite:///"
LOCK_SECONDS = 60.0


def normalize_uri(uri: str) -> str:
    """Name a local database by its absolute path, so that the store is the same from every folder."""
    if not uri.startswith(SQLITE):
        return uri
    return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).expanduser().absolute()}"


def connect(uri: str) -> Any:
    """Get a client of the store; the tables of a local database are made here, by one process at a time.

    Raises:
        Exception: whatever the store or MLflow raises when it cannot be used.
    """
    from mlflow import MlflowClient

    if not uri.startswith(SQLITE):
        return MlflowClient(tracking_uri=uri)
    file = Path(uri.removeprefix(SQLITE))
    file.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a failure is told by who asked
    # The first client makes the tables, which two processes must not do at once.
    with FileLock(file.with_name(f".{file.name}.lock"), timeout=LOCK_SECONDS):
        _check_file(file)
        if not file.stat().st_size:
            create_database(file)
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    return client


def _check_file(file: Path) -> None:
    """Look whether a file is a database that can be used: MLflow tries for minutes before it says that it is not."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA schema_version").fetchone()


def find_experiment(client: Any, uri: str, name: str, artifact_folder: Path) -> str:
    """Find the experiment's id; make the experiment where it is missing, restore it where it was deleted."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        # A server keeps artifacts where it was told to; a local database would put them into the working folder.
        location = artifact_folder.resolve().as_uri() if uri.startswith(SQLITE) else None
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another process was faster
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)
