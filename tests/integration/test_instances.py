"""``stage=test prompt=auto``: a model that is asked without prompts, as a user asks it."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import DEBUG, RunDebug
from vpexp.config import load_config
from vpexp.errors import CheckpointError, ConfigError
from vpexp.inference.torch_instances import InstanceParts
from vpexp.inference.torch_model import add_instances, read_checkpoint
from vpexp.models.mask_classifier import MaskClassifier
from vpexp.models.prompter import Prompter
from vpexp.runfolder import RunFolder

AUTO = ("stage=test", "prompt=auto", "tracking=none", "predict.points_per_side=3", "predict.grid_min_score=0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, run_debug: RunDebug) -> Path:
    """A checkpoint with a prompter that gives boxes, and a classifier, neither of which has learnt anything."""
    folder = tmp_path_factory.mktemp("trained")
    asked = ("prompter=none", "prompt.multimask=never", "stage.test=false", "stage.overlays=0", "tracking=none")
    path = run_debug(folder, *DEBUG, *asked).artifacts["best_checkpoint"]
    labels = tuple(read_checkpoint(path).categories)
    torch.manual_seed(0)
    prompter = Prompter(width=32, depth=0)
    with torch.no_grad():
        for output in prompter.outputs:
            output.bias.copy_(torch.tensor([0.5, 0.75, 0.75, 0.75, 0.75]))
    classifier = MaskClassifier(len(labels), width=0, statistics=True)
    add_instances(path, InstanceParts(prompter.eval(), classifier.eval(), labels, threshold=0.9, max_overlap=0.6))
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    """Three images to test, of which the third is damaged."""
    root = tmp_path_factory.mktemp("photos")
    drawn = Path(RunFolder(trained.parents[1]).read_run_json()["data"]["root"])
    (source,) = drawn.glob("**/*test*.json")
    content = json.loads(source.read_text())
    folder = root / "images" / "test"
    folder.mkdir(parents=True)
    first = next(drawn.glob(f"**/{content['images'][0]['file_name']}"))
    kept = content["images"][0]
    pixels = np.asarray(Image.open(first).convert("RGB"))
    for name, shown in (("a", pixels), ("b", pixels[::-1]), ("c", pixels[:, ::-1])):
        Image.fromarray(shown).save(folder / f"{name}.png")
    damaged = (folder / "c.png").read_bytes()
    (folder / "c.png").write_bytes(damaged[:200] + bytes(100) + damaged[300:])
    images = [kept | {"id": number, "file_name": f"{name}.png"} for number, name in enumerate("abc", 1)]
    objects = [one for one in content["annotations"] if one["image_id"] == kept["id"]]
    annotations = [
        one | {"id": 1000 * image + place, "image_id": image}
        for image in (1, 2, 3)
        for place, one in enumerate(objects)
    ]
    (root / "annotations").mkdir()
    text = json.dumps({"images": images, "annotations": annotations, "categories": content["categories"]})
    (root / "annotations" / "instances_test.json").write_text(text)
    return root


def test_auto__measures_three_ways_on_the_same_embeddings(
    trained: Path, photos: Path, tmp_path: Path, run_debug: RunDebug, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("data=coco", f"data.root={photos}", "data.num_workers=0", "stage.overlays=2", "predict.auto_score=0")

    result = run_debug(tmp_path, *AUTO, f"checkpoint={trained}", *data)

    assert result.folder is not None
    folder, out = RunFolder(result.folder), capsys.readouterr().out
    about = result.details["test"]
    assert (about["images"], list(about["unreadable"])) == (2, ["c.png"])
    assert "1 image was passed over" in out
    assert about["encoder_passes"] == 2
    assert "encoder passes: 2, all columns together" in out
    metrics = result.metrics
    assert 0 <= metrics["test/auto/msa"] <= 1
    assert metrics["test/auto/threshold"] == 0
    assert math.isfinite(metrics["test/auto/precision"])
    assert metrics["test/boxes/class_accuracy"] in (1.0, pytest.approx(math.nan, nan_ok=True))
    assert "test/grid/map" not in metrics  # it has no classes
    assert 0 <= metrics["test/grid/map_any_class"] <= 1
    assert all(metrics[f"test/{way}/seconds_per_image"] > 0 for way in ("auto", "grid", "boxes"))
    by_class = result.to_dataframe("class")
    assert set(by_class["split"]) == {"test/auto"}
    assert {"map", "mar_1000"} <= set(by_class.columns)
    confusion = np.array(about["confusion"])
    assert confusion.shape == (len(about["categories"]) + 1,) * 2
    assert confusion[:-1].sum() == about["objects"]
    page = folder.path.joinpath("report.html").read_text()
    assert "annotated boxes" in page
    assert page.count("data:image/png;base64") == 2
    assert sorted(path.name for path in folder.overlays.iterdir()) == ["test_a.png"]  # the other of the two is damaged
    for name in ("precision_recall", "confusion"):
        assert Image.open(result.artifacts[name]).size[0] > 300
    assert result.plot().size == Image.open(result.artifacts["precision_recall"]).size
    cfg = load_config(folder.config)
    assert (cfg.prompt.type, cfg.prompt.multimask) == ("auto", "never")  # as the model was trained


def test_auto__images_without_objects_are_learnt_from_and_measured(
    photos: Path, tmp_path: Path, run_debug: RunDebug, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((photos / "annotations" / "instances_test.json").read_text())
    root = tmp_path / "data"
    shutil.copytree(photos / "images", root / "images")
    (root / "annotations").mkdir()
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] == 1]
    for split in ("train", "val", "test"):
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    data = ("data=coco", f"data.root={root}", "data.unannotated=keep", "data.num_workers=0", "tracking=none")

    checkpoint = run_debug(tmp_path / "out", *DEBUG, *data, "stage.test=false").artifacts["best_checkpoint"]

    out = capsys.readouterr().out
    assert "learns from 2 images or tiles" in out  # the third is damaged
    found = run_debug(tmp_path / "out", *AUTO, *data, f"checkpoint={checkpoint}", "predict.auto_score=0").details[
        "test"
    ]
    assert (found["images"], found["objects"]) == (2, len(content["annotations"]))
    survey = run_debug(tmp_path / "out", "stage=data", *data)
    assert survey.artifacts["report"].exists()


def test_auto__tiles_are_encoded_once_and_kept(trained: Path, tmp_path: Path, run_debug: RunDebug) -> None:
    asked = (
        *AUTO,
        f"checkpoint={trained}",
        "data.tile=32",
        "data.tile_overlap=0.25",
        "stage.overlays=0",
        "stage.controls=false",
    )

    first, second = (run_debug(tmp_path, *asked) for _ in range(2))

    assert first.details["test"]["encoder_passes"] == 2 * 9
    assert second.details["test"]["encoder_passes"] == 0
    assert not any(name.startswith(("test/grid/", "test/boxes/")) for name in first.metrics)
    times = {name for name in first.metrics if name.endswith(("_time", "seconds_per_image"))}
    for name in first.metrics.keys() - times:
        assert first.metrics[name] == pytest.approx(second.metrics[name], nan_ok=True)


def test_auto__model_without_a_prompter(tmp_path: Path, run_debug: RunDebug) -> None:
    asked = (*AUTO, "experiment=debug", "checkpoint=null", "stage.overlays=0", "predict.points_per_side=2")

    with pytest.raises(CheckpointError, match=r"the pretrained model has no prompter.*stage=train learns one"):
        run_debug(tmp_path, *asked)
    with pytest.raises(ConfigError, match=r"stage\.controls=false neither"):
        run_debug(tmp_path, *asked, "prompter=none", "stage.controls=false")
    controls = run_debug(tmp_path, *asked, "prompter=none")

    assert "test/grid/msa" in controls.metrics
    assert not any(name.startswith("test/auto/") for name in controls.metrics)


def test_auto__is_no_way_to_train(tmp_path: Path, run_debug: RunDebug) -> None:
    with pytest.raises(
        ConfigError, match=r"prompt=auto is how stage=test asks a model, and stage is train: write prompt="
    ):
        run_debug(tmp_path, *DEBUG, "prompt=auto")


def test_train__goes_on_from_the_prompter_of_its_start_and_measures_what_that_found(
    tmp_path: Path, run_debug: RunDebug, trained: Path
) -> None:
    asked = (*DEBUG, f"checkpoint='{trained}'", "stage.test=false", "stage.overlays=0", "tracking=none")
    start = read_checkpoint(trained).instances

    result = run_debug(tmp_path, *asked, "prompter.lr=0")

    assert 0 <= result.metrics["before/val/auto/f1"] <= 1
    learnt = read_checkpoint(result.artifacts["best_checkpoint"]).instances
    assert start is not None
    assert learnt is not None
    assert learnt.prompter.settings == start.prompter.settings
    for name, value in start.prompter.state_dict().items():
        torch.testing.assert_close(learnt.prompter.state_dict()[name], value)
    with pytest.raises(ConfigError, match=r"tracking\.parent=nowhere is no folder of a run"):
        run_debug(tmp_path, *asked, "tracking.parent=nowhere")


def test_checkpoint__whose_prompter_an_earlier_version_made(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(trained, weights_only=True)
    state = content["vpexp"]["instances"]["prompter"]["state"]
    state["outputs.weight"] = state.pop("outputs.0.weight")
    torch.save(content, tmp_path / "old.ckpt")
    old = read_checkpoint(tmp_path / "old.ckpt")
    assert old.instances is None
    assert old.state.keys() == read_checkpoint(trained).state.keys()
    said = " ".join(capsys.readouterr().out.split())
    assert "old.ckpt: its prompter is of another version of vpexp and is left out, its decoder is used" in said
