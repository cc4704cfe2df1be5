"""What a training computes in is decided once a run, and said."""

import pytest
import torch

from vpexp.config import compose_config
from vpexp.runfolder import create_run_folder
from vpexp.stages.shared import precision
from vpexp.stages.shared.context import RunContext
from vpexp.stages.shared.precision import decide_precision
from vpexp.tracking.mlflow_run import MlflowRun

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture
def decide(tmp_path, monkeypatch):
    folder = create_run_folder(tmp_path, "train")

    def call(device, native, *overrides, tell=True):
        monkeypatch.setattr(precision, "find_native_bfloat16", lambda _: native)
        cfg = compose_config(["experiment=debug", *overrides])
        return decide_precision(RunContext(cfg, folder, MlflowRun(), None), device, tell=tell).name

    return call


def test_decide_precision__of_auto_is_kept_by_a_run_that_goes_on(decide, capsys):
    assert decide(GPU, "the GPU") == "bf16-mixed"
    assert capsys.readouterr().out == "training on cuda:0 in bf16-mixed: the GPU computes it\n"
    assert decide(CPU, None) == "bf16-mixed"  # on another machine
    said = " ".join(capsys.readouterr().out.split())
    assert said == (
        "training on cpu in bf16-mixed: as this run began, which cpu does not compute itself: slower than "
        "trainer.precision=32-true"
    )
    assert decide(GPU, "the GPU", "trainer.precision=32-true") == "32-true"
    assert decide(GPU, "the GPU") == "32-true"


def test_decide_precision__of_a_follower_says_and_writes_nothing(decide, capsys):
    assert decide(GPU, "the GPU", tell=False) == "bf16-mixed"
    assert capsys.readouterr().out == ""
    assert decide(CPU, None) == "32-true"


def test_decide_precision__on_a_cpu_bfloat16_is_asked_for(decide, capsys):
    assert decide(CPU, "AMX") == "32-true"
    assert "trainer.precision=bf16-mixed takes the AMX that this CPU has" in " ".join(capsys.readouterr().out.split())
    assert decide(CPU, "AMX", "trainer.precision=bf16-mixed") == "bf16-mixed"
    assert "slower" not in capsys.readouterr().out
