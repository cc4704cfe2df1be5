"""SAM 2 through the stages: a random model of a few layers, whose three maps are cached, trained on, exported and quantized."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import RunDebug
from vpexp.inference.exported import find_exported, read_metadata
from vpexp.inference.load import load_predictor
from vpexp.models.sam2 import INTERFACE
from vpexp.runfolder import RunFolder
from vpexp.stages.shared.context import StageResult

MODEL = "model=sam2_debug"
CELLS = INTERFACE.channels * 4 * 4  # of an embedding at 64 px


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sam2")


@pytest.fixture(scope="module")
def trained(output_dir: Path, run_debug: RunDebug) -> StageResult:
    return run_debug(output_dir, MODEL, "stage.test=false", "tracking=none", "optimizer.lr=1e-3")


@pytest.fixture(scope="module")
def exported(trained: StageResult, output_dir: Path, run_debug: RunDebug) -> StageResult:
    return run_debug(
        output_dir, "stage=export", f"checkpoint='{trained.artifacts['best_checkpoint']}'", "tracking=none"
    )


def read_losses(result: StageResult) -> list[float]:
    with RunFolder(result.folder).metrics_csv.open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def test_train__keeps_the_three_maps_and_trains_the_decoder(trained: StageResult) -> None:
    record = RunFolder(trained.folder).read_run_json()
    entries = list(Path(record["cache"]["folder"]).rglob("*.emb"))
    assert len(entries) == 6
    assert all(2 * CELLS < entry.stat().st_size < 2 * CELLS + 1000 for entry in entries)
    checkpoint = torch.load(trained.artifacts["best_checkpoint"], weights_only=True)
    state = checkpoint["state_dict"]
    assert all(name.startswith("sam.mask_decoder.") for name in state)
    assert "sam.mask_decoder.obj_score_token.weight" in state
    assert set(checkpoint["vpexp"]["frozen"]) == {"image_encoder", "prompt_encoder"}


def test_train__the_cache_changes_nothing(tmp_path: Path, run_debug: RunDebug) -> None:
    asked = (MODEL, "stage.test=false", "tracking=none", "optimizer.lr=1e-3", "prompter=none")
    cached = run_debug(tmp_path, *asked, "cache.precision=float32")
    encoded = run_debug(tmp_path, *asked, "cache=none")
    ours, theirs = (read_losses(result) for result in (cached, encoded))
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert encoded.metrics["val/f1-score"] == pytest.approx(cached.metrics["val/f1-score"], rel=1e-4)


def test_test__exported_model_scores_as_the_trained_one(
    trained: StageResult, exported: StageResult, output_dir: Path, run_debug: RunDebug
) -> None:
    assert read_metadata(find_exported(exported.folder)).interface == INTERFACE
    assert exported.metrics["export/flipped_per_10000"] <= 1
    files = trained.artifacts["best_checkpoint"], exported.artifacts["decoder"]
    as_torch, as_ir = (run_debug(output_dir, "stage=test", "tracking=none", f"checkpoint='{file}'") for file in files)
    assert as_ir.metrics["test/f1-score"] == pytest.approx(as_torch.metrics["test/f1-score"], abs=1e-4)


def test_export__weights_in_the_official_layout(trained: StageResult, output_dir: Path, run_debug: RunDebug) -> None:
    checkpoint = f"checkpoint='{trained.artifacts['best_checkpoint']}'"
    result = run_debug(output_dir, "stage=export", checkpoint, "export.format=sam", "tracking=none")
    content = torch.load(result.artifacts["weights"], weights_only=True)
    trained_token = torch.load(trained.artifacts["best_checkpoint"], weights_only=True)["state_dict"]
    written = content["model"]["sam_mask_decoder.iou_token.weight"]
    assert torch.equal(written, trained_token["sam.mask_decoder.iou_token.weight"])


@pytest.mark.slow
def test_ptq_and_predict__without_prompts(
    exported: StageResult, output_dir: Path, run_debug: RunDebug, tmp_path: Path
) -> None:
    quantized = run_debug(output_dir, "stage=ptq", f"checkpoint='{exported.folder}'", "tracking=none")
    predictor = load_predictor(quantized.folder)
    image_HW3 = np.random.default_rng(0).integers(0, 256, (90, 61, 3), dtype=np.uint8)
    embedding = predictor.embed(image_HW3)
    assert set(embedding.features) == set(INTERFACE.names)
    assert predictor.decode(embedding, boxes=np.array([[3, 4, 30, 20]], np.float32)).masks.shape == (1, 90, 61)
    tested = run_debug(
        output_dir, "stage=test", "prompt=auto", "tracking=none", f"checkpoint='{quantized.artifacts['decoder']}'"
    )
    assert any(name.endswith("map_any_class") for name in tested.metrics)


@pytest.mark.slow
def test_train__on_tiles_and_by_clicks(tmp_path: Path, run_debug: RunDebug) -> None:
    result = run_debug(tmp_path, MODEL, "tracking=none", "data.tile=48", "prompt=clicks", "prompter=none")
    assert 0 <= result.metrics["test/f1-score"] <= 1
