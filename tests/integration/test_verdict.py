"""The start of a training competes with its epochs: the better weights are kept, and what was gained is said."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests.conftest import RunDebug
from vpexp.config import load_config
from vpexp.inference.load import load_model, load_predictor
from vpexp.stages.shared.context import StageResult

MIN_DELTA = "callbacks.early_stopping.min_delta=1e-3"  # the default
WORSE = ("experiment=debug", "optimizer.lr=1e-2", "stage.overlays=1", "tracking=none", "trainer.threads=1", MIN_DELTA)
BETTER = (*WORSE, "optimizer=sgd", "optimizer.lr=1e-4", "trainer.max_epochs=1", "stage.test=false")  # by 0.0002
TIMES = ("_time",)


def get_numbers(result: StageResult, prefix: str) -> dict[str, float]:
    return {
        name.removeprefix(prefix): value
        for name, value in result.metrics.items()
        if name.startswith(prefix) and math.isfinite(value) and not name.endswith(TIMES)
    }


def get_folder(result: StageResult) -> Path:
    assert result.folder is not None
    return result.folder


def read_record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


@pytest.fixture(scope="module")
def worse(tmp_path_factory: pytest.TempPathFactory, run_debug: RunDebug) -> StageResult:
    return run_debug(tmp_path_factory.mktemp("outputs"), *WORSE, "trainer.max_epochs=2")


def test_train__that_makes_it_worse_keeps_the_start(worse: StageResult) -> None:
    folder = get_folder(worse)
    record = read_record(folder)

    kept = {"start.ckpt", "epoch_000.ckpt", "last.ckpt", "prompter.ckpt"}
    assert {path.name for path in (folder / "checkpoints").iterdir()} == kept
    assert worse.artifacts["best_checkpoint"] == folder / "checkpoints" / "start.ckpt"
    assert (record["kept"], record["best_checkpoint"], record["best_epoch"]) == ("start", "checkpoints/start.ckpt", 1)
    assert json.loads((folder / "metrics.json").read_text())["details"]["kept"] == "start"
    for split in ("val", "test"):
        before = get_numbers(worse, f"before/{split}/")
        assert before.items() <= get_numbers(worse, f"{split}/").items()
        assert len(before) > 10
    assert "test/wrong_image/f1-score" in worse.metrics
    assert list((folder / "overlays").glob("test_*.png"))


def test_train__that_makes_it_worse_says_so(worse: StageResult) -> None:
    numbers, text = worse.metrics, (get_folder(worse) / "vpexp.log").read_text()
    best, before = numbers["best_epoch/val/f1-score"], numbers["before/val/f1-score"]
    error = numbers["best_epoch/val/f1-score_gain_se"]

    assert best < before
    assert numbers["best_epoch/val/f1-score_gain"] == best - before
    verdict = (
        f"fine-tuning did not help: f1-score on val before {before:.4f}, best epoch (1) {best:.4f}, difference "
        f"{best - before:+.4f} ± {error:.4f} (standard error over 2 images)"
    )
    assert verdict in text
    assert read_record(get_folder(worse))["verdict"].startswith(verdict)
    assert "what to try: a lower optimizer.lr than 0.01" in text


def test_train__start_checkpoint_is_one_like_those_of_epochs(worse: StageResult) -> None:
    folder = get_folder(worse) / "checkpoints"
    start, epoch = (torch.load(folder / name, weights_only=True) for name in ("start.ckpt", "epoch_000.ckpt"))

    del start["vpexp"]["instances"]  # of the one that is kept
    assert start["vpexp"] == epoch["vpexp"]
    assert start["state_dict"].keys() == epoch["state_dict"].keys()
    came = load_model("sam_debug").state_dict()
    kept = load_predictor(get_folder(worse)).sam.state_dict()
    assert all(torch.equal(kept[name], came[name]) for name in came)


def test_test__after_a_training_that_did_not_help_is_of_the_start(worse: StageResult, run_debug: RunDebug) -> None:
    tested = run_debug(get_folder(worse).parents[1], "stage=test", "tracking=none", "trainer.threads=1")

    assert load_config(get_folder(tested) / "config.yaml").checkpoint == str(worse.artifacts["best_checkpoint"])
    assert get_numbers(worse, "before/test/").items() <= get_numbers(tested, "test/").items()


def test_train__resumed_comes_to_the_same_verdict(worse: StageResult, tmp_path: Path, run_debug: RunDebug) -> None:
    first = get_folder(run_debug(tmp_path, *WORSE, "trainer.max_epochs=1"))
    verdict = read_record(first)["verdict"]
    (first / "run.json").write_text(json.dumps({**read_record(first), "verdict": None, "kept": None}))

    resumed = run_debug(tmp_path, f"resume='{first}'", "trainer.max_epochs=2")

    assert read_record(first)["verdict"] == read_record(get_folder(worse))["verdict"] == verdict
    assert get_numbers(resumed, "") == get_numbers(worse, "")


@pytest.mark.parametrize(("stopping", "kept"), [(MIN_DELTA, "start"), ("callbacks.early_stopping=null", "epoch 1")])
def test_train__gain_counts_from_min_delta(tmp_path: Path, run_debug: RunDebug, stopping: str, kept: str) -> None:
    result = run_debug(tmp_path, *BETTER, stopping)
    folder = get_folder(result)

    assert 0 < result.metrics["best_epoch/val/f1-score_gain"] < 1e-3
    assert read_record(folder)["kept"] == kept
    assert ("fine-tuning helped: " in read_record(folder)["verdict"]) == (kept == "epoch 1")
    assert (folder / "checkpoints" / "start.ckpt").exists() == (kept == "start")
    expected = result.metrics["before/val/f1-score" if kept == "start" else "best_epoch/val/f1-score"]
    assert result.metrics["val/f1-score"] == expected
