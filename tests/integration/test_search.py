"""A search by Optuna as a user starts it, killed in mid-trial, and gone on with."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import DEBUG
from vpexp.sweeps.record import SweepFolder

optuna = pytest.importorskip("optuna", reason="scripts/setup installs Optuna and its sweeper")
pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="scripts/setup installs Optuna and its sweeper")

SECONDS = 120
SHORT = (
    *DEBUG[:2],
    "prompter=none",
    "stage.test=false",
    "stage.overlays=0",
    "trainer.max_epochs=12",
    "callbacks.early_stopping=null",
)


def start(*overrides: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "vpexp", "-m", *overrides], env=environment)


def wait_for(found) -> None:
    deadline = time.monotonic() + SECONDS
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_search__killed_in_mid_trial_goes_on_with_that_trial(tmp_path: Path, cache_dir: Path):
    out = tmp_path / "out"
    places = (f"paths.output_dir='{out}'", f"paths.cache_dir='{cache_dir}'")
    process = start(*SHORT, *places, "sweep=optuna", "hydra.sweeper.n_trials=3")
    wait_for(lambda: list(out.glob("sweeps/*/1/checkpoints/last.ckpt")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    (path,) = (out / "sweeps").iterdir()
    sweep = SweepFolder(path)
    killed = sweep.find_jobs()[1].read_run_json()

    assert start(f"sweep.resume='{path}'").wait(SECONDS * 2) == 0

    jobs = [job.read_run_json() for job in sweep.find_jobs()]
    assert [job["status"] for job in jobs] == ["FINISHED"] * 3
    assert (jobs[1]["mlflow_run_id"], jobs[1]["values"]) == (killed["mlflow_run_id"], killed["values"])
    study = optuna.load_study(study_name=path.name, storage=f"sqlite:///{path}/optuna.db")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert study.trials[2].params == study.trials[1].params
    with sqlite3.connect(out / "mlflow.db") as database:
        statuses = database.execute("select status from runs").fetchall()
    assert statuses == [("FINISHED",)] * 4
