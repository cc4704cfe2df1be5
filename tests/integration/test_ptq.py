"""Whole runs of ``stage=ptq``: from what was exported last to INT8, and what is said when that cannot be."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import RunDebug
from vpexp.errors import CheckpointError, ConfigError
from vpexp.inference.exported import find_exported, read_metadata
from vpexp.inference.load import load_predictor
from vpexp.runfolder import RunFolder
from vpexp.stages.shared.context import StageResult

PARTS = ("image_encoder", "decoder", "prompter", "classifier")
FILES = {f"optimized_model_{part}{suffix}" for part in PARTS for suffix in (".xml", ".bin")}
FOUR_IMAGES = "4 images to calibrate on; 32 or more are better"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, run_debug: RunDebug) -> Path:
    """An output folder with a training and its export."""
    output_dir = tmp_path_factory.mktemp("exported")
    run_debug(output_dir, "tracking=none", "stage.test=false")
    run_debug(output_dir, "stage=export", "tracking=none")
    return output_dir


@pytest.fixture(scope="module")
def quantized(exported: Path, run_debug: RunDebug) -> StageResult:
    return run_debug(exported, "stage=ptq", "tracking=none")


def read_record(result: StageResult) -> dict:
    assert result.folder is not None
    return RunFolder(result.folder).read_run_json()


def test_ptq__writes_all_parts_at_the_top_of_its_folder(quantized: StageResult) -> None:
    assert quantized.folder is not None
    names = {path.name for path in quantized.folder.iterdir()}
    assert names >= FILES
    assert ".draft" not in names
    model = find_exported(quantized.folder)
    assert quantized.artifacts == model.parts
    assert [path.name for path in model.parts.values()] == [f"optimized_model_{part}.xml" for part in PARTS]
    assert read_metadata(model).precision == "INT8"
    predictor = load_predictor(quantized.folder)
    embedding = predictor.embed(np.zeros((40, 60, 3), np.uint8))
    assert predictor.decode(embedding, boxes=np.array([[3, 4, 30, 20]], np.float32)).masks.shape == (1, 40, 60)
    boxes_K4, scores_K = predictor.instances.find_boxes(embedding.features, np.zeros((1, 3, 64, 64), np.float32))
    assert np.isfinite(boxes_K4).all()
    assert (np.diff(scores_K) <= 0).all()


def test_ptq__says_what_it_gained(quantized: StageResult, exported: Path) -> None:
    metrics = quantized.metrics
    assert metrics["int8/size_mb"] == pytest.approx(find_exported(quantized.artifacts["decoder"]).size_mb)
    assert metrics["int8/size_mb"] < metrics["fp32/size_mb"]
    assert all(metrics[f"{kind}/{part}_ms"] > 0 for kind in ("fp32", "int8") for part in ("encoder", "decoder"))
    assert not any("val" in name for name in metrics)  # nothing is evaluated without ptq.max_drop
    record = read_record(quantized)
    assert record["quantization"]["methods"] == {"image_encoder": "int8", "decoder": "int8", "prompter": "int8"}
    assert record["quantization"]["calibration_images"] == 4
    log = RunFolder(quantized.folder).log.read_text()
    assert FOUR_IMAGES in log


def test_ptq__can_be_tested(quantized: StageResult, exported: Path, run_debug: RunDebug) -> None:
    tested = run_debug(exported, "stage=test", f"checkpoint='{quantized.artifacts['decoder']}'", "tracking=none")
    assert 0 <= tested.metrics["test/f1-score"] <= 1


def test_ptq__one_part(exported: Path, run_debug: RunDebug) -> None:
    result = run_debug(exported, "stage=ptq", "ptq.parts=[decoder]", "ptq=safe", "tracking=none")
    model = find_exported(result.folder)
    source = find_exported(exported / ".latest" / "export")
    assert {file.name for file in model.files} == FILES
    for part in ("image_encoder", "prompter", "classifier"):
        assert model.parts[part].read_bytes() == source.parts[part].read_bytes()
    assert read_metadata(model).precision == "FP32+INT8-weights"


def test_ptq__keeps_accuracy_within_max_drop(exported: Path, run_debug: RunDebug) -> None:
    result = run_debug(exported, "stage=ptq", "ptq=safe", "ptq.max_drop=0.0", "tracking=none")
    quantization = read_record(result)["quantization"]
    lost = result.metrics["fp32/val/f1-score"] - result.metrics["int8/val/f1-score"]
    assert lost <= 0
    assert quantization["trials"][0]["methods"] == {"image_encoder": "weights", "decoder": "weights"}
    prompter = {"prompter": "weights"}  # moves no f1-score
    last = [trial for trial in quantization["trials"] if trial["methods"] | prompter == quantization["methods"]]
    assert "INT8-weights" in find_exported(result.folder).parts["prompter"].read_text()
    assert last[0]["f1-score"] == result.metrics["int8/val/f1-score"]
    assert json.loads((Path(result.folder) / "metrics.json").read_text())["details"]["quantization"]["trials"]


def test_ptq__not_twice(exported: Path, quantized: StageResult, run_debug: RunDebug) -> None:
    with pytest.raises(CheckpointError, match=r"optimized_model_decoder.xml is already quantized"):
        run_debug(exported, "stage=ptq", f"checkpoint='{quantized.folder}'", "tracking=none")


def test_ptq__nothing_exported_yet(tmp_path: Path, run_debug: RunDebug) -> None:
    with pytest.raises(CheckpointError, match=r"run stage=export first"):
        run_debug(tmp_path, "stage=ptq", "tracking=none")


def test_ptq__a_ckpt(exported: Path, run_debug: RunDebug) -> None:
    checkpoint = next((exported / ".latest" / "train" / "checkpoints").glob("*.ckpt"))
    with pytest.raises(CheckpointError, match=r"not exported yet"):
        run_debug(exported, "stage=ptq", f"checkpoint='{checkpoint}'", "tracking=none")


def test_ptq__no_checkpoint(exported: Path, run_debug: RunDebug) -> None:
    with pytest.raises(ConfigError, match=r"stage=ptq needs what stage=export wrote"):
        run_debug(exported, "stage=ptq", "checkpoint=null", "model=sam_debug", "tracking=none")


def test_ptq__onnx(exported: Path, run_debug: RunDebug, debug_onnx) -> None:
    with pytest.raises(CheckpointError, match=r"export.format=openvino first"):
        run_debug(exported, "stage=ptq", f"checkpoint='{debug_onnx.decoder}'", "data=synthetic", "tracking=none")


def test_ptq__parts_of_different_exports(exported: Path, run_debug: RunDebug, debug_ir, tmp_path: Path) -> None:
    source = find_exported(exported / ".latest" / "export")
    for file in (source.encoder, debug_ir.decoder):
        for suffix in (".xml", ".bin"):
            shutil.copy(file.with_suffix(suffix), tmp_path)
    with pytest.raises(CheckpointError, match=r"come from different exports"):
        run_debug(exported, "stage=ptq", f"checkpoint='{tmp_path}'", "data=synthetic", "tracking=none")


def test_ptq__error_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vpexp", "stage=ptq", f"paths.output_dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "run stage=export first" in done.stderr


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ("ptq.parts=[]", "nothing to quantize"),
        ("ptq.parts=[decodr]", "no part 'decodr'.*did you mean 'decoder'"),
        ("ptq.max_drop=-1", "must be at least 0"),
        ("ptq.bias_correction=slow", "must be one of fast, full, none"),
        ("ptq.activation_range=max", "must be one of minmax, mean"),
    ],
)
def test_ptq__values_that_make_no_sense(tmp_path: Path, run_debug: RunDebug, asked: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        run_debug(tmp_path, "stage=ptq", asked, "tracking=none")
