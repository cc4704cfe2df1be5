"""A new SQLite database for MLflow, made in a second or two.

MLflow makes the tables in some hundred transactions, each of which waits for the disk: half a minute on a slow one. Until the
database is whole nothing in it is worth waiting for, so it is made beside its place without waiting, and then moved there.
"""

from pathlib import Path
from typing import Any

from vpexp.files import replacing


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
