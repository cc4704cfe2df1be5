"""What a training computes in, as a user meets it: chosen once, kept by a run that goes on, and no business of tests."""

import json
from pathlib import Path

import pytest

from tests.integration.test_embedding_cache import count, list_entries, read_record, run_stage
from tests.integration.test_resume import assert_same_training
from vpexp.config import compose_config
from vpexp.run import run
from vpexp.runfolder import read_metrics


def train_on(root: Path, folder: Path, *asked: str):
    words = [f"resume={folder}", f"paths.output_dir={root}/outputs", f"paths.cache_dir={root}/cache", *asked]
    return run(compose_config(words), words)


def test_train__says_what_it_computes_in(tmp_path, capsys):
    result = run_stage(tmp_path, "trainer.accelerator=cpu", "prompter=none")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("training on")]
    assert line.startswith("training on cpu in ")
    assert read_record(result)["precision"] in line.replace("float32", "32-true")


@pytest.mark.slow
def test_train__goes_on_in_bfloat16_to_the_same_numbers(tmp_path, capsys):
    asked = ("trainer.accelerator=cpu", "prompter=none", "trainer.precision=bf16-mixed")
    whole = run_stage(tmp_path / "whole", *asked, "trainer.max_epochs=2")
    again = run_stage(tmp_path / "again", *asked, "trainer.max_epochs=2")
    assert_same_training(whole.folder, again.folder)
    parts = run_stage(tmp_path / "parts", *asked)
    train_on(tmp_path / "parts", parts.folder, "trainer.max_epochs=2", "tracking=none", "callbacks.progress=null")
    assert "training on cpu in bf16-mixed" in capsys.readouterr().out
    assert_same_training(whole.folder, parts.folder)


def test_train__validates_in_float32_as_a_test_does(tmp_path):
    result = run_stage(tmp_path, "trainer.precision=bf16-mixed", "prompter=none")
    before, epoch = read_metrics(result.folder / "metrics.csv")
    best = result.metrics["best_epoch/val/f1-score"]
    assert float(epoch["val/f1-score"]) == pytest.approx(best, abs=1e-7)
    assert before["val/f1-score"]


def test_cache__what_was_computed_in_bfloat16_lies_apart(tmp_path):
    asked = ("prompter=none", "stage.overlays=0")
    images = 8
    assert count(run_stage(tmp_path, *asked))[0] == images
    half = run_stage(tmp_path, *asked, "cache.compute=bfloat16")
    assert count(half)[:2] == (images, 0)
    assert read_record(half)["cache"]["computed"] == "bfloat16"
    assert len(list_entries(tmp_path)) == 2 * images
    assert len({entry.relative_to(tmp_path / "cache" / "embeddings").parts[0] for entry in list_entries(tmp_path)}) == 2
    assert count(run_stage(tmp_path, *asked))[:2] == (0, images)  # those of float32 are what they were
    words = ["stage=test", f"checkpoint={half.folder}", "tracking=none", "callbacks.progress=null"]
    words += [f"paths.output_dir={tmp_path}/outputs", f"paths.cache_dir={tmp_path}/cache"]
    tested = run(compose_config(words), words)
    assert count(tested)[:2] == (0, 2)  # a test inherits the section cache
    assert json.loads((tested.folder / "run.json").read_text())["cache"]["computed"] == "bfloat16"
