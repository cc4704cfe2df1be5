import json
import multiprocessing
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from vpexp.errors import ConfigError
from vpexp.runfolder import RunFolder
from vpexp.tracking.mlflow_run import RunDescription, open_mlflow_run
from vpexp.tracking.store import VIEW_TAG, connect, find_experiment, find_page, normalize_uri

PROCESSES, STEPS = 4, 15


@pytest.mark.parametrize(
    ("uri", "normal"),
    [
        ("http://server:5000", "http://server:5000"),
        ("sqlite:////abs/mlflow.db", "sqlite:////abs/mlflow.db"),
        ("sqlite:///out/mlflow.db", "sqlite:///{cwd}/out/mlflow.db"),
        ("sqlite:///~/a b.db", "sqlite:///{home}/a b.db"),
        ("sqlite:///a#b/m.db?timeout=30", "sqlite:///{cwd}/a#b/m.db?timeout=30"),
        ("sqlite:////a?b=c/%20/m.db", "sqlite+pysqlite:////a%3Fb%3Dc/%2520/m.db"),
        ("file:some%20runs", "file://{cwd}/some%20runs"),
        ("./runs", "file://{cwd}/runs"),
        ("databricks", "databricks"),
    ],
)
def test_normalize_uri__local_database_is_the_same_from_every_folder(uri, normal):
    assert normalize_uri(uri) == normal.format(cwd=Path.cwd(), home=Path.home())


def test_normalize_uri__path_that_sqlite_cannot_open_is_refused(tmp_path):
    folder = tmp_path / "/".join(["n" * 100] * 5)
    with pytest.raises(ConfigError, match=r"bytes, and SQLite takes 490: choose a shorter paths.output_dir"):
        normalize_uri(f"sqlite:///{folder}/mlflow.db")


@pytest.mark.parametrize("name", ["a?b=c", "a%20b", "a#b;c&d=e", "'[x]' \"ü\" \\ : @", "n" * 200])
def test_connect__folder_of_any_name_holds_the_whole_store(tmp_path, monkeypatch, store, name):
    folder, elsewhere = tmp_path / "stores" / name, tmp_path / "cwd"
    folder.mkdir(parents=True)
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    shutil.copy(store.folder / "mlflow.db", folder)

    client = connect(normalize_uri(f"sqlite:///{folder}/mlflow.db"))
    run = client.create_run(find_experiment(client, client.tracking_uri, "odd", folder / "mlartifacts"))
    client.log_text(run.info.run_id, "kept", "note.txt")

    assert (folder / "mlartifacts" / run.info.run_id / "artifacts" / "note.txt").read_text() == "kept"
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        assert database.execute("select run_uuid from runs").fetchall() == [(run.info.run_id,)]
    assert [path.name for path in (tmp_path / "stores").iterdir()] == [name]
    assert not list(elsewhere.iterdir())


def test_find_experiment__deleted_experiment_is_restored(store, tmp_path):
    first = find_experiment(store.client, store.uri, "thrown away", tmp_path)
    store.client.delete_experiment(first)

    assert find_experiment(store.client, store.uri, "thrown away", tmp_path) == first
    assert store.client.get_experiment(first).lifecycle_stage == "active"


def test_find_experiment__artifacts_of_a_local_database_lie_where_they_are_asked_to(store, tmp_path):
    experiment = find_experiment(store.client, store.uri, "new", tmp_path / "my artifacts")

    assert store.client.get_experiment(experiment).artifact_location == (tmp_path / "my artifacts").as_uri()


def test_connect__folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(OSError, match=r"File exists|Not a directory"):
        connect(f"sqlite:///{tmp_path}/file/mlflow.db")


def record(folder: Path, number: int) -> None:
    """Record a run in a database that others write to at the same time."""
    description = RunDescription(
        uri=f"sqlite:///{folder}/mlflow.db",
        experiment="together",
        name=str(number),
        tags={"run_folder": str(folder / str(number))},
        params={f"p{i}": i for i in range(50)},
        artifact_folder=folder / "mlartifacts",
        upload_command="",
    )
    place = RunFolder(folder / str(number))
    place.path.mkdir()
    with place.hold():
        run = open_mlflow_run(description, place.path)
        run.start()
        for step in range(STEPS):
            run.log_metrics({f"m{i}": float(step) for i in range(20)}, step)
            run.set_tags({"step": step})  # between metrics, so that they go one by one
        run.close("FINISHED")
        run.finish()


@pytest.mark.slow
def test_many_processes__make_one_database_and_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")  # the libraries are imported: all begin at once
    workers = [context.Process(target=record, args=(tmp_path, number)) for number in range(PROCESSES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert [worker.exitcode for worker in workers] == [0] * PROCESSES
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("together")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == [str(number) for number in range(PROCESSES)]
    for run in runs:
        assert (run.info.status, len(run.data.params), run.data.tags["step"]) == ("FINISHED", 50, str(STEPS - 1))
        for name in ("m0", "m19"):
            assert [point.step for point in client.get_metric_history(run.info.run_id, name)] == list(range(STEPS))


def test_find_page__experiment_of_the_newest_run_with_the_columns_that_matter(store, tmp_path):
    assert find_page(store.uri, "http://here:1") == "http://here:1/#/experiments"
    for name in ("grapes", "plums"):
        store.open(tmp_path / name, experiment=name).finish()
    experiment = store.client.get_experiment_by_name("plums")
    store.client.create_experiment("no run yet")

    page = find_page(store.uri, "http://here:1")

    assert page == (
        f"http://here:1/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning&viewStateShareKey=vpexp"
    )
    columns = json.loads(experiment.tags[VIEW_TAG])["selectedColumns"]
    assert {"metrics.`val/f1-score`", "metrics.`before/val/f1-score`", "metrics.`gain/val/f1-score`"} <= {*columns}
