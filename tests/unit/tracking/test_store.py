import multiprocessing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from vpexp.runfolder import RunFolder
from vpexp.tracking.mlflow_run import RunDescription, open_mlflow_run
from vpexp.tracking.store import connect, find_experiment, normalize_uri

PROCESSES, STEPS = 4, 15


@pytest.mark.parametrize(
    ("uri", "normal"),
    [
        ("http://server:5000", "http://server:5000"),
        ("sqlite:////abs/mlflow.db", "sqlite:////abs/mlflow.db"),
        ("sqlite:///out/mlflow.db", "sqlite:///{cwd}/out/mlflow.db"),
        ("sqlite:///~/a b.db", "sqlite:///{home}/a b.db"),
    ],
)
def test_normalize_uri__local_database_is_the_same_from_every_folder(uri, normal):
    assert normalize_uri(uri) == normal.format(cwd=Path.cwd(), home=Path.home())


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
