"""What a run tells, read back from a real store; what people are told where the store is not there."""

import os
import signal
import socket
import threading
import time

import pytest
from mlflow import MlflowClient

from vpexp.runfolder import RunFolder
from vpexp.tracking import mlflow_run
from vpexp.tracking.journal import open_journal, read_state
from vpexp.tracking.mlflow_run import MlflowRun


def list_said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


@pytest.fixture
def hanging_uri():
    """A server that takes connections, and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(20)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_open_mlflow_run__writes_params_and_tags(store, tmp_path):
    params = {f"section.key{i}": i for i in range(250)} | {
        "long": "x" * 7000,
        "none": None,
        "odd ½ (name), a//b": [1, 2],
    }
    tags = {"long": "y" * 9000, "odd=name": "1"}

    opened = store.open(tmp_path / "run", params=params, tags=tags)
    opened.finish()

    data = store.get_run(opened).data
    assert len(data.params) == 253
    assert data.params["section.key249"] == "249"
    assert data.params["long"] == "x" * 6000
    assert data.params["none"] == "None"
    assert data.params["odd ½ _x28_name_x29__x2c_ a/_x2f_b"] == "[1, 2]"
    assert data.tags["long"] == "y" * 5000
    assert data.tags["odd_x3d_name"] == "1"
    assert data.tags["mlflow.runName"] == "a run"


def test_open_mlflow_run__run_json_knows_the_run_as_soon_as_it_is_open(store, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.update_run_json(status="RUNNING", mlflow_run_id=None)

    opened = store.open(folder.path)

    assert opened.run_id is not None
    assert folder.read_run_json() == {"status": "RUNNING", "mlflow_run_id": opened.run_id}
    opened.close("FINISHED")
    opened.finish()


def test_log_artifact__files_lie_in_the_output_folder(store, tmp_path):
    opened = store.open(tmp_path / "run")
    (tmp_path / "run" / "a.txt").write_text("a")
    (tmp_path / "run" / "pictures").mkdir()
    (tmp_path / "run" / "pictures" / "b.txt").write_text("b")

    opened.log_artifact(tmp_path / "run" / "a.txt")
    opened.log_artifact(tmp_path / "run" / "a.txt", "model")
    opened.log_artifact(tmp_path / "run" / "pictures")
    opened.log_artifact(tmp_path / "missing.txt")
    (tmp_path / "secret.txt").write_text("of the user")  # as a run folder made elsewhere may name it
    (tmp_path / "run" / "link.txt").symlink_to(tmp_path / "secret.txt")
    opened.log_artifact(tmp_path / "secret.txt")
    opened.log_artifact(tmp_path / "run" / "link.txt")
    opened.finish()

    folder = store.folder / "mlartifacts" / str(opened.run_id) / "artifacts"
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.txt"))
    assert found == ["a.txt", "model/a.txt", "pictures/b.txt"]


def test_log_metrics__odd_names_many_metrics_and_nan(store, tmp_path):
    opened = store.open(tmp_path / "run")
    names = ["val/map/grape (red), ½", "val/map/..", "val/map//x", "val/map/", "val/" + "n" * 300, "val/two\nlines"]

    opened.log_metrics(dict.fromkeys(names, 0.5) | {"no": float("nan"), "inf": float("inf")}, step=3)
    opened.log_metrics({f"val/class{i}": float(i) for i in range(1500)}, step=3)
    opened.finish()

    metrics = store.get_run(opened).data.metrics
    assert metrics["val/map/grape _x28_red_x29__x2c_ ½"] == 0.5
    assert metrics["val/map/_x2e_."] == 0.5
    assert metrics["val/map/_x2f_x"] == 0.5
    assert metrics["val/map_x2f_"] == 0.5
    assert metrics["val/two_xa_lines"] == 0.5
    assert [value for name, value in metrics.items() if name.startswith("val/nnn") and len(name) <= 250] == [0.5]
    assert metrics["val/class1499"] == 1499.0
    assert not {"no", "inf"} & metrics.keys()
    assert store.client.get_metric_history(opened.run_id, "val/class1")[0].step == 3


def test_log_metrics__have_the_time_they_were_told(store, tmp_path):
    opened = store.open(tmp_path / "run")
    before = int(time.time() * 1000)
    opened.log_metrics({"a": 1.0}, step=1)
    after = int(time.time() * 1000)
    opened.finish()

    (point,) = store.client.get_metric_history(opened.run_id, "a")
    assert before <= point.timestamp <= after


def test_log_dataset__digest_follows_the_profile(store, tmp_path):
    opened = store.open(tmp_path / "run")

    opened.log_dataset("coco", "/data", "train", {"images": 3})
    opened.log_dataset("coco", "/data", "train", {"images": 3})
    opened.log_dataset("coco", "/data", "val", {"images": 2})
    opened.finish()

    inputs = store.get_run(opened).inputs.dataset_inputs
    assert sorted(entry.tags[0].value for entry in inputs) == ["train", "val"]
    assert len({entry.dataset.digest for entry in inputs}) == 2


def test_close__status_error_and_end(store, tmp_path):
    opened = store.open(tmp_path / "run")
    before = int(time.time() * 1000)

    opened.close("FAILED", "ValueError: no")
    opened.log_metrics({"late": 1.0})  # what comes after the end is kept too
    opened.finish()

    run = store.get_run(opened)
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", "ValueError: no")
    assert before <= run.info.end_time <= int(time.time() * 1000)
    assert run.data.metrics == {"late": 1.0}


def test_open_mlflow_run__resume_opens_the_same_run_without_its_error(store, tmp_path):
    opened = store.open(tmp_path / "run")
    opened.close("KILLED", "stopped by SIGTERM")
    opened.finish()
    assert store.get_run(opened).data.tags["error"] == "stopped by SIGTERM"

    resumed = store.open(tmp_path / "run", params={"seed": 1}, name="another name")

    run = store.get_run(resumed)
    assert resumed.run_id == opened.run_id
    assert run.info.status == "RUNNING"
    assert "error" not in run.data.tags
    assert run.data.params == {"seed": "0"}
    resumed.close("FINISHED")
    resumed.finish()
    assert store.get_run(resumed).info.status == "FINISHED"


def test_open_mlflow_run__resume_in_another_store_tells_it_everything(make_store, tmp_path):
    first, second = make_store(tmp_path / "first"), make_store(tmp_path / "second")
    begun = first.open(tmp_path / "run")
    begun.log_metrics({"a": 1.0}, 1)
    begun.close("KILLED", "stopped")
    begun.finish()

    resumed = second.open(tmp_path / "run")
    resumed.log_metrics({"a": 2.0}, 2)
    resumed.close("FINISHED")
    resumed.finish()

    (run,) = second.list_runs()
    assert [point.step for point in second.client.get_metric_history(run.info.run_id, "a")] == [1, 2]
    assert (run.info.status, run.data.params, "error" in run.data.tags) == ("FINISHED", {"seed": "0"}, False)
    assert run.info.start_time == first.list_runs()[0].info.start_time
    assert first.list_runs()[0].info.status == "KILLED"

    back = first.open(tmp_path / "run")
    back.finish()
    assert back.run_id == begun.run_id, "the run is found again"
    assert len(first.list_runs()) == 1


def test_open_mlflow_run__store_that_lost_the_run_is_told_everything(store, empty_store, tmp_path):
    opened = store.open(tmp_path / "run")
    opened.log_metrics({"a": 1.0}, 1)
    opened.close("KILLED", "stopped")
    opened.finish()
    (store.folder / "mlflow.db").write_bytes((empty_store.folder / "mlflow.db").read_bytes())

    resumed = store.open(tmp_path / "run")
    resumed.close("FINISHED")
    resumed.finish()

    (run,) = store.list_runs()
    assert run.info.run_id == resumed.run_id != opened.run_id
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"a": 1.0})


@pytest.mark.parametrize("uri", ["sqlite:////proc/nowhere/mlflow.db", "abacus://x"])
def test_store_that_cannot_be_used__two_lines_and_everything_kept(store, tmp_path, capsys, uri):
    opened = store.open(tmp_path / "run", uri=uri)

    assert opened.run_id is None
    opened.log_metrics({"a": 1.0})
    opened.set_tags({"a": "b"})
    opened.close("FINISHED")
    opened.finish()
    first, last = list_said(capsys)
    assert first.startswith(f"tracking: {uri} cannot be used (")
    assert first.endswith("); going on without it, what it misses is kept in the run's folder")
    assert last == ("tracking: 5 records of this run are not in MLflow; when it is back: sync " + str(tmp_path / "run"))
    journal = open_journal(tmp_path / "run")
    assert journal is not None
    assert journal.count_waiting() == 5


def test_store_that_cannot_be_used__file_that_is_no_database_is_found_in_seconds(store, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("not a database " * 100)
    began = time.monotonic()

    opened = store.open(tmp_path / "run", uri=f"sqlite:///{tmp_path}/notes.txt")
    opened.finish()

    assert time.monotonic() - began < 10
    assert "notes.txt cannot be used (file is not a database)" in list_said(capsys)[0]


def test_store_that_comes_back__one_line_and_nothing_lost(*, store, away_uri, let_back, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mlflow_run, "RETRY_SECONDS", 0.0)
    opened = store.open(tmp_path / "run", uri=away_uri)
    for step in range(4):
        opened.log_metrics({"a": float(step)}, step)
    time.sleep(0.3)
    there = let_back()
    opened.log_metrics({"a": 4.0}, 4)
    deadline = time.monotonic() + 20
    while opened.run_id is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert opened.run_id is not None, "what is recorded later asks again"
    opened.close("FINISHED")
    opened.finish()

    (run,) = there.list_runs()
    assert run.info.status == "FINISHED"
    assert [point.step for point in there.client.get_metric_history(run.info.run_id, "a")] == [0, 1, 2, 3, 4]
    said = list_said(capsys)
    assert [line.split(" (")[0] for line in said] == [
        f"tracking: {away_uri} cannot be used",
        f"tracking: {away_uri} is back",
    ]


def test_run_deleted_in_the_store__is_said_and_kept_for_when_it_is_restored(store, tmp_path, capsys, monkeypatch):
    opened = store.open(tmp_path / "run")
    store.client.delete_run(opened.run_id)

    for step in range(3):
        opened.log_metrics({"a": float(step)}, step)
    time.sleep(0.5)
    (said,) = list_said(capsys)
    assert f"to have it back: mlflow runs restore --run-id {opened.run_id}" in said
    store.client.restore_run(opened.run_id)
    opened.close("FINISHED")
    opened.finish()

    assert store.get_run(opened).info.status == "FINISHED"
    assert [point.step for point in store.client.get_metric_history(opened.run_id, "a")] == [0, 1, 2]


def test_hanging_server__nobody_waits_long(store, tmp_path, capsys, hanging_uri, monkeypatch):
    monkeypatch.setattr(mlflow_run, "OPEN_SECONDS", 0.3)
    monkeypatch.setattr(mlflow_run, "CLOSE_SECONDS", 0.6)
    began = time.monotonic()

    opened = store.open(tmp_path / "run", uri=hanging_uri)
    told = time.monotonic()
    for step in range(100):
        opened.log_metrics({"a": 1.0}, step)
    assert time.monotonic() - told < 2, "to tell something takes no time"
    opened.close("FINISHED")
    opened.finish()

    assert time.monotonic() - began < 8
    assert list_said(capsys)[-1].startswith("tracking: 103 records of this run are not in MLflow; when it is back:")


def test_finish__ctrl_c_ends_the_waiting_at_once_and_nothing_else(store, tmp_path, capsys, hanging_uri, monkeypatch):
    monkeypatch.setattr(mlflow_run, "OPEN_SECONDS", 0.1)
    opened = store.open(tmp_path / "run", uri=hanging_uri)
    opened.close("FINISHED")
    began = time.monotonic()
    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()

    opened.finish()

    assert time.monotonic() - began < 5
    assert list_said(capsys)[-1].startswith("tracking: 3 records of this run are not in MLflow")
    journal = open_journal(tmp_path / "run")
    assert journal is not None
    assert journal.count_waiting() == 3


def test_parts__do_not_wait_and_are_nested_when_the_whole_ends(store, tmp_path, capsys):
    whole = store.open(tmp_path / "whole")
    for name in ("one", "two"):
        part = store.open(tmp_path / "whole" / name, name=name, parent=tmp_path / "whole", experiment=name)
        part.log_metrics({"a": 1.0})
        part.close("FINISHED")
        part.finish()
    whole.close("FINISHED")
    whole.finish()

    runs = {run.info.run_name: run for run in store.list_runs()}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()}
    assert parents == {"a run": None, "one": whole.run_id, "two": whole.run_id}
    assert list_said(capsys) == []
    assert not RunFolder(tmp_path / "whole" / "one").is_held()


def test_parts__of_a_run_that_the_store_has_not_opened_say_nothing_of_their_own(
    store, away_uri, let_back, tmp_path, capsys
):
    whole = store.open(tmp_path / "whole", uri=away_uri)
    for name in ("one", "two"):
        began = time.monotonic()
        part = store.open(tmp_path / "whole" / name, name=name, uri=away_uri, parent=tmp_path / "whole")
        part.close("FINISHED")
        part.finish()
        assert time.monotonic() - began < 3
    there = let_back()
    whole.close("FINISHED")
    whole.finish()

    runs = {run.info.run_name: run for run in there.list_runs()}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()}
    assert parents == {"a run": None, "one": whole.run_id, "two": whole.run_id}
    assert len(list_said(capsys)) == 2


def test_parts__what_is_missing_of_them_is_said_by_the_whole(store, away_uri, tmp_path, capsys):
    whole = store.open(tmp_path / "whole", uri=away_uri)
    part = store.open(tmp_path / "whole" / "part", uri=away_uri, parent=tmp_path / "whole")
    part.close("FINISHED")
    part.finish()
    whole.close("FINISHED")
    whole.finish()

    said = list_said(capsys)
    assert len(said) == 2
    assert said[1] == f"tracking: 6 records of this run are not in MLflow; when it is back: sync {tmp_path / 'whole'}"


def test_next_run__is_told_anew_that_the_store_is_away(store, away_uri, tmp_path, capsys):
    for name in ("one", "two"):
        run = store.open(tmp_path / name, uri=away_uri)
        run.finish()

    assert [line.split(" (")[0].split(";")[0] for line in list_said(capsys)] == [
        f"tracking: {away_uri} cannot be used",
        "tracking: 2 records of this run are not in MLflow",
    ] * 2


def test_mlflow_run__off_does_nothing(tmp_path, capsys):
    run = MlflowRun()

    run.start()
    run.log_metrics({"a": 1.0})
    run.log_params({"a": 1})
    run.log_dataset("coco", "/data", "train", {})
    run.log_artifact(tmp_path)
    run.close("FINISHED", "no")
    run.finish()

    assert run.run_id is None
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_open_mlflow_run__home_folder(store, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    (home / "a b").mkdir()
    (home / "a b" / "mlflow.db").write_bytes((store.folder / "mlflow.db").read_bytes())

    opened = store.open(tmp_path / "run", uri="sqlite:///~/a b/mlflow.db")
    opened.finish()

    assert [path.name for path in home.iterdir()] == ["a b"]
    state = read_state(tmp_path / "run")
    assert state is not None
    assert state.uri == f"sqlite:///{home}/a b/mlflow.db"
    assert MlflowClient(state.uri).get_run(opened.run_id).info.run_name == "a run"
