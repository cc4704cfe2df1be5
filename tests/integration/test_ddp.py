"""Training on two devices, here two processes on the CPU: the numbers of one, one record, and one end for all."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch

from vpexp.config import compose_config
from vpexp.errors import DataError
from vpexp.run import run
from vpexp.runfolder import read_metrics

SETTINGS = [
    "experiment=debug",
    "stage.test=false",
    "data.synthetic.train=6",
    "data.synthetic.val=3",  # one process sees two of them, the other one
    "optimizer.lr=1e-4",
    "callbacks.early_stopping=null",
    "callbacks.progress=null",
    "trainer.accelerator=cpu",
    "trainer.threads=1",
    "data.num_workers=0",
]
TWO = ["trainer.devices=2", "data.batch_size=1"]
ONE = ["data.batch_size=2"]

pytestmark = pytest.mark.slow


@pytest.fixture
def build_overrides(tmp_path: Path, cache_dir: Path) -> Callable[..., list[str]]:
    def build(*asked: str) -> list[str]:
        return [*SETTINGS, f"paths.output_dir='{tmp_path}/out'", f"paths.cache_dir='{cache_dir}'", *asked]

    return build


def train(overrides: list[str]) -> Path:
    """Train with this process as rank 0."""
    folder = run(compose_config(overrides), overrides).folder
    assert folder is not None
    return folder


def start(overrides: list[str]) -> subprocess.Popen[str]:
    """Train by the command line."""
    return subprocess.Popen(
        [sys.executable, "-m", "vpexp", *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def find_folder(output_dir: Path) -> Path:
    (folder,) = (output_dir / "train").iterdir()
    return folder


def wait_for_epochs(process: subprocess.Popen[str], output_dir: Path, count: int) -> Path:
    rows: list[dict[str, str]] = []
    while len(rows) <= count or not list(output_dir.glob("train/*/checkpoints/last.ckpt")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
        rows = [row for path in output_dir.glob("train/*/metrics.csv") for row in read_metrics(path)]
    return find_folder(output_dir)


def find_followers(folder: Path) -> list[int]:
    """Find the processes that train for a run beside its own, and those that read images for them."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            log = (place / "fd" / "1").readlink()
        except OSError:  # it has ended
            continue
        if log.match(f"{folder}/rank_*.log"):
            found.append(int(place.name))
    return sorted(found)


def wait_until_alone(folder: Path, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while find_followers(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert find_followers(folder) == []


def read_record(folder: Path) -> dict[str, object]:
    record: dict[str, object] = json.loads((folder / "run.json").read_text())
    return record


def assert_same_training(expected: Path, found: Path) -> None:
    rows, expected_rows = read_metrics(found / "metrics.csv"), read_metrics(expected / "metrics.csv")
    assert len(rows) == len(expected_rows) > 2
    for row, expected_row in zip(rows, expected_rows, strict=True):
        numbers = {name for name, value in expected_row.items() if value and not name.endswith("_time")}
        assert {name for name, value in row.items() if value and not name.endswith("_time")} == numbers
        for name in numbers:
            assert float(row[name]) == pytest.approx(float(expected_row[name]), rel=1e-4, abs=1e-6), name
    weights, expected_weights = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (found, expected)
    )
    assert weights.keys() == expected_weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected_weights[name], rtol=1e-4, atol=1e-5)


def assert_one_record(output_dir: Path, folder: Path) -> None:
    assert find_folder(output_dir) == folder
    assert read_record(folder)["status"] == "FINISHED"
    assert read_record(folder)["processes"] == 2
    (recorded,) = mlflow.MlflowClient(f"sqlite:///{output_dir}/mlflow.db").search_runs(["1"])
    assert recorded.info.status == "FINISHED"
    assert recorded.info.run_id == read_record(folder)["mlflow_run_id"]
    assert find_followers(folder) == []
    assert "Error" not in (folder / "rank_1.log").read_text()
    assert not torch.distributed.is_initialized()  # the final assessment was rank 0's alone


def test_sigterm__ends_all_processes_and_the_resumed_run_is_that_of_one_process_with_all_images(
    tmp_path, build_overrides
):
    process = start(build_overrides(*TWO, "trainer.max_epochs=30"))
    folder = wait_for_epochs(process, tmp_path / "out", 1)
    assert len(find_followers(folder)) == 1
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert find_followers(folder) == []
    assert read_record(folder)["status"] == "KILLED"
    done = len(read_metrics(folder / "metrics.csv")) - 1
    assert 1 <= done < 30
    assert "resume=" in output
    goal = f"trainer.max_epochs={done + 1}"
    assert train(build_overrides(*TWO, f"resume='{folder}'", goal)) == folder
    expected = train([*build_overrides(*ONE, goal), f"paths.output_dir='{tmp_path}/one'", "tracking=none"])
    assert_same_training(expected, folder)
    assert_one_record(tmp_path / "out", folder)


def test_follower_lost__run_fails_within_seconds_and_says_which(tmp_path, build_overrides):
    process = start(build_overrides(*TWO, "trainer.max_epochs=1000", "tracking=none"))
    folder = wait_for_epochs(process, tmp_path / "out", 1)
    follower = find_followers(folder)[0]
    os.kill(follower, signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = [line for line in output.splitlines() if line.startswith("vpexp: ")]
    assert line.startswith("vpexp: process 2 of the 2 that train was killed by SIGKILL; its log: ")
    assert str(folder / "rank_1.log") in line
    assert f"resume={folder}" in line
    assert "Traceback" not in output
    assert read_record(folder)["status"] == "FAILED"
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    wait_until_alone(folder)


def test_rank_0_lost__followers_end_too(tmp_path, build_overrides):
    process = start(build_overrides(*TWO, "trainer.max_epochs=1000", "data.num_workers=1", "tracking=none"))
    folder = wait_for_epochs(process, tmp_path / "out", 1)
    assert find_followers(folder)
    process.kill()
    process.communicate(timeout=60)
    wait_until_alone(folder)


TRIP = """
from pytorch_lightning.callbacks import Callback
from vpexp.errors import DataError

class Trip(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.global_step == 2:
            raise DataError("berry.png has vanished")
"""


def test_error_of_a_follower__is_the_error_of_the_run(tmp_path, monkeypatch, build_overrides):
    (tmp_path / "own_callbacks.py").write_text(TRIP)
    monkeypatch.syspath_prepend(tmp_path)
    overrides = build_overrides(*TWO, "tracking=none", "+callbacks.trip._target_=own_callbacks.Trip")
    with pytest.raises(DataError, match=r"^berry\.png has vanished$"):
        train(overrides)
    folder = find_folder(tmp_path / "out")
    assert find_followers(folder) == []
    assert read_record(folder)["status"] == "FAILED"
    assert "DataError: berry.png has vanished" in (folder / "rank_1.log").read_text()
    assert not torch.distributed.is_initialized()


def test_more_processes_than_val_images__is_one_line(build_overrides):
    with pytest.raises(DataError, match=r"^the val split has 3 images with objects, fewer than the 4 processes"):
        train(build_overrides("trainer.devices=4", "tracking=none"))
