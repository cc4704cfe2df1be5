"""A training that was interrupted and resumed ends with the numbers of one that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vpexp.config import compose_config
from vpexp.run import run
from vpexp.runfolder import read_metrics

SETTINGS = [
    "experiment=debug",
    "prompter=none",
    "stage.test=false",
    "data.synthetic.train=7",
    "data.batch_size=2",
    "optimizer.lr=1e-3",
    "callbacks.early_stopping=null",
    "callbacks.progress=null",
    "prompt.jitter=0.3",
    "trainer.threads=1",  # sums in another order are other numbers
    "tracking=none",
]


def train(tmp_path: Path, name: str, *extra: str) -> Path:
    overrides = [*SETTINGS, f"paths.output_dir={tmp_path}/{name}", f"paths.cache_dir={tmp_path}/cache", *extra]
    folder = run(compose_config(overrides), overrides).folder
    assert folder is not None
    return folder


def read_last_weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


def assert_same_training(whole: Path, resumed: Path) -> None:
    timing = ("data_time", "iter_time", "encoder_time", "decoder_time")
    rows = [
        [{k: v for k, v in row.items() if v and not k.endswith(timing)} for row in read_metrics(folder / "metrics.csv")]
        for folder in (whole, resumed)
    ]
    assert rows[0] == rows[1]
    expected, found = read_last_weights(whole), read_last_weights(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("prompt", ["box", pytest.param("clicks", marks=pytest.mark.slow)])
def test_resume__after_an_epoch_equals_uninterrupted_run(tmp_path: Path, prompt: str) -> None:
    """However many processes read the images, before and after."""
    asked = (f"prompt={prompt}",)
    whole = train(tmp_path, "whole", "trainer.max_epochs=4", "data.num_workers=0", *asked)
    half = train(tmp_path, "half", "trainer.max_epochs=2", "data.num_workers=2", *asked)
    resumed = train(tmp_path, "half", "trainer.max_epochs=4", f"resume={half}", "data.num_workers=2", *asked)
    assert resumed == half
    assert_same_training(whole, resumed)


@pytest.mark.slow
def test_resume__after_sigterm_in_mid_epoch_equals_uninterrupted_run(tmp_path: Path) -> None:
    whole = train(tmp_path, "whole", "trainer.max_epochs=9", "data.num_workers=0")
    command = [*SETTINGS, "trainer.max_epochs=9", "data.num_workers=0"]
    command += [f"paths.output_dir={tmp_path}/stopped", f"paths.cache_dir={tmp_path}/cache"]
    process = subprocess.Popen([sys.executable, "-m", "vpexp", *command], env={**os.environ, "OMP_NUM_THREADS": "1"})
    rows = []
    while len(rows) < 3 and process.poll() is None:
        time.sleep(0.05)
        rows = [row for path in (tmp_path / "stopped").glob("train/*/metrics.csv") for row in read_metrics(path)]
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    (folder,) = (tmp_path / "stopped" / "train").iterdir()
    assert json.loads((folder / "run.json").read_text())["status"] == "KILLED"
    done = len(read_metrics(folder / "metrics.csv"))
    assert 3 <= done < 10
    resumed = train(tmp_path, "stopped", f"resume={folder}", "trainer.max_epochs=9")
    assert_same_training(whole, resumed)
