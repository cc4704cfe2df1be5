"""``stage=data`` on drawn images, and on a data set with a leak, a copy, damaged files and objects without masks."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from tests.conftest import RunDebug
from vpexp.cli import main
from vpexp.config.schema import SyntheticConfig
from vpexp.errors import DataError
from vpexp.stages.shared.context import StageResult
from vpexp.synthetic.dataset import write_synthetic_dataset

DRAWN = {"scene": "shapes", "image_size": 64, "train": 12, "val": 10, "test": 10, "seed": 0}


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn images, of which one in val is a train image saved again, one is cut off, one is gone, two have boxes only."""
    root = write_synthetic_dataset(tmp_path_factory.mktemp("messy"), SyntheticConfig(**DRAWN))
    images = root / "images"
    with Image.open(images / "train_0000.jpg") as image:
        image.save(images / "val_0000.jpg", quality=60)
    shutil.copy(images / "train_0001.jpg", images / "train_0002.jpg")
    cut = images / "train_0003.jpg"
    cut.write_bytes(cut.read_bytes()[:-500])
    (images / "train_0004.jpg").unlink()
    file = next((root / "annotations").glob("*train*.json"))
    content = json.loads(file.read_text())
    of_fifth = [entry for entry in content["annotations"] if entry["image_id"] == content["images"][5]["id"]]
    for entry in of_fifth:
        entry["segmentation"] = []
    file.write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def surveyed(messy: Path, output_dir: Path, run_debug: RunDebug) -> StageResult:
    return run_debug(output_dir, "stage=data", "data=auto", f"data.root='{messy}'", "stage.overlays=5")


def read_data(result: StageResult) -> dict:
    return json.loads(result.artifacts["data"].read_text())


def test_data__numbers_of_a_messy_data_set(surveyed: StageResult) -> None:
    metrics = surveyed.metrics

    assert (metrics["data/leaks"], metrics["data/repeated"], metrics["data/damaged"]) == (1, 1, 1)
    assert (metrics["train/images"], metrics["val/images"], metrics["test/images"]) == (9, 10, 10)
    assert metrics["data/objects"] == metrics["train/objects"] + metrics["val/objects"] + metrics["test/objects"]
    skipped = {reason: entry["count"] for reason, entry in read_data(surveyed)["splits"]["train"]["skipped"].items()}
    assert skipped["image file is missing"] == skipped["image file is truncated or damaged"] == 1
    assert skipped["box only, no mask"] >= 1
    assert metrics["train/left_out"] == sum(skipped.values())


def test_data__findings_name_what_is_wrong(surveyed: StageResult, messy: Path) -> None:
    findings = {finding["text"]: finding for finding in read_data(surveyed)["findings"]}

    leak = findings["the same picture in two splits: 1 of 10 images of val also in train"]
    assert leak["level"] == "error"
    assert leak["examples"] == ["train train_0000.jpg = val val_0000.jpg (same picture, saved again)"]
    damaged = findings["1 image file cannot be read"]
    assert damaged["examples"] == [f"{messy / 'images' / 'train_0003.jpg'} (image file is truncated or damaged)"]
    assert any(text.startswith("the same picture twice in a split: 1 image of train") for text in findings)
    assert any("without masks" in text or "without a mask" in text for text in findings)
    lines = surveyed.artifacts["duplicates"].read_text().splitlines()
    assert lines[1].startswith('"same picture, saved again",yes,train,train_0000.jpg,val,val_0000.jpg,64,64,64,64')
    assert len(lines) == 3


def test_data__files_are_whole_and_the_page_needs_nothing_else(surveyed: StageResult) -> None:
    page = surveyed.artifacts["report"].read_text()
    plots = sorted(path.stem for path in surveyed.artifacts["plots"].iterdir())
    overlays = sorted(path.name for path in surveyed.artifacts["overlays"].iterdir())

    names = ["class_balance", "image_sizes", "object_sizes", "object_sizes_in_model", "objects_per_image"]
    assert plots == names
    assert len(overlays) == 5
    assert {name.partition("_")[0] for name in overlays} == {"train", "val", "test"}
    for path in [*surveyed.artifacts["plots"].iterdir(), *surveyed.artifacts["overlays"].iterdir()]:
        with Image.open(path) as image:
            image.verify()
    assert page.count("data:image/png;base64,") == len(names)
    assert page.count("data:image/jpeg;base64,") == len(overlays)
    assert "http" not in page
    assert "train_0000.jpg = val val_0000.jpg" in page
    assert page.rstrip().endswith("</html>")
    assert not list(surveyed.artifacts["report"].parent.rglob(".*.png*"))


