"""Sweeps as people start, stop and resume them, read with MLflow's own client."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from vpexp.inference.torch_model import find_checkpoint
from vpexp.runfolder import RunFolder
from vpexp.sweeps.record import SweepFolder
from vpexp.tracking.journal import ENTRIES

pytestmark = pytest.mark.slow  # each test starts Python, and some kill it

QUICK = (
    "experiment=debug",
    "prompter=none",
    "trainer.max_epochs=4",
    "callbacks.early_stopping=null",
    "stage.test=false",
    "stage.controls=false",
    "stage.overlays=0",
    "data.num_workers=0",
)
RATES = "optimizer.lr=1e-5,1e-4"
PATIENCE = 400

Command = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def command(tmp_path: Path, cache_dir: Path) -> Command:
    """Start ``python -m vpexp -m <overrides>``, with a database and run folders of the test's own."""

    def start(*overrides: str) -> subprocess.Popen[str]:
        resumed = any(word.startswith("sweep.resume=") for word in overrides)
        usual = () if resumed else (*QUICK, f"paths.output_dir={tmp_path}", f"paths.cache_dir={cache_dir}")
        return subprocess.Popen(
            [sys.executable, "-m", "vpexp", "-m", *usual, *overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # as a shell starts it: a group that signals go to
        )

    return start


def finish(process: subprocess.Popen[str], code: int) -> str:
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, said
    return said


def wait_for(what: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def find_sweep(output_dir: Path) -> SweepFolder:
    (path,) = (output_dir / "sweeps").iterdir()
    return SweepFolder(path)


def count_epochs(folder: RunFolder) -> int:
    return len(folder.metrics_csv.read_text().splitlines()) - 2 if folder.metrics_csv.is_file() else 0


def read_store(output_dir: Path) -> tuple[Run, dict[str, Run]]:
    """Read the parent, and the children by their names."""
    client = MlflowClient(f"sqlite:///{output_dir}/mlflow.db")
    experiment = client.get_experiment_by_name("synthetic")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert len(children) == len(runs) - 1
    return parent, children


def read_curve(folder: RunFolder) -> list[tuple[str, str]]:
    with folder.metrics_csv.open() as file:
        return [(row["epoch"], row["val/f1-score"]) for row in csv.DictReader(file)]


def test_sweep__a_failed_job_and_its_record(command: Command, tmp_path: Path) -> None:
    said = finish(command("data.batch_size=1,2", "model.weights=random,/no/such.pth", "trainer.max_epochs=1"), code=1)

    assert "2 of 4 jobs have not finished; go on with: python -m vpexp -m sweep.resume=" in said
    parent, children = read_store(tmp_path)
    assert {name: run.info.status for name, run in children.items()} == {
        "bs=1 weights=random": "FINISHED",
        "bs=1 weights=/no/such.pth": "FAILED",
        "bs=2 weights=random": "FINISHED",
        "bs=2 weights=/no/such.pth": "FAILED",
    }
    failed = children["bs=1 weights=/no/such.pth"]
    assert failed.data.tags["error"].startswith("WeightsError: weights file /no/such.pth does not exist")
    assert failed.data.params["data.batch_size"] == "1"
    assert "such.pth" in (Path(failed.data.tags["run_folder"]) / "vpexp.log").read_text()
    assert parent.info.status == "FAILED"
    numbers = parent.data.metrics
    assert (numbers["verbose/jobs/finished"], numbers["verbose/jobs/failed"]) == (2, 2)
    best = max(("bs=1 weights=random", "bs=2 weights=random"), key=lambda n: children[n].data.metrics["val/f1-score"])
    assert parent.data.tags["best_job"] == best
    sweep = find_sweep(tmp_path)
    assert find_checkpoint(str(sweep.path), tmp_path).is_relative_to(sweep.path / children[best].data.tags["job"])
    for name in ("before/val/f1-score", "gain/val/f1-score", "val/f1-score"):
        assert numbers[name] == children[best].data.metrics[name]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"sweep_results.csv", "heat_map.png", "parallel_coordinates.png"} <= artifacts
    history = client.get_metric_history(children[best].info.run_id, "values_by_epoch/val/f1-score")
    assert [metric.step for metric in history] == [0, 1]


def test_sweep__killed_and_resumed_gives_what_it_would_have_given(command: Command, tmp_path: Path) -> None:
    process = command(RATES)
    wait_for(lambda: any((tmp_path / "sweeps").glob("*")) and find_sweep(tmp_path).find_jobs())
    sweep = find_sweep(tmp_path)
    job = sweep.find_jobs()[0]
    wait_for(lambda: count_epochs(job) >= 2)
    process.kill()
    process.communicate()
    assert (job.read_run_json()["status"], job.is_held()) == ("RUNNING", False)

    whole = tmp_path / "whole"
    finish(command(RATES, f"hydra.sweep.dir={whole}", f"paths.cache_dir={tmp_path}/cache"), code=0)

    # The next start has closed the runs of the process that is gone.
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs(["1"])
    dead = [run for run in runs if str(sweep.path) in run.data.tags["run_folder"]]
    assert [run.info.status for run in dead] == ["KILLED", "KILLED"]
    assert all("the process ended without a word" in run.data.tags["error"] for run in dead)
    assert job.read_run_json()["status"] == "KILLED"
    others = [run for run in runs if run not in dead]
    assert {run.info.status for run in others} == {"FINISHED"}
    passes = [expected.read_run_json()["encoder_passes"] for expected in SweepFolder(whole).find_jobs()]
    assert passes[0] > 0
    assert passes[1:] == [0]  # every image is encoded once

    said = finish(command(f"sweep.resume={sweep.path}"), code=0)

    assert "going on with" in said
    for run in others:
        client.delete_run(run.info.run_id)
    parent, children = read_store(tmp_path)
    assert {run.info.status for run in (parent, *children.values())} == {"FINISHED"}
    assert set(children) == {"lr=1e-5", "lr=1e-4"}
    assert "error" not in children["lr=1e-5"].data.tags
    for name in ("0", "1"):
        resumed, expected = RunFolder(sweep.path / name), RunFolder(whole / name)
        assert read_curve(resumed) == read_curve(expected)
        assert resumed.read_run_json()["mlflow_run_id"] == children[resumed.read_run_json()["job_name"]].info.run_id


def test_sweep__a_worker_that_is_killed_twice_takes_only_its_own_job_with_it(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    process = command("optimizer.lr=1e-6,1e-5,1e-4", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    wait_for(lambda: any((tmp_path / "sweeps").glob("*")) and len(find_sweep(tmp_path).find_jobs()) >= 2)
    sweep = find_sweep(tmp_path)
    victim = RunFolder(sweep.path / "1")
    wait_for(lambda: victim.read_run_json().get("status") == "RUNNING" and (victim.path / ENTRIES).is_file())
    worker = victim.read_run_json()["process"]
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: victim.read_run_json()["process"] != worker)  # by itself, when the others have ended
    os.kill(victim.read_run_json()["process"], signal.SIGKILL)

    said = finish(process, code=1)

    assert "once more, by itself, after the others" in said
    assert "job 1 was killed with its process again; the others go on" in said
    parent, children = read_store(tmp_path)
    assert {name: run.info.status for name, run in children.items()} == {
        "lr=1e-6": "FINISHED",
        "lr=1e-5": "KILLED",
        "lr=1e-4": "FINISHED",
    }
    assert parent.info.status == "FAILED"
    assert json.loads(victim.run_json.read_text())["status"] == "KILLED"

    finish(command(f"sweep.resume={sweep.path}", "hydra/launcher=basic"), code=0)

    parent, children = read_store(tmp_path)
    assert {run.info.status for run in (parent, *children.values())} == {"FINISHED"}


def test_sweep__ctrl_c_of_a_terminal_lets_the_jobs_of_all_workers_finish(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    process = command("optimizer.lr=1e-6,1e-5,1e-4", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    wait_for(lambda: any((tmp_path / "sweeps").glob("*")) and len(find_sweep(tmp_path).find_jobs()) >= 2)
    sweep = find_sweep(tmp_path)
    wait_for(lambda: all(count_epochs(job) >= 1 for job in sweep.find_jobs()[:2]))
    workers = {job.read_run_json()["process"] for job in sweep.find_jobs()}
    for number in (process.pid, *workers):  # a terminal tells all of them
        os.kill(number, signal.SIGINT)

    said = finish(process, code=130)

    assert "stopping when the jobs under way have ended" in said
    statuses = [job.read_run_json()["status"] for job in sweep.find_jobs()]
    assert statuses == ["FINISHED", "FINISHED"]
    assert read_store(tmp_path)[0].info.status == "KILLED"


def test_sweep__sigterm_to_all_of_its_processes_ends_it_as_killed(command: Command, tmp_path: Path) -> None:
    """As ``timeout`` and cluster managers send it: the processes that read images go down first."""
    process = command(RATES, "data.num_workers=2", "trainer.max_epochs=200")
    wait_for(lambda: any((tmp_path / "sweeps").glob("*")) and find_sweep(tmp_path).find_jobs())
    job = find_sweep(tmp_path).find_jobs()[0]
    wait_for(lambda: count_epochs(job) >= 2)

    os.killpg(process.pid, signal.SIGTERM)
    said = finish(process, code=128 + signal.SIGTERM)

    parent, children = read_store(tmp_path)
    assert (parent.info.status, children["lr=1e-5"].info.status) == ("KILLED", "KILLED"), said
    assert set(children) == {"lr=1e-5"}
    assert job.last_checkpoint.is_file()


def test_sweep__workers_of_a_killed_process_end_and_their_jobs_go_on_in_place(command: Command, tmp_path: Path) -> None:
    long = ("trainer.max_epochs=15", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    process = command("optimizer.lr=1e-6,1e-5,1e-4", *long)
    wait_for(lambda: any((tmp_path / "sweeps").glob("*")) and len(find_sweep(tmp_path).find_jobs()) == 2)
    sweep = find_sweep(tmp_path)
    wait_for(lambda: all(count_epochs(job) >= 1 for job in sweep.find_jobs()))
    process.kill()
    process.communicate()

    finish(command(f"sweep.resume={sweep.path}"), code=0)

    assert [job.path.name for job in sweep.find_jobs()] == ["0", "1", "2"]
    assert [count_epochs(job) for job in sweep.find_jobs()] == [15, 15, 15]
    parent, children = read_store(tmp_path)
    assert {run.info.status for run in (parent, *children.values())} == {"FINISHED"}
    assert set(children) == {"lr=1e-6", "lr=1e-5", "lr=1e-4"}
