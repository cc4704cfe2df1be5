"""``stage=export`` as a user runs it, and ``stage=test`` of what it wrote: the numbers of the trained model, without it."""

import json
import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import RunDebug
from tests.references.exports import take_images
from vpexp.cli import main
from vpexp.config import compose_config, load_config
from vpexp.config.schema import DataConfig
from vpexp.data.dataset import load_dataset
from vpexp.deploy import onnx_format, openvino_format
from vpexp.deploy.graph import ExportableDecoder
from vpexp.engine import Engine
from vpexp.errors import CheckpointError, ExportError
from vpexp.inference.exported import find_exported, read_metadata
from vpexp.inference.load import load_model, load_predictor
from vpexp.inference.torch_model import read_checkpoint
from vpexp.inference.torch_predictor import TorchPredictor
from vpexp.models.weights import compute_state_hash
from vpexp.run import run
from vpexp.stages.shared.context import StageResult

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
NUCLEI = DATA / "nuclei" / "coco"
PARTS = ("image_encoder", "decoder", "prompter", "classifier")
IR_FILES = {f"exported_model_{part}.{suffix}" for part in PARTS for suffix in ("xml", "bin")}
ONNX_FILES = {f"exported_model_{part}.onnx" for part in PARTS}
VINEYARD = ("data=synthetic", "data.synthetic.scene=vineyard", "data.synthetic.image_size=256", "data.synthetic.test=2")
FEW = ("data.synthetic.train=1", "data.synthetic.val=1", "data.num_workers=0")
PLAIN = ("stage.controls=false", "stage.overlays=0")
TIMES = ("load_time", "encoder_time", "decoder_time", "iter_time")
QUIET = "tracking=none"


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def trained(output_dir: Path, run_debug: RunDebug) -> StageResult:
    return run_debug(output_dir, QUIET, "prompt=point", "seed=3")


@pytest.fixture(scope="module")
def exported(output_dir: Path, trained: StageResult, run_debug: RunDebug) -> StageResult:
    return run_debug(output_dir, "stage=export", QUIET)


@pytest.fixture(scope="module")
def exported_onnx(trained: StageResult, tmp_path_factory: pytest.TempPathFactory, run_debug: RunDebug) -> StageResult:
    return run_debug(
        tmp_path_factory.mktemp("onnx"), "stage=export", f"checkpoint='{trained.folder}'", "export.format=onnx", QUIET
    )


@pytest.fixture(scope="module")
def tested(output_dir: Path, trained: StageResult, run_debug: RunDebug) -> StageResult:
    """The torch model's numbers."""
    return run_debug(output_dir, "stage=test", QUIET)


def read_record(result: StageResult) -> dict:
    assert result.folder is not None
    return json.loads((result.folder / "run.json").read_text())


def list_model_files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*exported_model*")}


# ---------------------------------------------------------------- what an export leaves behind


def test_export__openvino_of_what_was_trained_last(
    output_dir: Path, trained: StageResult, exported: StageResult
) -> None:
    folder = exported.folder
    assert folder is not None
    assert list_model_files(folder) == IR_FILES
    assert not list(folder.glob(".draft*"))
    assert exported.artifacts == {part: folder / f"exported_model_{part}.xml" for part in PARTS}
    assert (output_dir / ".latest/export").resolve() == folder
    cfg = load_config(folder / "config.yaml")
    assert (cfg.stage.name, cfg.model.name, cfg.prompt.type, cfg.seed) == ("export", "sam_debug", "point", 3)
    assert cfg.checkpoint == str(trained.artifacts["best_checkpoint"])
    model = find_exported(folder)
    metadata = read_metadata(model)
    assert (metadata.model_name, metadata.image_size, metadata.precision) == ("sam_debug", 64, "FP32")
    assert metadata.labels == read_checkpoint(trained.artifacts["best_checkpoint"]).categories != ()
    instances = read_checkpoint(trained.artifacts["best_checkpoint"]).instances
    assert metadata.instances is not None
    assert metadata.instances.labels == instances.labels == metadata.labels
    assert (metadata.instances.threshold, metadata.instances.max_overlap) == (
        instances.threshold,
        instances.max_overlap,
    )
    assert exported.metrics["export/size_mb"] == model.size_mb
    assert exported.metrics["export/flipped_per_10000"] <= 1
    assert exported.metrics["export/prompter_boxes_px"] <= 0.5
    assert exported.metrics["export/prompter_scores"] <= 1e-3
    assert "as the trained model does: sides lie at most" in (folder / "vpexp.log").read_text()
    assert read_record(exported)["status"] == "FINISHED"


