"""One way in: a name, a file, a run folder, the last run, or a module."""

import numpy as np
import pytest
import torch

from vpexp.errors import CheckpointError
from vpexp.inference.graph_predictor import OnnxPredictor, OpenvinoPredictor
from vpexp.inference.load import load_model, load_predictor
from vpexp.inference.torch_predictor import TorchPredictor
from vpexp.models.registry import build_sam_debug
from vpexp.models.weights import compute_state_hash
from vpexp.runfolder import create_run_folder, mark_latest


def test_load_predictor__a_models_name():
    predictor = load_predictor("sam_debug")
    assert isinstance(predictor, TorchPredictor)
    assert compute_state_hash(predictor.sam) == compute_state_hash(load_model("sam_debug"))


def test_load_predictor__a_module_is_taken_as_it_is():
    sam = build_sam_debug(64).train()
    predictor = load_predictor(sam)
    assert predictor.sam is sam
    assert not sam.training


def test_load_predictor__checkpoint_run_folder_and_latest(tmp_path, write_checkpoint):
    folder = create_run_folder(tmp_path / "outputs", "train")
    folder.checkpoints.mkdir()
    path, sam = write_checkpoint(folder.checkpoints / "epoch_000.ckpt")
    mark_latest(tmp_path / "outputs", "train", folder)
    for source in (path, str(path), folder.path, "latest"):
        predictor = load_predictor(source, output_dir=tmp_path / "outputs")
        assert compute_state_hash(predictor.sam) == compute_state_hash(sam)
        assert not predictor.sam.training


def test_load_predictor__predicts(write_checkpoint):
    path, _ = write_checkpoint()
    predictor = load_predictor(path, device="cpu")
    embedding = predictor.embed(np.zeros((30, 40, 3), np.uint8))
    result = predictor.decode(embedding, boxes=np.array([[2, 3, 20, 25]]))
    assert result.masks.shape == (1, 30, 40)
    assert predictor.device == torch.device("cpu")


def test_load_predictor__nothing_there_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="nothing was trained yet"):
        load_predictor("latest", output_dir=tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_predictor(tmp_path / "a.ckpt")


@pytest.mark.parametrize(("which", "kind"), [("debug_ir", OpenvinoPredictor), ("debug_onnx", OnnxPredictor)])
def test_load_predictor__exported_folder_or_file(which, kind, request, tmp_path, monkeypatch):
    model = request.getfixturevalue(which)
    (tmp_path / "model").symlink_to(model.folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in (str(model.encoder), f"~/model/{model.decoder.name}", model.folder):
        predictor = load_predictor(source, threads=1)
        assert type(predictor) is kind
        assert predictor.model == model


def test_load_predictor__exported_on_another_device(debug_ir, debug_onnx):
    with pytest.raises(CheckpointError, match="device=cuda"):
        load_predictor(debug_ir.folder, device="cuda")
    with pytest.raises(CheckpointError, match="an ONNX model runs on the CPU"):
        load_predictor(debug_onnx.folder, device="cuda")


def test_load_predictor__exported_file_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_predictor(tmp_path / "exported_model_decoder.xml")
