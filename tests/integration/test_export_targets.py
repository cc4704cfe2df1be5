"""``stage=export export.target=…``: what other tools are given, from a run, and what is refused."""

import json
import sys

import onnxruntime
import pytest
import torch

from vpexp.cli import main
from vpexp.config import compose_config
from vpexp.config.validate import validate
from vpexp.deploy.onnx_format import write_graph
from vpexp.deploy.targets import write
from vpexp.deploy.targets.graphs import SquareEncoder
from vpexp.errors import ConfigError, ExportError

QUIET = "tracking=none"
FILES = {
    "official": {"encoder.onnx", "decoder.onnx", "README.txt"},
    "model_api": {"encoder.xml", "encoder.bin", "decoder.xml", "decoder.bin", "README.txt"},
    "cvat": {
        *("decoder.onnx", "README.txt"),
        *(f"nuclio/{name}" for name in ("function.yaml", "main.py", "model_handler.py", "encoder.onnx")),
    },
    "x_anylabeling": {"encoder.onnx", "decoder.onnx", "segment_anything.yaml", "README.txt"},
    "label_studio": {
        *("encoder.onnx", "decoder.onnx", "README.txt", "model.py", "model_handler.py", "_wsgi.py"),
        *("requirements.txt", "labeling.xml"),
    },
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run_debug):
    return run_debug(tmp_path_factory.mktemp("outputs"), QUIET)


@pytest.mark.parametrize("target", list(FILES))
def test_export_target__of_a_run(trained, tmp_path, run_debug, capsys, target):
    result = run_debug(tmp_path, "stage=export", f"checkpoint='{trained.folder}'", f"export.target={target}", QUIET)
    folder = result.folder / target
    assert {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} == FILES[target]
    assert {file.parent for file in result.artifacts.values()} <= {folder, folder / "nuclio"}
    assert not list(result.folder.glob(".draft*"))
    assert result.metrics["export/flipped_per_10000"] <= 1
    assert result.metrics["export/size_mb"] > 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{target}, " in said
    assert str(folder) in said
    assert "next: " in said
    assert json.loads((result.folder / "run.json").read_text())["status"] == "FINISHED"
    if target != "model_api":
        described = onnxruntime.InferenceSession(str(result.artifacts["decoder"])).get_modelmeta().custom_metadata_map
        assert described["model_info model_name"] == "sam_debug"


class WrongDecoder(torch.nn.Module):
    """Decodes points beside those that came."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, embeddings, coords, *others):
        return self.decoder(embeddings, coords + 6, *others)

    def build_example(self):
        return self.decoder.build_example()


def test_export_target__that_answers_otherwise_leaves_nothing_behind(trained, tmp_path, run_debug, monkeypatch):
    def write_wrong(module, *others, **options):
        write_graph(module if isinstance(module, SquareEncoder) else WrongDecoder(module), *others, **options)

    monkeypatch.setattr(write, "write_graph", write_wrong)
    with pytest.raises(ExportError, match="the official form of the model differs from the trained one"):
        run_debug(tmp_path, "stage=export", f"checkpoint='{trained.folder}'", "export.target=official", QUIET)
    assert not list(tmp_path.rglob("*.onnx"))
    assert not list(tmp_path.rglob(".draft"))


def test_export_target__unknown_ends_with_code_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vpexp", "stage=export", "export.target=cvta"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "export.target=cvta" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("stage=pipeline",), "export.target=cvat: a pipeline tests and quantizes vpexp's own export"),
        (("stage=export", "export.format=sam"), "export.target=cvat: export.format=sam is weights alone"),
        (("stage=export", "tracking.register=grapes"), "MLflow serves export.target=vpexp alone"),
    ],
)
def test_export_target__refused_where_it_makes_no_sense(asked, message):
    with pytest.raises(ConfigError, match=message):
        validate(compose_config(["export.target=cvat", *asked]))
