"""A training says what it did to other prompts, to prompts on background and to another data set, and mixes weights where it is asked."""

import json
import math

import pytest
import torch

from tests.conftest import RunDebug
from tests.integration.test_verdict import BETTER, get_folder, read_record
from vpexp.errors import DataError
from vpexp.inference.load import load_model, load_predictor
from vpexp.stages.shared.context import StageResult

KEPT = (*BETTER, "callbacks.early_stopping=null", "prompter=none")
MEASURES = ("point", "clicks", "point_hits")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, run_debug: RunDebug) -> StageResult:
    """A training of which half is kept, that shall stay good at the data set that it learns from."""
    root = tmp_path_factory.mktemp("mixed")
    first = get_folder(run_debug(root / "first", *KEPT, "stage.controls=false"))
    data = read_record(first)["data"]["root"]
    return run_debug(root, *KEPT, "trainer.blend=0.5", f"data.keep={data}")


def test_train__measures_other_prompts_before_and_after(mixed: StageResult) -> None:
    numbers = mixed.metrics
    for name in (*MEASURES, "trained", "keep"):
        assert math.isfinite(numbers[f"before/val/prompts/{name}"])
        assert math.isfinite(numbers[f"val/prompts/{name}"])
    assert numbers["val/prompts/keep"] == numbers["val/prompts/trained"], "it is the same data set here"
    page = (get_folder(mixed) / "report.html").read_text()
    assert all(words in page for words in ("one point", "background point gives an object", "data.keep, as trained"))


def test_train__mixture_is_a_checkpoint_like_the_others(mixed: StageResult) -> None:
    folder = get_folder(mixed)
    checkpoint = folder / "checkpoints" / "blend.ckpt"
    assert mixed.artifacts["best_checkpoint"] == checkpoint
    assert read_record(folder)["kept"] == "0.5 of epoch 1"
    assert read_record(folder)["blend"]["share"] == 0.5
    assert "best_checkpoint" in read_record(folder)
    start = load_model("sam_debug").state_dict()
    learnt = torch.load(folder / "checkpoints" / "epoch_000.ckpt", weights_only=True)["state_dict"]
    kept = load_predictor(folder).sam.state_dict()
    changed = 0
    for name, value in learnt.items():
        own = name.removeprefix("sam.")
        torch.testing.assert_close(kept[own], (start[own] + value) / 2)
        changed += not torch.equal(start[own], value)
    assert changed > 10


def test_train__without_controls_measures_nothing_more(tmp_path, run_debug: RunDebug) -> None:
    result = run_debug(tmp_path, *KEPT, "stage.controls=false")
    assert not [name for name in result.metrics if "/prompts/" in name]
    assert not (get_folder(result) / "prompts_before.json").exists()


def test_train__resumed_keeps_what_was_measured_before(tmp_path, run_debug: RunDebug) -> None:
    first = get_folder(run_debug(tmp_path, *KEPT))
    measured = json.loads((first / "prompts_before.json").read_text())
    resumed = run_debug(tmp_path, f"resume='{first}'", "trainer.max_epochs=2")
    assert json.loads((first / "prompts_before.json").read_text()) == measured
    assert resumed.metrics["before/val/prompts/point"] != resumed.metrics["val/prompts/point"]


def test_train__keep_that_is_no_data_set(tmp_path, run_debug: RunDebug) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"^data\.keep: .*empty: "):
        run_debug(tmp_path, *KEPT, f"data.keep={tmp_path}/empty")


def test_train__tiles_are_asked_too(tmp_path, run_debug: RunDebug) -> None:
    result = run_debug(tmp_path, *KEPT, "data.tile=32")
    assert all(math.isfinite(result.metrics[f"val/prompts/{name}"]) for name in MEASURES)