def test_export__onnx(exported_onnx: StageResult, exported: StageResult) -> None:
    assert exported_onnx.folder is not None
    assert exported.folder is not None
    assert list_model_files(exported_onnx.folder) == ONNX_FILES
    assert read_metadata(find_exported(exported_onnx.folder)) == read_metadata(find_exported(exported.folder))


def test_export__half_precision(output_dir: Path, trained: StageResult, tmp_path: Path, run_debug: RunDebug) -> None:
    result = run_debug(tmp_path, "stage=export", f"checkpoint='{trained.folder}'", "export=fp16", QUIET)
    assert result.folder is not None
    assert read_metadata(find_exported(result.folder)).precision == "FP16+FP32"


def test_export__without_a_prompter(tmp_path: Path, run_debug: RunDebug) -> None:
    trained = run_debug(tmp_path, "prompter=none", "stage.test=false", QUIET)
    exported = run_debug(tmp_path, "stage=export", QUIET)
    assert exported.folder is not None
    assert list(find_exported(exported.folder).parts) == ["image_encoder", "decoder"]
    assert not any("prompter" in name for name in (*exported.metrics, *list_model_files(exported.folder)))
    metadata = read_metadata(find_exported(exported.folder))
    assert metadata.instances is None
    sam = load_predictor(trained.artifacts["best_checkpoint"]).sam
    assert metadata.source_hash == compute_state_hash(sam)


def test_export__official_layout(trained: StageResult, tmp_path: Path, run_debug: RunDebug) -> None:
    result = run_debug(tmp_path, "stage=export", f"checkpoint='{trained.folder}'", "export.format=sam", QUIET)
    assert result.folder is not None
    assert list_model_files(result.folder) == {"exported_model.pth"}
    assert "left out: what finds objects without prompts" in (result.folder / "vpexp.log").read_text()
    assert result.artifacts == {"weights": result.folder / "exported_model.pth"}
    expected = load_predictor(trained.artifacts["best_checkpoint"]).sam
    assert compute_state_hash(load_model("sam_debug", result.artifacts["weights"])) == compute_state_hash(expected)


def test_export__model_as_it_came(tmp_path: Path, run_debug: RunDebug) -> None:
    result = run_debug(tmp_path, "stage=export", "checkpoint=null", "model=sam_debug", *VINEYARD, *FEW, "seed=5", QUIET)
    assert result.folder is not None
    assert read_metadata(find_exported(result.folder)).labels == ()


def test_export__engine(trained: StageResult, output_dir: Path, cache_dir: Path, tmp_path: Path) -> None:
    engine = Engine(
        model="sam_debug",
        work_dir=str(tmp_path),
        overrides={"tracking": "none", "callbacks.progress": None, "paths.cache_dir": str(cache_dir)},
    )
    result = engine.export(checkpoint=trained)
    tested = engine.test(checkpoint=result)
    assert result.folder is not None
    assert list_model_files(result.folder) == IR_FILES
    assert tested.metrics["test/f1-score"] > 0


def test_export__of_an_exported_model_is_refused(exported: StageResult, tmp_path: Path, run_debug: RunDebug) -> None:
    with pytest.raises(CheckpointError, match=r"is an exported model: stage=export takes a \.ckpt"):
        run_debug(tmp_path, "stage=export", f"checkpoint='{exported.folder}'", QUIET)


# ---------------------------------------------------------------- an export that answers otherwise


class WrongDecoder(ExportableDecoder):
    """Decodes with a padding token that training never saw: masks of points move, those of boxes do not."""

    def forward(self, *inputs):
        embeddings, coords, labels, *others = inputs
        return super().forward(embeddings, coords + 6 * (labels == 1)[..., None], labels, *others)


