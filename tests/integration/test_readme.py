"""The examples of clients in the documentation, run as they stand."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import RunDebug
from tests.references.exports import draw_vineyard, export, learn_instances
from tests.references.servers import BIN, choose_port, start_mlflow
from vpexp.data.masks import decode_rle
from vpexp.inference.instances import find_instances
from vpexp.inference.load import load_model, load_predictor

DEPLOYMENT = Path(__file__).parents[2] / "docs" / "deployment.md"
BOXES_N4 = np.array([[30, 40, 120, 160], [200, 80, 250, 130]], np.float32)  # those of the examples


def find_example(first_word: str, language: str = "python") -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", DEPLOYMENT.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if first_word in block]
    return block


@pytest.fixture(scope="module")
def photo_HW3(tmp_path_factory):
    """A photo that is neither square nor of the model's size."""
    (drawn,) = draw_vineyard(tmp_path_factory.mktemp("images"), image_size=400, count=1)
    return drawn.image_HW3[:300]


def test_onnxruntime_example__gives_the_masks_of_the_torch_model(tmp_path, monkeypatch, photo_HW3):
    pytest.importorskip("onnxruntime")
    sam = load_model("sam_micro")
    folder = tmp_path / "outputs" / ".latest" / "export"
    folder.mkdir(parents=True)
    export(sam, "sam_micro", folder, "onnx")
    Image.fromarray(photo_HW3).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    names: dict = {}

    exec(find_example("import onnxruntime").replace("photo.jpg", "photo.png"), names)  # jpg would change its pixels

    predictor = load_predictor(sam)
    expected = predictor.decode(predictor.embed(photo_HW3), boxes=BOXES_N4)
    assert names["inside"].shape == expected.masks.shape
    assert expected.masks.any(axis=(1, 2)).all()
    assert np.count_nonzero(names["inside"] != expected.masks) == 0
    np.testing.assert_allclose(names["scores"][:, 0], expected.iou, atol=1e-4)


@pytest.mark.slow
def test_onnxruntime_example__finds_and_names_what_the_predictor_does(tmp_path, monkeypatch, photo_HW3):
    sam = load_model("sam_micro")
    folder = tmp_path / "outputs" / ".latest" / "export"
    folder.mkdir(parents=True)
    export(sam, "sam_micro", folder, "onnx", instances=learn_instances(sam, tmp_path / "learnt"))
    Image.fromarray(photo_HW3).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    names: dict = {}

    exec(find_example("import onnxruntime").replace("photo.jpg", "photo.png"), names)
    exec(find_example("prompter.onnx"), names)

    predictor = load_predictor(folder)
    _, found = find_instances(predictor, photo_HW3)
    assert len(found.masks) > 3
    expected = np.array([decode_rle(mask.rle) for mask in found.masks], np.bool_)
    assert np.count_nonzero(names["masks"] != expected) < 1e-6 * expected.size
    np.testing.assert_allclose(names["ratings"], [mask.score for mask in found.masks], atol=1e-5)
    assert names["labels"] == [mask.label for mask in found.masks]


def test_model_api_example__gives_the_masks_of_the_torch_model(tmp_path, photo_HW3):
    pytest.importorskip("model_api")
    sam = load_model("sam_micro")
    export(sam, "sam_micro", tmp_path, "openvino")
    names = {"folder": str(tmp_path), "image": photo_HW3, "boxes": BOXES_N4}

    exec(find_example("model_api"), names)

    predictor = load_predictor(sam)
    expected = predictor.decode(predictor.embed(photo_HW3), boxes=BOXES_N4)
    masks = np.concatenate(names["result"].hard_predictions)
    overlap = (masks & expected.masks).sum(axis=(1, 2)) / (masks | expected.masks).sum(axis=(1, 2))
    assert overlap.min() >= 0.995


@pytest.mark.slow
def test_mlflow_example__gives_the_masks_of_the_exported_model(tmp_path, monkeypatch, photo_HW3, run_debug: RunDebug):
    run_debug(tmp_path / "outputs", "stage.test=false")
    Image.fromarray(photo_HW3).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(DEPLOYMENT.parents[1]))
    export_line, store_line, serve_line = find_example("mlflow models serve", "bash").splitlines()
    asking = find_example("curl", "bash")
    subprocess.run(shlex.split(export_line), check=True, capture_output=True, timeout=300)
    assert store_line == "export MLFLOW_TRACKING_URI=sqlite:///outputs/mlflow.db"
    command, _, port_option = serve_line.rpartition(" --port ")
    port = choose_port()

    store = f"sqlite:///{tmp_path}/outputs/mlflow.db"  # the server is started in another folder
    with start_mlflow(shlex.split(command)[1:], store, port, "/ping"):
        subprocess.run(["bash", "-c", asking.replace(f":{port_option}/", f":{port}/")], check=True, timeout=120)
    names: dict = {}
    exec(find_example("coco_mask"), names)

    predictor = load_predictor("outputs/.latest/export")
    expected = predictor.decode(predictor.embed(np.asarray(Image.open("photo.jpg"))), boxes=BOXES_N4)
    np.testing.assert_array_equal(np.stack(names["inside"]), expected.masks)
    np.testing.assert_allclose(names["answer"]["iou"], expected.iou, atol=1e-6)
