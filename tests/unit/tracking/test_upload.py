import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from vpexp.errors import TrackingError
from vpexp.runfolder import RunFolder
from vpexp.tracking.journal import ERROR, open_journal
from vpexp.tracking.upload import count_missing, find_parent_folders, find_tracked_folders, upload_waiting


def record_unsent(store, folder, uri, **changes):
    """Record a whole run whose store is away."""
    folder.mkdir(parents=True, exist_ok=True)
    RunFolder(folder).update_run_json(status="FINISHED", mlflow_run_id=None)
    run = store.open(folder, uri=uri, **changes)
    (folder / "a.txt").write_text("a")
    for step in range(3):
        run.log_metrics({"a": float(step)}, step)
    run.log_artifact(folder / "a.txt")
    run.close("FINISHED")
    run.finish()
    return run


def test_upload_waiting__run_that_was_never_opened_is_made_as_it_was(store, away_uri, let_back, tmp_path):
    before = int(time.time() * 1000)
    record_unsent(store, tmp_path / "run", away_uri)
    after = int(time.time() * 1000)
    there = let_back()

    (upload,) = upload_waiting([tmp_path / "run"])

    (run,) = there.list_runs()
    assert before <= run.info.start_time < run.info.end_time <= after
    assert run.info.status == "FINISHED"
    points = there.client.get_metric_history(run.info.run_id, "a")
    assert [(point.step, point.value) for point in points] == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert all(before <= point.timestamp <= after for point in points)
    assert (upload.journal.state.run_id, upload.delivered, upload.refused) == (run.info.run_id, 7, [])
    assert RunFolder(tmp_path / "run").read_run_json() == {"status": "FINISHED", "mlflow_run_id": run.info.run_id}


def test_upload_waiting__twice_changes_nothing(store, away_uri, let_back, tmp_path):
    record_unsent(store, tmp_path / "run", away_uri)
    there = let_back()
    list(upload_waiting([tmp_path / "run"]))
    first = [run.to_dictionary() for run in there.list_runs()]

    assert list(upload_waiting([tmp_path / "run"])) == []
    state = (tmp_path / "run" / "tracking.json").read_text()
    (tmp_path / "run" / "tracking.json").write_text(state.replace('"delivered": 7', '"delivered": 0'))
    assert len(list(upload_waiting([tmp_path / "run"]))) == 1

    assert [run.to_dictionary() for run in there.list_runs()] == first
    assert len(there.client.get_metric_history(first[0]["info"]["run_id"], "a")) == 3


def test_upload_waiting__folder_that_was_moved_keeps_its_files_and_parts(store, away_uri, make_store, tmp_path):
    record_unsent(store, tmp_path / "whole", away_uri)
    record_unsent(store, tmp_path / "whole" / "part", away_uri, name="part", parent=tmp_path / "whole")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "whole", tmp_path / "elsewhere" / "moved")
    other = make_store(tmp_path / "other")

    folders = find_tracked_folders(tmp_path / "elsewhere")
    uploads = list(upload_waiting(folders, other.uri))

    assert [upload.refused for upload in uploads] == [[], []]
    whole, part = sorted(other.list_runs(), key=lambda run: run.info.run_name != "a run")
    assert part.data.tags["mlflow.parentRunId"] == whole.info.run_id
    for run in (whole, part):
        assert [entry.path for entry in other.client.list_artifacts(run.info.run_id)] == ["a.txt"]
    assert list(upload_waiting(folders, other.uri)) == [], "the store is remembered"


def test_upload_waiting__part_whose_whole_was_never_tracked_has_no_parent(store, away_uri, let_back, tmp_path):
    record_unsent(store, tmp_path / "whole" / "part", away_uri, parent=tmp_path / "whole")
    there = let_back()

    list(upload_waiting([tmp_path / "whole" / "part"]))

    (run,) = there.list_runs()
    assert "mlflow.parentRunId" not in run.data.tags


def test_upload_waiting__part_before_its_whole_says_what_is_missing(store, away_uri, let_back, tmp_path):
    record_unsent(store, tmp_path / "whole", away_uri)
    record_unsent(store, tmp_path / "whole" / "part", away_uri, parent=tmp_path / "whole")
    let_back()

    with pytest.raises(TrackingError, match=r"the run in .*/whole is not in the store yet"):
        list(upload_waiting([tmp_path / "whole" / "part"]))
    assert find_parent_folders(tmp_path / "whole" / "part") == [tmp_path / "whole"]
    assert len(list(upload_waiting([tmp_path / "whole", tmp_path / "whole" / "part"]))) == 2


def test_upload_waiting__store_that_is_away_loses_nothing(store, away_uri, tmp_path):
    record_unsent(store, tmp_path / "run", away_uri)

    with pytest.raises(TrackingError, match=r"File exists|Not a directory"):
        list(upload_waiting([tmp_path / "run"]))
    assert count_missing(tmp_path / "run") == 7


def test_upload_waiting__run_that_goes_on_is_left_alone(store, away_uri, let_back, tmp_path):
    record_unsent(store, tmp_path / "run", away_uri)
    there = let_back()

    with RunFolder(tmp_path / "run").hold():
        assert list(upload_waiting([tmp_path / "run"])) == []
    assert there.list_runs() == []


def test_upload_waiting__run_that_was_killed_is_closed_at_its_last_word(store, away_uri, let_back, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.update_run_json(status="RUNNING", mlflow_run_id=None)
    run = store.open(folder.path, uri=away_uri)
    run.log_metrics({"a": 1.0}, 1)
    run.finish()  # no word of the end
    journal = open_journal(folder.path)
    assert journal is not None
    there = let_back()
    time.sleep(0.1)

    list(upload_waiting([folder.path]))

    (recorded,) = there.list_runs()
    assert (recorded.info.status, recorded.data.tags["error"]) == ("KILLED", ERROR)
    assert recorded.info.end_time == journal.last_time
    record = folder.read_run_json()
    assert (record["status"], record["error"], record["mlflow_run_id"]) == ("KILLED", ERROR, recorded.info.run_id)


@pytest.mark.slow
def test_ctrl_c__leaves_at_once(store, away_uri, tmp_path):
    """In a process of its own: what a hanging server keeps busy must not hold up its exit."""
    record_unsent(store, tmp_path / "run", away_uri)
    script = f"""
import socket
from pathlib import Path
from vpexp.tracking.upload import upload_waiting
import mlflow
server = socket.create_server(("127.0.0.1", 0))
print("ready", flush=True)
list(upload_waiting([Path({str(tmp_path / "run")!r})], f"http://127.0.0.1:{{server.getsockname()[1]}}"))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(1)
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)

    assert time.monotonic() - began < 10
    assert "KeyboardInterrupt" in err
    assert count_missing(tmp_path / "run") == 7