def test_export__that_answers_otherwise_leaves_nothing_behind(
    trained: StageResult, tmp_path: Path, run_debug: RunDebug, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_format, "ExportableDecoder", WrongDecoder)
    with pytest.raises(ExportError, match="differs from the trained one, so it was not written"):
        run_debug(tmp_path, "stage=export", f"checkpoint='{trained.folder}'", "export.format=onnx", QUIET)
    assert list_model_files(tmp_path) == set()
    assert not list(tmp_path.rglob(".draft"))
    (record,) = tmp_path.glob("export/*/run.json")
    assert json.loads(record.read_text())["status"] == "FAILED"
    assert "differs from the trained one" in json.loads(record.read_text())["error"]
    assert not (tmp_path / ".latest/export").exists()


def test_export__that_answers_otherwise_ends_with_code_2(
    trained: StageResult,
    tmp_path: Path,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(openvino_format, "ExportableDecoder", WrongDecoder)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            *("vpexp", "stage=export", f"checkpoint='{trained.folder}'", QUIET, "callbacks.progress=null"),
            *(f"paths.output_dir='{tmp_path}'", f"paths.cache_dir='{cache_dir}'"),
        ],
    )
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    streams = capsys.readouterr()
    assert "differs from the trained one" in re.sub(r"\s+", " ", streams.err + streams.out)
    assert "Traceback" not in streams.err
    assert list_model_files(tmp_path) == set()


# ---------------------------------------------------------------- stage=test of what was exported


def assert_tested_alike(result: StageResult, reference: StageResult) -> None:
    for name, value in reference.metrics.items():
        if name.count("/") == 1 and math.isfinite(value) and not name.endswith(("time", "size_mb")):
            tolerance = 5e-3 if "ma" in name.split("/")[-1] else 2e-3  # random weights: many logits are about zero
            assert result.metrics[name] == pytest.approx(value, abs=tolerance), name
    for name in TIMES:
        assert 0 < result.metrics[f"test/{name}"] < 100
    written = json.loads((result.folder / "metrics.json").read_text())["metrics"]
    assert written.keys() == result.metrics.keys()
    assert written["test/size_mb"] == result.metrics["test/size_mb"]


@pytest.mark.parametrize(
    ("which", "file"),
    [
        ("exported", ""),
        ("exported", "exported_model_decoder.xml"),
        ("exported", "exported_model_image_encoder.xml"),
        ("exported_onnx", ""),
        ("exported_onnx", "exported_model_image_encoder.onnx"),
    ],
)
def test_test__by_folder_and_by_either_file(
    *,
    which: str,
    file: str,
    tested: StageResult,
    tmp_path: Path,
    run_debug: RunDebug,
    request: pytest.FixtureRequest,
) -> None:
    folder = request.getfixturevalue(which).folder
    result = run_debug(tmp_path, "stage=test", f"checkpoint='{folder / file}'", *PLAIN, QUIET)
    assert result.folder is not None
    assert_tested_alike(result, tested)
    cfg = load_config(result.folder / "config.yaml")
    assert cfg.checkpoint == str(find_exported(folder).decoder)
    assert (cfg.model.name, cfg.model.image_size, cfg.prompt.type, cfg.seed) == ("sam_debug", 64, "point", 3)
    assert result.metrics["test/size_mb"] == find_exported(folder).size_mb


def test_test__of_torch_says_times_and_size(tested: StageResult) -> None:
    for name in TIMES:
        assert 0 < tested.metrics[f"test/{name}"] < 100
    parameters = sum(parameter.numel() for parameter in load_model("sam_debug").parameters())
    assert tested.metrics["test/size_mb"] == pytest.approx(4 * parameters / 1e6)


def test_test__controls_of_an_exported_model(exported: StageResult, tmp_path: Path, run_debug: RunDebug) -> None:
    result = run_debug(tmp_path, "stage=test", f"checkpoint='{exported.folder}'", QUIET)
    assert {"test/box_filled/f1-score", "test/wrong_image/f1-score"} <= result.metrics.keys()
    assert result.folder is not None
    assert list((result.folder / "overlays").glob("test_*.png"))


