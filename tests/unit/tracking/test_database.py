"""A database made at once is the one that MLflow makes in its own time."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.store.db import utils

from vpexp.tracking.store import connect, create_database


def read_schema(file: Path) -> dict[str, list]:
    """Read tables, indexes and columns (the order of values in some checks is another one in each process)."""
    with closing(sqlite3.connect(file)) as connection:
        names = [name for (name,) in connection.execute("select name from sqlite_master order by name")]
        columns = {name: connection.execute(f"pragma table_info('{name}')").fetchall() for name in names}
        return columns | {"version": connection.execute("select version_num from alembic_version").fetchall()}


def test_create_database__equals_mlflows_own(tmp_path):
    MlflowClient(f"sqlite:///{tmp_path}/theirs.db").search_experiments()
    create_database(tmp_path / "ours.db")

    assert read_schema(tmp_path / "ours.db") == read_schema(tmp_path / "theirs.db")
    assert sorted(path.name for path in tmp_path.glob("*ours*")) == ["ours.db"]


def test_create_database__that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(engine):
        with engine.begin() as connection:
            connection.exec_driver_sql("create table half (a int)")
        raise OSError("disk is full")

    monkeypatch.setattr(utils, "_safe_initialize_tables", fail)
    with pytest.raises(OSError, match="disk is full"):
        create_database(tmp_path / "mlflow.db")

    assert list(tmp_path.iterdir()) == []


def test_connect__an_mlflow_that_makes_tables_in_another_way(tmp_path, monkeypatch):
    monkeypatch.delattr(utils, "_safe_initialize_tables")
    create_database(tmp_path / "mlflow.db")
    assert list(tmp_path.iterdir()) == []


def test_connect__an_empty_file_becomes_a_database(tmp_path):
    (tmp_path / "mlflow.db").touch()
    assert [one.name for one in connect(f"sqlite:///{tmp_path}/mlflow.db").search_experiments()] == ["Default"]
