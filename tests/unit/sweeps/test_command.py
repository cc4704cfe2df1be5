import csv
import os
import signal
import subprocess
import sys

import pytest

from tests.unit.sweeps.conftest import find_sweep, measure
from vpexp.errors import CheckpointError, ConfigError
from vpexp.runfolder import find_latest
from vpexp.sweeps import command

GRID = ("optimizer.lr=1e-4,1e-3", "data.batch_size=1,2")
ASKED = [(lr, size) for lr in (1e-4, 1e-3) for size in (1, 2)]


def fail_at(lr, error):
    def work(context):
        if context.cfg.optimizer.lr == lr:
            raise error
        return measure(context)

    return work


def get_statuses(sweep):
    return [job.read_run_json()["status"] for job in sweep.find_jobs()]


def test_run_sweep__runs_every_combination_and_names_the_best(start, stage, tmp_path, capsys):
    assert start(*GRID) == 0

    assert stage.asked == ASKED
    sweep = find_sweep(tmp_path)
    names = [job.read_run_json()["job_name"] for job in sweep.find_jobs()]
    assert names == ["lr=1e-4 bs=1", "lr=1e-4 bs=2", "lr=1e-3 bs=1", "lr=1e-3 bs=2"]
    assert sweep.read_run_json()["status"] == "FINISHED"
    assert sorted(path.name for path in sweep.path.glob("*.png")) == ["heat_map.png", "parallel_coordinates.png"]
    assert "best: job 1, lr=1e-4 bs=2: val/f1-score 0.9000" in capsys.readouterr().out
    with sweep.results.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == names
    assert float(rows[1]["val/f1-score"]) == pytest.approx(0.9)
    assert rows[1]["optimizer.lr"] == "0.0001"
    assert {row["status"] for row in rows} == {"FINISHED"}
    assert find_latest(tmp_path / "out", "train").path == (sweep.path / "1").resolve()


def test_run_sweep__a_failed_job_stops_no_other_and_resume_runs_what_has_not_finished(start, stage, tmp_path, capsys):
    stage.work = fail_at(1e-4, RuntimeError("the sky is falling"))

    assert start(*GRID, "sweep.direction=minimize") == 1

    assert stage.asked == ASKED
    sweep = find_sweep(tmp_path)
    assert get_statuses(sweep) == ["FAILED", "FAILED", "FINISHED", "FINISHED"]
    assert sweep.find_jobs()[0].read_run_json()["error"] == "RuntimeError: the sky is falling"
    assert "the sky is falling" in sweep.find_jobs()[0].log.read_text()
    assert sweep.read_run_json()["status"] == "FAILED"
    said = capsys.readouterr().out
    assert f"2 of 4 jobs have not finished; go on with: python -m vpexp -m sweep.resume={sweep.path}" in said
    assert "best: job 2, lr=1e-3 bs=1: val/f1-score 0.7100" in said

    stage.work = measure
    stage.asked.clear()

    assert start(f"sweep.resume={sweep.path}", "sweep.direction=maximize") == 0

    assert stage.asked == [(1e-4, 1), (1e-4, 2)]
    assert get_statuses(sweep) == ["FINISHED"] * 4
    assert sweep.find_jobs()[0].read_run_json()["error"] is None
    assert sweep.read_run_json()["status"] == "FINISHED"
    assert "best: job 1" in capsys.readouterr().out


@pytest.mark.slow
def test_run_sweep__a_job_that_cannot_be_run_is_recorded_and_stops_no_other(start, stage, tmp_path):
    errors = {1e-5: MemoryError(), 1e-4: SystemError("odd")}

    def work(context):
        if error := errors.get(context.cfg.optimizer.lr):
            raise error
        return measure(context)

    stage.work = work

    assert start("optimizer.lr=0,1e-5,1e-4,1e-3") == 1

    assert [lr for lr, _ in stage.asked] == [1e-5, 1e-4, 1e-3]
    sweep = find_sweep(tmp_path)
    assert get_statuses(sweep) == ["FAILED", "FAILED", "FAILED", "FINISHED"]
    assert sweep.find_jobs()[0].read_run_json()["error"].startswith("ConfigError: optimizer.lr=0: must be ")


