"""What the tests of tracking share: an empty store, made once (that takes seconds) and copied for each who asks."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from vpexp.tracking.journal import FOLDER_TAG, HOST_TAG, get_host
from vpexp.tracking.mlflow_run import MlflowRun, RunDescription, open_mlflow_run
from vpexp.tracking.store import connect


@dataclass(frozen=True)
class Store:
    """A database of MLflow in a folder of its own, and a client of it that is not vpexp's."""

    folder: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def describe(self, folder: Path, **changes: Any) -> RunDescription:
        """Describe a run whose folder is given."""
        usual = {
            "uri": self.uri,
            "experiment": "tests",
            "name": "a run",
            "tags": {FOLDER_TAG: str(folder), HOST_TAG: get_host()},
            "params": {"seed": 0},
            "artifact_folder": self.folder / "mlartifacts",
            "upload_command": f"sync {folder}",
        }
        return RunDescription(**{**usual, **changes})

    def open(self, folder: Path, **changes: Any) -> MlflowRun:
        """Open a run in a folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        run = open_mlflow_run(self.describe(folder, **changes), folder)
        run.start()
        return run

    def get_run(self, run: MlflowRun) -> Run:
        assert run.run_id is not None
        return self.client.get_run(run.run_id)

    def list_runs(self, experiment: str = "tests") -> list[Run]:
        """List the runs of an experiment, the oldest first."""
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            return []
        return list(self.client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"]))


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("empty store"))
    connect(store.uri)
    return store


@pytest.fixture
def make_store(empty_store: Store):
    """Make a store in a folder: ``make_store(tmp_path)``."""

    def make(folder: Path) -> Store:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(empty_store.folder / "mlflow.db", folder)
        return Store(folder)

    return make


@pytest.fixture
def store(make_store, tmp_path: Path) -> Store:
    return make_store(tmp_path / "a store")


@pytest.fixture
def away_uri(tmp_path: Path) -> str:
    """A local database that cannot be used, until ``let_back`` makes room for it."""
    (tmp_path / "away").write_text("a file where the store's folder should be")
    return f"sqlite:///{tmp_path}/away/mlflow.db"


@pytest.fixture
def let_back(empty_store: Store, tmp_path: Path):
    """Let the store of ``away_uri`` be there."""

    def let() -> Store:
        (tmp_path / "away").unlink()
        (tmp_path / "away").mkdir()
        shutil.copy(empty_store.folder / "mlflow.db", tmp_path / "away")
        return Store(tmp_path / "away")

    return let
