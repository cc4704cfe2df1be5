"""The MLflow store: reach it, make a new SQLite database, find the experiment in it, and name things as it allows.

MLflow makes the tables in some hundred transactions, each of which waits for the disk: half a minute on a slow one. Until the
database is whole nothing in it is worth waiting for, so it is made beside its place without waiting, and then moved there.

MLflow allows letters, digits, ``_ - . : /`` and spaces in a name, 250 of them, and reads a name as a path. Any other character,
and a ``/`` or ``.`` that a path would lose, is written as ``_x<its code point in hex>_``: ``ripe 50%`` is ``ripe 50_x25_``. What looks
like such an escape already has its first ``_`` escaped (``_x5f_x25_``), so that two names never become one.
"""

import hashlib
import json
import logging
import os
import re
import socket
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from filelock import FileLock

from vpexp.errors import ConfigError
from vpexp.files import replacing

SQLITE = "sqlite:///"
QUERY = re.compile(r"\?(\w+=[^/?]*)$")  # options of a database, as ?timeout=30
URL_CHARACTERS = "?%"  # of a path, which an address has to escape
LONGEST_PATH = 490  # bytes of a database's path: SQLite takes 512, with the names of its drafts
LOCK_SECONDS = 60.0
NAME_LENGTH = 250
VALUE_LENGTH = 6000
TAG_LENGTH = 5000
DESCRIPTION_LENGTH = 200
HASH_LENGTH = 16
ESCAPED = re.compile(
    r"[^\w\-./ :]"  # what MLflow does not allow
    r"|_(?=x[0-9a-f]++[^a-zA-Z0-9 :\-])"  # what looks like an escape, or would beside one
    r"|(?<![^/])/|/$"  # slashes around nothing
    r"|(?<![^/])\.(?=\.?(/|$))|^\.(?=\.)"  # the first point of . and .., and of a name that begins with ..
)
# MLflow's table of runs sorts the names of metrics: these come first, and all others begin with a word behind them.
HEADLINES = (
    *(f"{model}/f1-score" for model in ("before", "before/test", "before/val", "gain/test", "gain/val")),
    *(f"{model}/f1-score" for model in ("int8", "ir", "torch")),
    *(f"{split}/{name}" for split in ("test", "val") for name in ("f1-score", "map", "mean_iou")),
    *(f"{split}/auto/{name}" for split in ("test", "val") for name in ("map", "f1")),
)
VERBOSE, CURVES = "verbose/", "values_by_epoch/"
VIEW = "vpexp"  # MLflow's page of an experiment shows these columns where its address names this view
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
COLUMNS = ["attributes.`Duration`", *(f"metrics.`{name}`" for name in HEADLINES)]


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
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # the caller reports a failure
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
        # A server keeps artifacts where it is configured to; a local database would put them into the working folder.
        location = artifact_folder.resolve().as_uri() if is_sqlite(uri) else None
        try:
            return str(client.create_experiment(name, artifact_location=location, tags={VIEW_TAG: _write_view()}))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another process was faster
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def list_experiments(client: Any) -> list[str]:
    """List the ids of a store's experiments."""
    return [str(experiment.experiment_id) for experiment in client.search_experiments()]


def find_page(uri: str, server: str) -> str:
    """Find the page of the experiment whose run began last, with the columns that matter.

    Args:
        uri: the store.
        server: address of MLflow's page of it, ``http://127.0.0.1:5000``.
    """
    client = connect(uri)
    newest = client.search_runs(list_experiments(client), order_by=["attributes.start_time DESC"], max_results=1)
    if not newest:
        return f"{server}/#/experiments"
    experiment = newest[0].info.experiment_id
    client.set_experiment_tag(experiment, VIEW_TAG, _write_view())  # an older vpexp has not
    return f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"


def _write_view() -> str:
    return json.dumps({"selectedColumns": COLUMNS})


def name_results(metrics: Mapping[str, float]) -> dict[str, float]:
    """Name final numbers for MLflow: those that matter as they are, with what they gained over ``before/``; others below ``verbose/``."""
    gains = {
        f"gain/{name}": metrics[name] - metrics[f"before/{name}"]
        for name in metrics
        if f"gain/{name}" in HEADLINES and f"before/{name}" in metrics
    }
    return {name if name in HEADLINES else f"{VERBOSE}{name}": value for name, value in {**metrics, **gains}.items()}


def create_database(file: Path) -> None:
    """Make the tables of a store; the file is there with all of them, or not at all.

    Args:
        file: where the database goes; an empty file there is replaced. Only one process may do that at a time.
    """
    from mlflow.store.db import utils
    from sqlalchemy import URL, create_engine, event

    make_tables = getattr(utils, "_safe_initialize_tables", None)
    if make_tables is None:  # another MLflow, which makes them in its own way when it is first asked
        return
    with replacing(file, durable=True) as draft:
        draft.unlink(missing_ok=True)
        engine = create_engine(URL.create("sqlite", database=str(draft)))
        event.listen(engine, "connect", _wait_for_no_disk)
        try:
            make_tables(engine)
        finally:
            engine.dispose()
            draft.with_name(f"{draft.name}-journal").unlink(missing_ok=True)


def _wait_for_no_disk(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA synchronous=OFF")


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


def clean_text(text: str) -> str:
    """Make a text of what file names may hold and no encoding can write."""
    return text.encode("utf-8", "backslashreplace").decode()


def clean_name(name: str) -> str:
    """Write a name with what MLflow allows; different names stay different, those that are too long by their hash."""
    cleaned = ESCAPED.sub(lambda found: f"_x{ord(found[0]):x}_", name)
    if len(cleaned) <= NAME_LENGTH:
        return cleaned
    digest = hashlib.sha256(cleaned.encode()).hexdigest()[:HASH_LENGTH]
    return f"{cleaned[: NAME_LENGTH - HASH_LENGTH - 1].rstrip('/')}_{digest}"


def clean_model_name(name: str) -> str:
    """Keep what MLflow allows in the name of a model."""
    return re.sub(r"[/:.%\"']", "_", name)[:NAME_LENGTH]


def clean_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    """Make tags of MLflow: text, not too long."""
    return {clean_name(name): clean_text(str(value))[:TAG_LENGTH] for name, value in tags.items()}


def clean_params(params: Mapping[str, Any]) -> dict[str, str]:
    """Make parameters of MLflow: text, with None and lists as Python writes them."""
    return {clean_name(name): clean_text(str(value))[:VALUE_LENGTH] for name, value in params.items()}


def describe_error(error: BaseException) -> str:
    """Describe what is wrong in a few words: for a connection, the system's words at the bottom of what libraries made of it."""
    causes = list(_list_causes(error))
    innermost = causes[-1]
    if isinstance(innermost, OSError) and innermost.strerror:
        return innermost.strerror
    if any(_is_timeout(cause) for cause in causes):
        return "no answer in time"
    return (str(error).strip() or type(error).__name__).splitlines()[0][:DESCRIPTION_LENGTH]


def is_unreachable(error: BaseException) -> bool:
    """Return whether an error comes from the way to a server, not from the server."""
    return any(
        isinstance(cause, ConnectionError | socket.gaierror)
        or _is_timeout(cause)
        or any(kind.__name__ == "ConnectionError" for kind in type(cause).__mro__)  # that of requests is another
        for cause in _list_causes(error)
    )


def _list_causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _is_timeout(error: BaseException) -> bool:
    return isinstance(error, TimeoutError) or any("Timeout" in kind.__name__ for kind in type(error).__mro__)