def test_run_sweep__ctrl_c_once_lets_the_job_finish(start, stage, tmp_path):
    def work(context):
        os.kill(os.getpid(), signal.SIGINT)
        return measure(context)

    stage.work = work

    assert start(*GRID) == 130

    assert len(stage.asked) == 1
    sweep = find_sweep(tmp_path)
    assert get_statuses(sweep) == ["FINISHED"]
    assert (sweep.read_run_json()["status"], sweep.read_run_json()["error"]) == ("KILLED", "stopped by Ctrl-C")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_run_sweep__ctrl_c_twice_stops_now(start, stage, tmp_path):
    def work(context):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return measure(context)

    stage.work = work

    assert start(*GRID) == 130

    assert get_statuses(find_sweep(tmp_path)) == ["KILLED"]


def test_run_sweep__sigterm_stops_now(start, stage, tmp_path):
    def work(context):
        os.kill(os.getpid(), signal.SIGTERM)
        return measure(context)

    stage.work = work

    assert start(*GRID) == 143

    sweep = find_sweep(tmp_path)
    assert get_statuses(sweep) == ["KILLED"]
    assert sweep.read_run_json()["error"] == "stopped by SIGTERM"


@pytest.mark.slow
def test_run_sweep__a_metric_that_is_not_measured_is_said(start, tmp_path):
    with pytest.raises(ConfigError, match=r"sweep\.metric=val/beauty is not measured; there are val/f1-score, val/map"):
        start("optimizer.lr=1e-5,1e-4", "sweep.metric=val/beauty")

    assert get_statuses(find_sweep(tmp_path)) == ["FINISHED", "FINISHED"]
    assert find_sweep(tmp_path).read_run_json()["status"] == "FAILED"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=1"], "a sweep needs a key with several values"),
        (["data.batch_size=1,many"], "data.batch_size=many"),
        (["model=sam_debug,sam_vit_c"], "model has no option 'sam_vit_c'; did you mean 'sam_vit_b'?"),
        (["optimizer.lr=1e-5,1e-4", "trainer.strategy=ddp"], "a job of a sweep trains on one device"),
        (["hydra/launcher=slurm", "seed=1,2"], "slurm"),
    ],
)
def test_run_sweep__mistakes_cost_no_job(start, stage, tmp_path, overrides, message):
    with pytest.raises(ConfigError) as caught:
        start(*overrides)

    assert message in str(caught.value)
    assert stage.asked == []
    assert not (tmp_path / "out").exists()


def test_run_sweep__resume_of_something_else_is_one_line(start, tmp_path):
    with pytest.raises(CheckpointError, match="there is no such folder"):
        start(f"sweep.resume={tmp_path}/nothing")
    with pytest.raises(CheckpointError, match="is no sweep"):
        start(f"sweep.resume={tmp_path}")


def test_run_sweep__resume_waits_for_what_is_at_work_and_runs_only_more_values(start, stage, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "ENDING_SECONDS", 0.3)
    start("optimizer.lr=1e-5,1e-4")
    sweep = find_sweep(tmp_path)
    script = "import sys, pathlib; from vpexp.runfolder import RunFolder\n"
    script += "with RunFolder(pathlib.Path(sys.argv[1])).hold(): print('held', flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", script, str(sweep.path / "1")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(CheckpointError, match="still at work: job 1; wait for its end, or end it"):
            start(f"sweep.resume={sweep.path}")
        holder.stdin.close()
    assert sweep.read_run_json()["status"] == "FINISHED"

    (reader, writer) = os.pipe()
    child = os.fork()
    if child == 0:  # another process holds the folder until it is killed
        with sweep.hold():
            os.write(writer, b"held")
            signal.pause()
    os.read(reader, 4)
    try:
        kept = {file: file.read_bytes() for file in sweep.path.glob("*.json")}
        with pytest.raises(CheckpointError, match="is in use by another process"):
            start(f"sweep.resume={sweep.path}", "optimizer.lr=1e-6,1e-5")
        assert {file: file.read_bytes() for file in sweep.path.glob("*.json")} == kept
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    stage.asked.clear()
    assert start(f"sweep.resume={sweep.path}", "optimizer.lr=1e-6,1e-5,1e-4,1e-3") == 0

    assert [lr for lr, _ in stage.asked] == [1e-6, 1e-3]
    values = [job.read_run_json()["values"]["optimizer.lr"] for job in sweep.find_jobs()]
    assert sorted(map(float, values)) == [1e-6, 1e-5, 1e-4, 1e-3]
