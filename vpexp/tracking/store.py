"""The MLflow store: reach it, and find the experiment in it."""

import logging
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from filelock import FileLock

from vpexp.errors import ConfigError
from vpexp.tracking.database import create_database

SQLITE = "sqlite:///"
QUERY = re.compile(r"\?(\w+=[^/?]*)$")  # options of a database, as ?timeout=30
URL_CHARACTERS = "?%"  # of a path, which an address has to escape
LONGEST_PATH = 490  # bytes of a database's path: SQLite takes 512, with the names of its drafts
LOCK_SECONDS = 60.0


def normalize_uri(uri: str) -> str:
    """Write the address of a local store with its absolute path, so that the store is the same from every folder.

    What follows ``sqlite:///`` is read as a path, as it stands; after ``sqlite+pysqlite:///`` as SQLAlchemy does, with escapes.

    Raises:
        ConfigError: the path cannot be a database's.
    """
    if uri.startswith(SQLITE):
        path, *query = QUERY.split(uri.removeprefix(SQLITE))
        return "?".join([write_sqlite_uri(Path(path).expanduser().absolute()), *filter(None, query)])
    scheme = urlsplit(uri).scheme
    if scheme == "file" or (not scheme and "/" in uri):
        folder = url2pathname(urlsplit(uri).path) if scheme else uri
        return Path(folder).expanduser().absolute().as_uri()
    return uri


def write_sqlite_uri(file: Path) -> str:
    """Write the address of a database file for SQLAlchemy, whatever characters its absolute path has.

    Raises:
        ConfigError: SQLite cannot open a path of this length, or this SQLAlchemy cannot be given one of these characters.
    """
    length = len(os.fsencode(file))
    if length > LONGEST_PATH:
        raise ConfigError(
            f"the path of the database {file} has {length} bytes, and SQLite takes {LONGEST_PATH}: choose a shorter "
            "paths.output_dir, or another tracking.uri, or tracking=none"
        )
    found = [character for character in URL_CHARACTERS if character in str(file)]
    if not found:
        return f"{SQLITE}{file}"
    from sqlalchemy.engine import URL, make_url

    # With the driver's name, by which MLflow does not take the escaped path for a folder and make it.
    uri = URL.create("sqlite+pysqlite", database=str(file)).render_as_string()
    if make_url(uri).database != str(file):
        raise ConfigError(
            f"the path of the database {file} has a '{found[0]}', which SQLAlchemy before 2.1 cannot be given: choose another "
            "paths.output_dir, or another tracking.uri, or tracking=none"
        )
    return uri


def find_database(uri: str) -> Path | None:
    """Find the file of a local database; None where the store is none."""
    from sqlalchemy.engine import make_url

    database = make_url(uri).database if is_sqlite(uri) else None
    return Path(database) if database else None


def is_sqlite(uri: str) -> bool:
    """Whether a store is a local database."""
    return uri.startswith("sqlite")


def connect(uri: str) -> Any:
    """Get a client of the store; the tables of a local database are made here, by one process at a time.

    Raises:
        Exception: whatever the store or MLflow raises when it cannot be used.
    """
    from mlflow import MlflowClient

    file = find_database(uri)
    if file is None:
        return MlflowClient(tracking_uri=uri)
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
        location = artifact_folder.resolve().as_uri() if is_sqlite(uri) else None
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another process was faster
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)
