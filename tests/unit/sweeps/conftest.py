"""Sweeps whose stage is a function of the test; everything around it is real."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vpexp import run as run_module
from vpexp.command_line import read_command_line
from vpexp.stages.shared.context import RunContext, StageResult
from vpexp.sweeps.command import run_sweep
from vpexp.sweeps.record import SweepFolder


def measure(context: RunContext) -> StageResult:
    """A number that is largest for lr=1e-4 and batch size 2."""
    lr, batch_size = context.cfg.optimizer.lr, context.cfg.data.batch_size
    return StageResult({"val/f1-score": 0.9 - abs(lr - 1e-4) * 100 - abs(batch_size - 2) / 10, "val/map": 0.25})


class Stage:
    """The stage of all jobs; counts its calls."""

    def __init__(self) -> None:
        self.work: Callable[[RunContext], StageResult] = measure
        self.asked: list[tuple[float, int]] = []

    def __call__(self, context: RunContext) -> StageResult:
        self.asked.append((context.cfg.optimizer.lr, context.cfg.data.batch_size))
        return self.work(context)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Replace the stage; ``stage.work`` is what it does."""
    replaced = Stage()
    monkeypatch.setattr(run_module, "_run_stage", replaced)
    return replaced


@pytest.fixture
def start(tmp_path: Path, stage: Stage) -> Callable[..., int]:
    """Run ``python -m vpexp -m <overrides>`` in this process; without MLflow, unless it is asked for."""

    def run(*overrides: str) -> int:
        usual = [] if any(word.startswith("sweep.resume=") for word in overrides) else ["experiment=debug"]
        tracking = [] if any(word.startswith("tracking") for word in overrides) or not usual else ["tracking=none"]
        output = [f"paths.output_dir='{tmp_path}/out'"] if usual else []
        return run_sweep(read_command_line(["-m", *usual, *tracking, *output, *overrides]))

    return run


def find_sweep(tmp_path: Path) -> SweepFolder:
    """Find the only sweep."""
    (path,) = (tmp_path / "out" / "sweeps").iterdir()
    return SweepFolder(path)
