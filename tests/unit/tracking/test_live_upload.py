"""What happens where the store takes some entries and not others, or takes long."""

import os
import time

import pytest
from mlflow import MlflowClient

from vpexp.runfolder import RunFolder
from vpexp.tracking import mlflow_run
from vpexp.tracking.journal import open_journal, read_state
from vpexp.tracking.upload import Uploader, upload_waiting


def list_said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_refused_entry__is_left_out_and_the_others_arrive(store, tmp_path, capsys):
    opened = store.open(tmp_path / "run")

    opened.log_params({"seed": 1})
    opened.log_params({"seed": 2})
    opened.log_metrics({"a": 1.0})
    opened.close("FINISHED")
    opened.finish()

    run = store.get_run(opened)
    assert (run.data.params, run.data.metrics, run.info.status) == ({"seed": "0"}, {"a": 1.0}, "FINISHED")
    (said,) = list_said(capsys)
    assert said.startswith("tracking: the store does not take params (")
    assert said.endswith("): left out")


def test_refused_metric__costs_only_itself_among_those_delivered_together(store, tmp_path, capsys):
    opened = store.open(tmp_path / "run")
    with RunFolder(tmp_path / "run").hold():
        store.client.delete_run(opened.run_id)  # so that all wait, and go together
        for step in (1, 2, 2**70, 4):
            opened.log_metrics({"a": float(step)}, step)
        time.sleep(0.3)
        store.client.restore_run(opened.run_id)
        opened.finish()

    assert [point.step for point in store.client.get_metric_history(opened.run_id, "a")] == [1, 2, 4]
    assert "tracking: the store does not take metrics (" in "\n".join(list_said(capsys))


def test_file_that_is_gone__is_said(store, tmp_path, capsys):
    opened = store.open(tmp_path / "run")
    store.client.delete_run(opened.run_id)
    opened.set_tags({"a": "b"})
    (tmp_path / "run" / "a.txt").write_text("a")
    opened.log_artifact(tmp_path / "run" / "a.txt")
    (tmp_path / "run" / "a.txt").unlink()
    store.client.restore_run(opened.run_id)
    opened.finish()

    said = list_said(capsys)
    assert said[-1] == (
        f"tracking: the store does not take artifact ({tmp_path}/run/a.txt is not there any more): left out"
    )


def test_artifacts_that_cannot_be_stored__do_not_stop_the_rest_and_can_be_uploaded_later(store, tmp_path, capsys):
    (store.folder / "mlartifacts").write_text("a file where the folder should be")
    opened = store.open(tmp_path / "run")
    (tmp_path / "run" / "a.txt").write_text("a")

    opened.log_artifact(tmp_path / "run" / "a.txt")
    opened.log_metrics({"a": 1.0})
    opened.close("FINISHED")
    opened.finish()

    run = store.get_run(opened)
    assert (run.data.metrics, run.info.status) == ({"a": 1.0}, "FINISHED")
    said = list_said(capsys)
    assert said[0].startswith("tracking: the store does not take artifact (")
    assert said[1].startswith("tracking: 1 records of this run are not in MLflow; when it is back: sync")

    (store.folder / "mlartifacts").unlink()
    (upload,) = upload_waiting([tmp_path / "run"])
    assert (upload.delivered, upload.refused) == (1, [])
    assert [entry.path for entry in store.client.list_artifacts(opened.run_id)] == ["a.txt"]
    assert list(upload_waiting([tmp_path / "run"])) == []


def test_artifact_that_was_refused_once__is_tried_again_when_the_run_ends(store, tmp_path, capsys):
    (store.folder / "mlartifacts").write_text("a file where the folder should be")
    opened = store.open(tmp_path / "run")
    (tmp_path / "run" / "a.txt").write_text("a")
    opened.log_artifact(tmp_path / "run" / "a.txt")
    opened._live.wait()
    (store.folder / "mlartifacts").unlink()
    opened.close("FINISHED")
    opened.finish()

    assert [entry.path for entry in store.client.list_artifacts(opened.run_id)] == ["a.txt"]
    assert store.get_run(opened).info.status == "FINISHED"
    (said,) = list_said(capsys)
    assert said.startswith("tracking: the store does not take artifact (")
    assert list(upload_waiting([tmp_path / "run"])) == []


def test_experiment_that_cannot_be_made__nothing_is_left_out(store, tmp_path, capsys):
    opened = store.open(tmp_path / "run", experiment="")
    opened.close("FINISHED")
    opened.finish()

    first, last = list_said(capsys)
    assert "cannot be used" in first
    assert last.startswith("tracking: 3 records")


def test_answer_that_comes_too_late__does_not_make_the_run_twice(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mlflow_run, "OPEN_SECONDS", 0.1)
    monkeypatch.setattr(mlflow_run, "CLOSE_SECONDS", 0.3)
    create = MlflowClient.create_run

    def create_slowly(*args, **kwargs):
        run = create(*args, **kwargs)
        time.sleep(2)
        return run

    monkeypatch.setattr(MlflowClient, "create_run", create_slowly)
    opened = store.open(tmp_path / "run")
    opened.close("FINISHED")
    opened.finish()
    assert list_said(capsys)[-1].startswith("tracking: 3 records")

    (upload,) = upload_waiting([tmp_path / "run"])

    (run,) = store.list_runs()
    assert (upload.journal.state.run_id, run.info.status) == (run.info.run_id, "FINISHED")
    state = read_state(tmp_path / "run")
    assert state is not None
    assert (state.run_id, state.delivered) == (run.info.run_id, 3)


def test_answer_that_never_came__the_run_is_found_again(store, tmp_path):
    opened = store.open(tmp_path / "run")
    opened.finish()
    journal = open_journal(tmp_path / "run")
    assert journal is not None
    journal.start_again()  # as after a kill -9 between the request and its answer

    (upload,) = upload_waiting([tmp_path / "run"])

    assert upload.journal.state.run_id == opened.run_id
    assert len(store.list_runs()) == 1


def test_defect_of_ours__costs_the_upload_not_the_run(store, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    opened = store.open(tmp_path / "run")
    monkeypatch.setattr(Uploader, "_is_of_entry", lambda *_: 1 / 0)
    opened.log_params({"seed": 1})
    opened.close("FINISHED")
    began = time.monotonic()
    opened.finish()

    assert time.monotonic() - began < 5
    assert "ZeroDivisionError" in caplog.text
    journal = open_journal(tmp_path / "run")
    assert journal is not None
    assert journal.count_waiting() == 2


def test_log__of_a_night_without_store_tells_its_story_once(store, away_uri, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", "vpexp.tracking.mlflow_run")
    monkeypatch.setattr(mlflow_run, "RETRY_SECONDS", 0.0)
    opened = store.open(tmp_path / "run", uri=away_uri)
    opened.log_metrics({"a": 1.0})
    opened.finish()

    stories = [record for record in caplog.records if record.name == "vpexp.tracking.mlflow_run"]
    assert len(stories) > 1
    assert [bool(record.exc_info) for record in stories] == [True, *[False] * (len(stories) - 1)]


def test_fork__a_process_made_while_records_are_sent_holds_nobody_up(store, tmp_path):
    opened = store.open(tmp_path / "run")
    children = []
    for step in range(10):
        opened.log_metrics({"a": float(step)}, step)
        if (child := os.fork()) == 0:
            time.sleep(0.2)
            os._exit(0)
        children.append(child)
    opened.close("FINISHED")
    opened.finish()
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 10

    assert len(store.client.get_metric_history(opened.run_id, "a")) == 10
    assert not RunFolder(tmp_path / "run").is_held()