def test_data__is_recorded_in_mlflow(surveyed: StageResult, output_dir: Path) -> None:
    assert surveyed.folder is not None
    client = MlflowClient(f"sqlite:///{output_dir}/mlflow.db")
    run = client.get_run(json.loads((surveyed.folder / "run.json").read_text())["mlflow_run_id"])

    assert run.info.status == "FINISHED"
    assert run.data.tags["stage"] == "data"
    assert run.data.metrics["verbose/data/leaks"] == 1
    assert run.data.metrics["verbose/train/images"] == 9
    assert {"report.html", "data.json", "duplicates.csv", "plots", "overlays"} <= {
        entry.path for entry in client.list_artifacts(run.info.run_id)
    }
    assert [entry.tags[0].value for entry in run.inputs.dataset_inputs] == ["train", "val", "test"]


def test_data__strict_ends_with_an_error_after_the_report(
    messy: Path, tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str], run_debug: RunDebug
) -> None:
    with pytest.raises(DataError, match=r"data\.strict=false"):  # the first defect: a file that is damaged or missing
        run_debug(tmp_path, "stage=data", "data=auto", f"data.root='{messy}'", "data.strict=true", "tracking=none")
    root = write_synthetic_dataset(tmp_path / "drawn", SyntheticConfig(**DRAWN))
    shutil.copy(root / "images" / "train_0000.jpg", root / "images" / "test_0000.jpg")

    with pytest.raises(SystemExit) as end:
        main(
            [
                *("stage=data", "data=auto", f"data.root='{root}'", "data.strict=true", "tracking=none"),
                *(f"paths.output_dir='{tmp_path}'", f"paths.cache_dir='{cache_dir}'", "stage.overlays=0"),
            ]
        )

    assert end.value.code == 2
    printed = capsys.readouterr()
    assert "1 of 10 images of test also in train" in printed.err
    (page,) = tmp_path.glob("data/*/report.html")
    assert "test_0000.jpg" in page.read_text()


def test_data__boxes_alone_get_an_answer(
    messy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], run_debug: RunDebug
) -> None:
    root = shutil.copytree(messy, tmp_path / "boxes")
    for file in (root / "annotations").glob("*.json"):
        content = json.loads(file.read_text())
        for entry in content["annotations"]:
            entry["segmentation"] = []
        file.write_text(json.dumps(content))

    result = run_debug(tmp_path, "stage=data", "data=auto", f"data.root='{root}'", "tracking=none")

    printed = capsys.readouterr().out
    assert result.metrics["data/objects"] == 0
    assert "train: nothing to learn from, no object has a mask" in printed
    assert "prompts=dataset output.format=coco" in printed
    assert "plots" not in result.artifacts
    assert "boxes without masks" in result.artifacts["report"].read_text()


def test_data__a_root_that_is_no_data_set_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run_debug: RunDebug
) -> None:
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "photos" / "cats" / f"{number}.txt").write_text("0 0.5 0.5 0.1 0.1")

    with pytest.raises(DataError, match="no known format"):
        run_debug(tmp_path, "stage=data", "data=auto", f"data.root='{tmp_path}/photos'", "tracking=none")

    assert "3 .txt" in capsys.readouterr().out


def test_data__drawn_images_without_reading_pixels(
    tmp_path: Path, run_debug: RunDebug, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("stage=data", "experiment=debug", "stage.overlays=0", "data.limit_images=2", "tracking=none")

    result = run_debug(tmp_path, *asked, "stage.duplicates=false")

    assert (result.metrics["data/images"], result.metrics["train/images"]) == (6, 2)
    assert "data/leaks" not in result.metrics
    assert "overlays" not in result.artifacts
    assert not (tmp_path / "overlays").exists()
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "in the cache, 6 images of sam_debug take 0.1 MB (0.0 MB each, cache.precision=float16); cache.max_gb=20"
        in said
    )
