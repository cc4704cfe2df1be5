import time
from dataclasses import replace

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from vpexp.environment import quiet_libraries
from vpexp.tracking import mlflow_run
from vpexp.tracking.mlflow_run import MlflowRun, RunDescription, flatten, open_mlflow_run


@pytest.fixture(scope="module")
def description(tmp_path_factory):
    """A run in one database for all tests of this file: to create it takes seconds."""
    quiet_libraries()
    folder = tmp_path_factory.mktemp("store with spaces")
    return RunDescription(
        uri=f"sqlite:///{folder}/deep/mlflow.db",
        experiment="tests",
        name="a run",
        tags={"stage": "train"},
        params={"seed": 0},
        artifact_folder=folder / "mlartifacts",
    )


@pytest.fixture(scope="module")
def client(description):
    open_mlflow_run(description)
    return MlflowClient(description.uri)


class FailingClient:
    """A store that is down; counts how often it was asked."""

    def __init__(self):
        self.calls = 0

    def log_batch(self, *args, **kwargs):
        self.calls += 1
        refused = ConnectionRefusedError(111, "Connection refused")
        raise MlflowException("API request to [/http://x] failed with a long story") from refused

    set_terminated = log_artifact = log_artifacts = log_inputs = log_batch


def test_open_mlflow_run__writes_params_and_tags(description, client):
    params = {f"section.key{i}": i for i in range(250)} | {
        "long": "x" * 7000,
        "none": None,
        "odd ½ (name), a//b": [1, 2],
    }
    tags = {"long": "y" * 9000, "odd=name": "1"}

    opened = open_mlflow_run(replace(description, params=params, tags=tags))

    data = client.get_run(opened.run_id).data
    assert len(data.params) == 253
    assert data.params["section.key249"] == "249"
    assert data.params["long"] == "x" * 6000
    assert data.params["none"] == "None"
    assert data.params["odd ½ _name__ a/_/b"] == "[1, 2]"
    assert data.tags["long"] == "y" * 5000
    assert data.tags["odd_name"] == "1"
    assert data.tags["mlflow.runName"] == "a run"


def test_open_mlflow_run__artifacts_lie_in_the_output_folder(description, client, tmp_path):
    opened = open_mlflow_run(description)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "b.txt").write_text("b")

    opened.log_artifact(tmp_path / "a.txt")
    opened.log_artifact(tmp_path / "pictures")
    opened.log_artifact(tmp_path / "missing.txt")

    folder = description.artifact_folder / opened.run_id / "artifacts"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.txt")) == ["a.txt", "pictures/b.txt"]


def test_open_mlflow_run__home_folder(description, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    opened = open_mlflow_run(replace(description, uri="sqlite:///~/a b/mlflow.db"))

    assert opened.run_id is not None
    assert [path.name for path in tmp_path.iterdir()] == ["a b"]


def test_open_mlflow_run__deleted_experiment_is_restored(description, client):
    first = open_mlflow_run(replace(description, experiment="thrown away"))
    experiment_id = client.get_run(first.run_id).info.experiment_id
    client.delete_experiment(experiment_id)

    again = open_mlflow_run(replace(description, experiment="thrown away"))

    assert client.get_run(again.run_id).info.experiment_id == experiment_id


def test_open_mlflow_run__resume_opens_the_same_run_without_its_error(description, client):
    opened = open_mlflow_run(description)
    opened.close("KILLED", "stopped by SIGTERM")
    assert client.get_run(opened.run_id).data.tags["error"] == "stopped by SIGTERM"

    resumed = open_mlflow_run(replace(description, params={"seed": 1}), opened.run_id)

    run = client.get_run(opened.run_id)
    assert resumed.run_id == opened.run_id
    assert run.info.status == "RUNNING"
    assert "error" not in run.data.tags
    assert run.data.params == {"seed": "0"}


@pytest.mark.parametrize("uri", ["sqlite:////proc/nowhere/mlflow.db", "abacus://x"])
def test_open_mlflow_run__store_that_cannot_be_used_is_one_line(description, capsys, uri):
    opened = open_mlflow_run(replace(description, uri=uri))

    assert opened.run_id is None
    opened.log_metrics({"a": 1.0})
    opened.set_tags({"a": "b"})
    opened.close("FINISHED")
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"tracking: {uri} cannot be used (")
    assert said[0].endswith("); going on without MLflow")


def test_log_metrics__odd_names_many_metrics_and_nan(description, client):
    opened = open_mlflow_run(description)
    names = ["val/map/grape (red), ½", "val/map/..", "val/map//x", "val/map/", "val/" + "n" * 300, "val/two\nlines"]

    opened.log_metrics(dict.fromkeys(names, 0.5) | {"no": float("nan"), "inf": float("inf")}, step=3)
    opened.log_metrics({f"val/class{i}": float(i) for i in range(1500)}, step=3)

    metrics = client.get_run(opened.run_id).data.metrics
    assert metrics["val/map/grape _red__ ½"] == 0.5
    assert metrics["val/map/_"] == 0.5
    assert metrics["val/map/_/x"] == 0.5
    assert metrics["val/two_lines"] == 0.5
    assert metrics["val/" + "n" * 246] == 0.5
    assert metrics["val/class1499"] == 1499.0
    assert not {"no", "inf"} & metrics.keys()
    assert client.get_metric_history(opened.run_id, "val/class1")[0].step == 3


def test_log_dataset__digest_follows_the_profile(description, client):
    opened = open_mlflow_run(description)

    opened.log_dataset("coco", "/data", "train", {"images": 3})
    opened.log_dataset("coco", "/data", "train", {"images": 3})
    opened.log_dataset("coco", "/data", "val", {"images": 2})

    inputs = client.get_run(opened.run_id).inputs.dataset_inputs
    assert sorted(entry.tags[0].value for entry in inputs) == ["train", "val"]
    assert len({entry.dataset.digest for entry in inputs}) == 2


def test_try__a_store_that_fails_is_left_alone_for_a_while(capsys, monkeypatch):
    client = FailingClient()
    run = MlflowRun(client, "1")

    for step in range(5):
        run.log_metrics({"a": 1.0}, step)
    assert client.calls == 1

    run.try_again()
    run.log_metrics({"a": 1.0})
    run.close("FINISHED")
    assert client.calls == 2

    monkeypatch.setattr(time, "monotonic", lambda: 1e12 + mlflow_run.PAUSE_SECONDS)
    run.close("FINISHED")
    assert client.calls == 3
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "tracking: could not log metrics (Connection refused); going on without MLflow"
    assert said[2] == "tracking: could not close the run (Connection refused); going on without MLflow"
    assert len(said) == 3


def test_mlflow_run__off_does_nothing(tmp_path, capsys):
    run = MlflowRun()

    run.log_metrics({"a": 1.0})
    run.log_params({"a": 1})
    run.log_dataset("coco", "/data", "train", {})
    run.log_artifact(tmp_path)
    run.close("FINISHED", "no")

    assert capsys.readouterr().out == ""


def test_flatten__nested_keys_become_dotted():
    nested = {"a": {"b": {"c": 1}, "d": None}, "e": [1, 2], "f": {}}

    assert flatten(nested) == {"a.b.c": 1, "a.d": None, "e": [1, 2], "f": {}}