def test_test__files_alone_need_no_weights_and_no_configuration(
    exported: StageResult, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the four files, on a machine that has nothing else: no run, no config.yaml, no cache."""
    alone, home = tmp_path / "alone", tmp_path / "home"
    alone.mkdir()
    home.mkdir()
    assert exported.folder is not None
    for name in IR_FILES:
        shutil.copy(exported.folder / name, alone)
    data = next(cache_dir.glob("synthetic/*/annotations")).parent
    monkeypatch.setenv("VPEXP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    for name in ("torch_predictor.TorchPredictor", "torch_model.read_checkpoint", "torch_model.load_sam"):
        monkeypatch.setattr(f"vpexp.inference.{name}", None)  # calling one of them would fail
    overrides = [
        *("stage=test", f"checkpoint='{alone}/exported_model_decoder.xml'", "data=coco", f"data.root='{data}'"),
        *("data.num_workers=0", "callbacks.progress=null", "paths.output_dir=outputs", *PLAIN, QUIET),
    ]
    result = run(compose_config(overrides), overrides)
    assert result.folder is not None
    assert result.metrics["test/f1-score"] > 0
    assert load_config(result.folder / "config.yaml").model.name == "sam_debug"
    assert not list((tmp_path / "cache").rglob("*"))
    assert not list(home.rglob("*"))


def test_test__parts_of_different_exports_are_refused(
    exported: StageResult, tmp_path: Path, debug_ir, run_debug: RunDebug
) -> None:
    assert exported.folder is not None
    for file in debug_ir.files:
        shutil.copy(file, tmp_path)
    shutil.copy(exported.folder / "exported_model_decoder.xml", tmp_path)
    with pytest.raises(CheckpointError, match="come from different exports"):
        run_debug(tmp_path / "outputs", "stage=test", f"checkpoint='{tmp_path}'", QUIET)


# ---------------------------------------------------------------- a trained model: nothing may move


@pytest.mark.parametrize("prompt", ["box", "point"])
def test_parity__trained_model_in_all_formats(
    prompt: str, tmp_path: Path, micro_ir, micro_onnx, run_debug: RunDebug
) -> None:
    sources = {"torch": ("checkpoint=null", "model=sam_micro")}
    sources |= {
        model.format: (f"checkpoint='{model.decoder}'", "model=openvino_model") for model in (micro_ir, micro_onnx)
    }
    results = {
        name: run_debug(
            tmp_path / name, "stage=test", *source, *VINEYARD, *FEW, *PLAIN, f"prompt={prompt}", QUIET
        ).metrics
        for name, source in sources.items()
    }
    assert results["torch"]["test/f1-score"] > {"box": 0.8, "point": 0.5}[prompt]
    for name in ("openvino", "onnx"):
        for metric, tolerance in (
            ("f1-score", 5e-4),
            ("iou", 5e-4),
            ("mean_iou", 5e-4),
            ("map", 1e-3),
            ("map_75", 1e-2),
        ):
            assert results[name][f"test/{metric}"] == pytest.approx(results["torch"][f"test/{metric}"], abs=tolerance)


def count_flipped(reference, other, images) -> tuple[int, int]:
    flipped = inside = 0
    for drawn in images:
        expected_embedding, embedding = reference.embed(drawn.image_HW3), other.embed(drawn.image_HW3)
        for prompts in (drawn.boxes, drawn.points):
            expected = reference.decode_prompts(expected_embedding, prompts).masks
            got = other.decode_prompts(embedding, prompts).masks
            flipped += np.count_nonzero(expected != got)
            inside += np.count_nonzero(expected)
    return flipped, inside


@pytest.mark.skipif(not NUCLEI.is_dir(), reason=f"no test data in {DATA}")
@pytest.mark.parametrize("which", ["micro_ir", "micro_onnx"])
def test_parity__photos_that_are_not_square(which: str, micro_sam, request: pytest.FixtureRequest) -> None:
    images = load_dataset(DataConfig(format="coco", root=NUCLEI), splits=("val",)).splits["val"].images
    oblong = [image for image in images if image.height != image.width and len(image) <= 60][:3]
    assert oblong
    flipped, inside = count_flipped(
        TorchPredictor(micro_sam), load_predictor(request.getfixturevalue(which), threads=1), take_images(oblong)
    )
    assert inside > 5_000
    assert round(1e4 * flipped / inside) == 0
