import time

import pytest

from vpexp.runfolder import RunFolder
from vpexp.tracking.journal import (
    ERROR,
    FOLDER_TAG,
    HOST_TAG,
    close_abandoned_runs,
    close_dead_run,
    mark_killed,
    open_journal,
)


@pytest.fixture
def lost(store, tmp_path):
    """A run that MLflow believes to be running, and nobody works in its folder."""
    folder = RunFolder(tmp_path / "lost")
    folder.path.mkdir()
    folder.update_run_json(status="RUNNING", error=None)
    run = store.open(folder.path)
    run.finish()
    return run


def test_close_abandoned_runs__process_that_is_gone(store, lost, tmp_path, capsys):
    last_sign = int((tmp_path / "lost" / "tracking.jsonl").stat().st_mtime * 1000)
    time.sleep(0.05)

    assert close_abandoned_runs(store.client) == 1

    run = store.get_run(lost)
    assert (run.info.status, run.data.tags["error"], run.info.end_time) == ("KILLED", ERROR, last_sign)
    record = RunFolder(tmp_path / "lost").read_run_json()
    assert (record["status"], record["error"]) == ("KILLED", ERROR)
    assert capsys.readouterr().out == f"closed as KILLED: {tmp_path}/lost, {ERROR}\n"
    assert close_abandoned_runs(store.client) == 0


def test_close_abandoned_runs__living_process_and_other_machine_are_left(store, lost, tmp_path):
    with RunFolder(tmp_path / "lost").hold():
        other = store.open(tmp_path / "other", tags={FOLDER_TAG: str(tmp_path / "other"), HOST_TAG: "another"})
        other.finish()
        assert close_abandoned_runs(store.client) == 0
    assert {run.info.status for run in store.list_runs()} == {"RUNNING"}


def test_close_abandoned_runs__folder_that_was_deleted(store, lost, tmp_path):
    (tmp_path / "lost").rename(tmp_path / "trash")

    assert close_abandoned_runs(store.client) == 1
    assert store.get_run(lost).info.status == "KILLED"


def test_next_run__closes_what_was_left_open_also_when_it_is_one_that_goes_on(store, lost, tmp_path):
    first = store.open(tmp_path / "first", experiment="another data set")
    assert store.get_run(lost).info.status == "KILLED"
    first.close("FINISHED")
    first.finish()
    store.client.update_run(lost.run_id, status="RUNNING")

    again = store.open(tmp_path / "first")
    again.finish()

    assert store.get_run(lost).info.status == "KILLED"


@pytest.mark.parametrize("status", ["FINISHED", "FAILED"])
def test_close_dead_run__end_that_only_run_json_knows(tmp_path, status):
    folder = RunFolder(tmp_path)
    folder.update_run_json(status=status, error="no" if status == "FAILED" else None)
    journal = open_journal(tmp_path, "sqlite:///a.db")
    assert journal is not None
    journal.append("create", {}, at=5)

    close_dead_run(folder, journal)

    assert not journal.is_open
    last = journal.get_next()
    while journal.count_waiting() > 1:
        journal.settle(last)
        last = journal.get_next()
    assert (last[0].kind, last[0].time, last[0].content) == ("close", 5, {"status": status})
    assert folder.read_run_json()["status"] == status


def test_mark_killed__only_what_is_believed_to_run(tmp_path):
    folder = RunFolder(tmp_path)
    assert not mark_killed(folder)
    assert not folder.run_json.exists()
    folder.update_run_json(status="FINISHED")
    assert not mark_killed(folder)
    folder.update_run_json(status="RUNNING")
    assert mark_killed(folder)
    assert folder.read_run_json() == {"status": "KILLED", "error": ERROR}
