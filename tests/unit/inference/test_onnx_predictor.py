"""The ONNX form: what it refuses."""

import shutil
import sys

import onnx
import pytest

from tests.references.exports import LABELS
from vpexp.errors import CheckpointError
from vpexp.inference.exported import find_exported, read_metadata, read_onnx_properties
from vpexp.inference.graph_predictor import OnnxPredictor


@pytest.fixture
def model(debug_onnx, tmp_path):
    for file in debug_onnx.files:
        shutil.copy(file, tmp_path)
    return find_exported(tmp_path)


def test_onnx_predictor__opens(debug_onnx):
    predictor = OnnxPredictor(debug_onnx, threads=1)
    assert predictor.metadata == read_metadata(debug_onnx)
    assert read_onnx_properties(debug_onnx.encoder)["model_info model_type"] == "sam_image_encoder"


def test_onnx_predictor__parts_swapped(model, tmp_path):
    aside = tmp_path / "aside"
    model.encoder.rename(aside)
    model.decoder.rename(model.encoder)
    aside.rename(model.decoder)
    with pytest.raises(CheckpointError, match="is no image encoder of vpexp: its model_type is sam_decoder"):
        OnnxPredictor(model)


def test_onnx_predictor__foreign_and_damaged(model):
    graph = onnx.load(model.decoder)
    del graph.metadata_props[:]
    onnx.save(graph, model.decoder)
    with pytest.raises(CheckpointError, match="is no decoder of vpexp: its model_type is not given"):
        OnnxPredictor(model)
    model.decoder.write_bytes(b"junk")
    with pytest.raises(CheckpointError, match=r"decoder\.onnx cannot be read by onnxruntime") as error:
        OnnxPredictor(model)
    assert "\n" not in str(error.value)


def test_onnx_predictor__parts_of_different_exports(model):
    graph = onnx.load(model.encoder)
    for entry in graph.metadata_props:
        if entry.key == "model_info source_hash":
            entry.value = "other"
    onnx.save(graph, model.encoder)
    with pytest.raises(CheckpointError, match="come from different exports"):
        OnnxPredictor(model)


def test_onnx_predictor__without_the_package_says_what_to_install(debug_onnx, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(CheckpointError, match=r"needs onnxruntime: pip install 'vpexp\[onnx\]'"):
        OnnxPredictor(debug_onnx)


def test_onnx_predictor__labels(debug_onnx):
    assert OnnxPredictor(debug_onnx).metadata.labels == LABELS
