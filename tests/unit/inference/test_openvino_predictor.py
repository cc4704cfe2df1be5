"""The OpenVINO form: what it refuses, and in what precision it runs."""

import shutil

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops

from tests.references.exports import LABELS
from vpexp.deploy.graph import ExportInfo, build_model_info
from vpexp.deploy.openvino_format import save_graph
from vpexp.errors import CheckpointError
from vpexp.inference.exported import find_exported, read_metadata
from vpexp.inference.graph_predictor import OpenvinoPredictor


@pytest.fixture
def ir(debug_ir, tmp_path):
    for file in debug_ir.files:
        shutil.copy(file, tmp_path)
    return find_exported(tmp_path)


def test_openvino_predictor__opens(debug_ir):
    predictor = OpenvinoPredictor(debug_ir, threads=1)
    assert predictor.metadata == read_metadata(debug_ir)
    assert predictor.metadata.labels == LABELS


def test_openvino_predictor__takes_the_threads_that_a_launcher_left_it(debug_ir, monkeypatch):
    asked = []
    compile_model = openvino.Core.compile_model

    def keep(core, model, device, settings):
        asked.append(settings["INFERENCE_NUM_THREADS"])
        return compile_model(core, model, device, settings)

    monkeypatch.setattr(openvino.Core, "compile_model", keep)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    OpenvinoPredictor(debug_ir)
    OpenvinoPredictor(debug_ir, threads=1)
    assert asked == [3, 3, 1, 1]


def test_openvino_predictor__runs_in_float32_on_the_threads_asked_for(debug_ir, monkeypatch):
    compiled = []
    compile_model = openvino.Core.compile_model

    def keep(*args):
        compiled.append(compile_model(*args))
        return compiled[-1]

    monkeypatch.setattr(openvino.Core, "compile_model", keep)
    OpenvinoPredictor(debug_ir, threads=1)
    assert len(compiled) == 2
    for model in compiled:
        assert model.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
        assert model.get_property("INFERENCE_NUM_THREADS") == 1
        precisions = {
            node.get_rt_info()["runtimePrecision"].astype(str) for node in model.get_runtime_model().get_ops()
        }
        assert not {"bf16", "f16"} & precisions
    assert compiled[0].inputs[0].get_shape() == openvino.Shape([1, 3, 64, 64])


@pytest.mark.parametrize("size", [0, 1000])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_openvino_predictor__weights_cut_off(ir, part, size):
    weights = getattr(ir, part).with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=rf"{part}\.xml cannot be read by OpenVINO: damaged") as error:
        OpenvinoPredictor(ir)
    assert "\n" not in str(error.value)


def test_openvino_predictor__unknown_device(debug_ir):
    with pytest.raises(CheckpointError, match=r"on device=cuda; devices here: cpu") as error:
        OpenvinoPredictor(debug_ir, device="CUDA")
    assert "\n" not in str(error.value)


def test_openvino_predictor__other_ports(ir):
    """A graph that says it is vpexp's, but whose ports have other names."""
    images = ops.parameter([1, 3, 64, 64], np.float32, name="pixels")
    info = ExportInfo("sam_debug", 64, LABELS, read_metadata(ir).source_hash, "auto")
    for file in (ir.encoder, ir.encoder.with_suffix(".bin")):
        file.unlink()
    graph = openvino.Model([ops.relu(images)], [images])
    graph.inputs[0].get_tensor().set_names({"pixels"})
    save_graph(graph, ir.encoder, build_model_info(info, "image_encoder", "FP32"))
    with pytest.raises(CheckpointError, match="has no port images: it was not written by stage=export"):
        OpenvinoPredictor(ir)
