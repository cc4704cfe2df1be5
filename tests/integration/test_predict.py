"""Whole runs of ``stage=predict``: what a user gets for boxes, points and a grid, and what is said when something is wrong."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from tests.conftest import RunDebug
from vpexp.data.images import read_image
from vpexp.errors import ConfigError, DataError
from vpexp.inference.load import load_model
from vpexp.inference.predictor import Predictor
from vpexp.stages import predict
from vpexp.stages.shared.context import StageResult

COMMON = ("stage=predict", "model=sam_debug", "checkpoint=null", "tracking=none")
BOXES = [[2, 3, 30, 28], [10, 5, 38, 25]]
POINTS = [[[12, 9]], [[20, 14], [3, 3]]]
TOGETHER = {"box": BOXES[0], "points": POINTS[1], "point_labels": [1, 0], "label": "b"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of one name in two folders, one that is turned by EXIF, and one that is damaged inside."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, (height, width) in {"left/a.png": (30, 40), "right/a.png": (30, 40), "b.jpg": (48, 32)}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(folder / "turned.jpg", exif=exif)
    whole = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole, "png")
    damaged = bytearray(whole.getvalue())
    damaged[200:2000] = bytes(1800)  # its header and its end are fine
    (folder / "damaged.png").write_bytes(damaged)
    return folder


@pytest.fixture
def write_prompts(tmp_path: Path):
    def write(content: dict) -> Path:
        path = tmp_path / "prompts.json"
        path.write_text(json.dumps(content))
        return path

    return write


def read_results(result: StageResult) -> tuple[COCO, COCO]:
    """Read both files as a user of pycocotools does."""
    assert result.folder is not None
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(result.folder / "images.json"))
        return truth, truth.loadRes(str(result.folder / "predictions.json"))


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def test_predict__boxes_and_points_become_coco_results(
    tmp_path: Path, photos: Path, write_prompts, run_debug: RunDebug
):
    prompts = write_prompts(
        {
            "left/a.png": {
                "boxes": BOXES,
                "points": POINTS,
                "point_labels": [[1], [1, 0]],
                "labels": [*"abba"],
                "objects": [TOGETHER],
            },
            "b.jpg": {"boxes": [[0, 0, 32, 48]]},
        }
    )
    result = run_debug(tmp_path, *COMMON, f"source='{photos}'", f"prompts='{prompts}'")
    truth, results = read_results(result)

    assert [image["file_name"] for image in truth.dataset["images"]] == ["b.jpg", "left/a.png"]
    assert {image["file_name"]: (image["width"], image["height"]) for image in truth.dataset["images"]} == {
        "b.jpg": (32, 48),
        "left/a.png": (40, 30),
    }
    assert [category["name"] for category in truth.dataset["categories"]] == ["object", "a", "b"]
    # the same masks as the model gives when it is asked directly, by box and by point on their own
    predictor = _build_predictor()
    embedding = predictor.embed(read_image(photos / "left" / "a.png"))
    boxes = predictor.decode(embedding, boxes=np.array(BOXES, np.float32))
    points = [
        predictor.decode(embedding, points=np.array([one], np.float32), point_labels=np.array([labels], np.float32))
        for one, labels in zip(POINTS, [[1], [1, 0]], strict=True)
    ]
    both = {"boxes": BOXES[:1], "points": POINTS[1:], "point_labels": [[1, 0]]}
    points.append(predictor.decode(embedding, **{key: np.array(value, np.float32) for key, value in both.items()}))
    expected = [*zip(boxes.masks, boxes.iou, strict=True), *[(one.masks[0], one.iou[0]) for one in points]]
    (image_id,) = [image["id"] for image in truth.dataset["images"] if image["file_name"] == "left/a.png"]
    found = {entry["prompt"]["index"]: entry for entry in results.loadAnns(results.getAnnIds(imgIds=[image_id]))}
    assert list(found) == [index for index, (mask_HW, _) in enumerate(expected) if mask_HW.any()]
    assert found
    for index, entry in found.items():
        mask_HW, iou = expected[index]
        assert (results.annToMask(entry) != mask_HW).sum() <= 1
        assert entry["score"] == pytest.approx(float(iou), abs=1e-4)
        assert truth.cats[entry["category_id"]]["name"] == "abbab"[index]
    assert found[0]["prompt"] == {"index": 0, "box": BOXES[0]}
    assert found[3]["prompt"] == {"index": 3, "points": POINTS[1], "point_labels": [1, 0]}
    assert found[4]["prompt"] == found[3]["prompt"] | {"index": 4, "box": BOXES[0]}


def _build_predictor() -> Predictor:
    from vpexp.inference.load import load_predictor

    return load_predictor(load_model("sam_debug"))


def test_predict__what_a_run_leaves_behind(tmp_path: Path, photos: Path, write_prompts, run_debug: RunDebug, capsys):
    prompts = write_prompts(
        {name: {"boxes": BOXES} for name in ("left/a.png", "right/a.png", "turned.jpg", "damaged.png", "typo.jpg")}
    )
    result = run_debug(tmp_path, *COMMON, f"source='{photos}'", f"prompts='{prompts}'", "stage.overlays=99")
    told = " ".join(capsys.readouterr().out.split())
    assert result.folder is not None
    record = read_json(result.folder / "run.json")

    assert record["status"] == "FINISHED"
    about = record["predict"]
    assert (about["images"], about["prompts"], about["without_prompts"]) == (3, 6, 1)
    assert list(about["skipped"].values()) == [1]
    assert about["masks"] + about["left_out"]["empty"] == 6
    assert result.details["predict"]["skipped"] == about["skipped"]
    assert "no image is called 'typo.jpg'" in told
    assert "images passed over: 1 x" in told
    assert "damaged.png" in told
    assert "images without prompts" in told
    pictures = sorted(path.name for path in result.artifacts["overlays"].iterdir())
    assert pictures == ["left_a.png", "right_a.png", "turned.png"]
    assert result.artifacts["predictions"] == result.folder / "predictions.json"
    assert result.metrics["predict/images"] == 3
    assert result.metrics["predict/masks"] == about["masks"]
    assert result.metrics["predict/seconds_per_image"] > 0
    truth, _ = read_results(result)
    sizes = {image["file_name"]: (image["width"], image["height"]) for image in truth.dataset["images"]}
    assert sizes["turned.jpg"] == (40, 30)  # as viewers show it
    assert not list(result.folder.rglob(".*"))


def test_predict__kinds_of_files(tmp_path: Path, run_debug: RunDebug, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    page = Image.new("L", (40, 30), 90)
    page.save(folder / "stack.tif", save_all=True, append_images=[page])
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40)).save(folder / "wide.png")
    Image.new("RGB", (40, 30)).save(folder / "a.avif")
    (folder / "eps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n")
    for name in ("b.heic", "notes.txt"):
        (folder / name).write_bytes(b"something else")
    result = run_debug(
        tmp_path, *COMMON, "prompts=grid", "predict.points_per_side=2", f"source='{folder}'", "stage.overlays=0"
    )
    about = result.details["predict"]
    told = " ".join(capsys.readouterr().out.split())
    assert about["images"] == 3
    assert about["skipped"] == {"file type not read (.heic)": 1, "no image, or its header is damaged": 1}
    assert [note.partition(" (such as")[0] for note in about["notes"]] == [
        "files that are no images, passed over: 1",
        "pages left out: 1, behind the first page of 1 of the images",
        "1 of the images have more than 8 bits: each is stretched to 0..255 by its own range",
    ]
    assert "1 x file type not read (.heic)" in told
    assert "pages left out: 1" in told


def test_predict__grid(tmp_path: Path, photos: Path, run_debug: RunDebug):
    grid = ("prompts=grid", "predict.points_per_side=6", "predict.grid_min_score=0", f"source='{photos}/*/a.png'")
    result = run_debug(tmp_path, *COMMON, *grid, "predict.grid_overlap=0.8", "stage.overlays=1")
    truth, results = read_results(result)
    assert result.metrics["predict/prompts"] == 2 * 36
    assert len(list(result.artifacts["overlays"].iterdir())) == 1
    for image_id in truth.imgs:
        entries = results.loadAnns(results.getAnnIds(imgIds=[image_id]))
        assert entries
        assert [entry["score"] for entry in entries] == sorted((entry["score"] for entry in entries), reverse=True)
        masks = [results.annToMask(entry).astype(bool) for entry in entries]
        for index, mask_HW in enumerate(masks):
            assert mask_HW.any()
            for other_HW in masks[:index]:
                assert (mask_HW & other_HW).sum() / (mask_HW | other_HW).sum() <= 0.8
    about = result.details["predict"]
    assert about["masks"] + sum(about["left_out"].values()) == 3 * 2 * 36  # three masks a point

    steady = run_debug(tmp_path, *COMMON, *grid, "predict.grid_stability=0.999", "stage.overlays=0")
    left_out = steady.details["predict"]["left_out"]
    assert left_out["unstable"] > 0
    assert steady.metrics["predict/masks"] + sum(left_out.values()) == 3 * 2 * 36
    single = run_debug(tmp_path, *COMMON, *grid, "prompt.multimask=never", "stage.overlays=0")
    assert single.metrics["predict/masks"] + sum(single.details["predict"]["left_out"].values()) == 2 * 36

    strict = run_debug(tmp_path, *COMMON, *grid[:2], "predict.grid_min_score=1", grid[3], "stage.overlays=0")
    assert strict.metrics["predict/masks"] == 0
    assert json.loads(strict.artifacts["predictions"].read_text()) == []
    assert "overlays" not in strict.artifacts


def test_predict__min_score_counts_for_prompts_and_grid(
    tmp_path: Path, photos: Path, write_prompts, run_debug: RunDebug, capsys
):
    prompts = write_prompts({"b.jpg": {"boxes": BOXES}})
    for asked, key, masks in (
        (f"prompts='{prompts}'", "predict.min_score", 1),
        ("prompts=grid", "predict.grid_min_score", 3),
    ):
        result = run_debug(
            *(tmp_path, *COMMON, f"source='{photos}/b.jpg'", asked, "predict.min_score=1", "predict.grid_min_score=0"),
            "predict.points_per_side=2",
        )
        assert result.metrics["predict/masks"] == 0
        assert result.details["predict"]["left_out"]["low score"] == masks * result.metrics["predict/prompts"] > 0
        assert f"no mask scored well enough: lower {key}" in capsys.readouterr().out


def test_predict__same_again(tmp_path: Path, photos: Path, write_prompts, run_debug: RunDebug):
    prompts = write_prompts({"b.jpg": {"boxes": BOXES, "points": POINTS}})
    results = [run_debug(tmp_path, *COMMON, f"source='{photos}'", f"prompts='{prompts}'") for _ in range(2)]
    first, second = (result.artifacts["predictions"].read_bytes() for result in results)
    assert first == second


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit(143)])
def test_predict__stopped_half_way_keeps_what_was_predicted(
    tmp_path: Path, photos: Path, run_debug: RunDebug, monkeypatch: pytest.MonkeyPatch, stop
):
    def read_until_stopped(path: Path, *_):
        if path.parent.name == "right":
            raise stop
        return read_image(path)

    monkeypatch.setattr(predict, "read_image", read_until_stopped)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run_debug(
            *(tmp_path, *COMMON, f"source='{photos}'", "prompts=grid", "predict.points_per_side=3"),
            *("predict.grid_min_score=0", "stage.overlays=99"),
        )
    (folder,) = (tmp_path / "predict").iterdir()
    truth, results = read_results(StageResult(folder=folder))
    assert [image["file_name"] for image in truth.dataset["images"]] == ["b.jpg", "left/a.png"]
    assert {entry["image_id"] for entry in results.anns.values()} <= set(truth.imgs)
    record = read_json(folder / "run.json")
    assert record["status"] == "KILLED"
    assert record["predict"]["images"] == 2
    assert sorted(path.name for path in (folder / "overlays").iterdir()) == ["b.png", "left_a.png"]
    assert "stopped after 2 of 5 images" in (folder / "vpexp.log").read_text()
    assert not list(folder.rglob(".*"))
    assert not (tmp_path / ".latest").exists()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("source=nope", "prompts=grid"), (ConfigError, "source=nope does not exist")),
        (("source='{photos}'", "prompts=nope.json"), (ConfigError, "prompts=nope.json does not exist")),
        (
            ("source='{photos}/damaged.png'", "prompts=grid"),
            (DataError, "no image with prompts can be read; the first"),
        ),
        (("source='{photos}'", "prompts=grid", "data.strict=true"), (DataError, "damaged.png: .*data.strict=false")),
        (("source='{photos}'", "prompts=auto"), (ConfigError, "prompts=auto: this model has no prompter")),
        (("prompts=grid",), (ConfigError, "source is not given")),
    ],
)
def test_predict__mistakes_are_one_line(tmp_path: Path, photos: Path, run_debug: RunDebug, asked, expected):
    error, message = expected
    with pytest.raises(error, match=message) as caught:
        run_debug(tmp_path, *COMMON, *[word.format(photos=photos) for word in asked], "predict.points_per_side=1")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / ".latest" / "predict").exists()


def test_predict__malformed_prompts_are_said_before_the_model_is_loaded(
    tmp_path: Path, photos: Path, write_prompts, run_debug: RunDebug, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(predict, "load_stage_model", lambda *_: pytest.fail("the model was loaded"))
    for entry, message in (
        ({"boxes": [[5, 5, 1, 1]]}, r"prompts\.json: 'b\.jpg': boxes\[0\] .* is empty"),
        ({"boxes": [[40, 5, 50, 9]]}, r"prompts\.json: 'b\.jpg': boxes\[0\] .* lies outside of the image"),
    ):
        with pytest.raises(DataError, match=message):
            run_debug(tmp_path, *COMMON, f"source='{photos}'", f"prompts='{write_prompts({'b.jpg': entry})}'")


def test_predict__mlflow_has_the_files(tmp_path: Path, photos: Path, run_debug: RunDebug):
    from mlflow import MlflowClient

    result = run_debug(
        tmp_path,
        *COMMON[:3],
        f"source='{photos}/b.jpg'",
        "prompts=grid",
        "predict.points_per_side=2",
        "predict.grid_min_score=0",
    )
    assert result.folder is not None
    run_id = read_json(result.folder / "run.json")["mlflow_run_id"]
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    names = {file.path for file in client.list_artifacts(run_id)}
    assert {"predictions.json", "images.json", "overlays", "config.yaml"} <= names
    assert client.get_run(run_id).data.metrics["verbose/predict/images"] == 1


def test_predict__checkpoint_brings_its_model(tmp_path: Path, photos: Path, run_debug: RunDebug):
    run_debug(tmp_path, "tracking=none", "stage.test=false")
    result = run_debug(
        *(tmp_path, "stage=predict", "tracking=none", f"source='{photos}/b.jpg'", "prompts=grid"),
        *("predict.points_per_side=2", "predict.grid_min_score=0"),
    )
    assert result.metrics["predict/images"] == 1


EXPORTED = """
import sys
sys.modules |= dict.fromkeys(("torch", "pytorch_lightning", "datumaro"))  # importing one of them fails
from vpexp.config import compose_config
from vpexp.run import run
result = run(compose_config(sys.argv[1:]), sys.argv[1:])
assert result.metrics["predict/images"] == 1
"""


@pytest.mark.slow
def test_predict__exported_model_needs_no_torch(tmp_path: Path, photos: Path, write_prompts, run_debug: RunDebug):
    prompts = write_prompts({"b.jpg": {"boxes": BOXES, "points": POINTS}})
    asked = ["stage=predict", "tracking=none", f"source='{photos}'", f"prompts='{prompts}'"]
    exported = run_debug(tmp_path, "stage=export", "model=sam_debug", "checkpoint=null", "tracking=none")
    command = [*asked, f"checkpoint='{exported.folder}'", f"paths.output_dir='{tmp_path}'"]
    done = subprocess.run(
        [sys.executable, "-c", EXPORTED, *command], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    by_torch = run_debug(tmp_path, *asked, "model=sam_debug", "checkpoint=null")
    runs = [StageResult(folder=folder) for folder in sorted((tmp_path / "predict").iterdir())]
    assert runs[1].folder == by_torch.folder
    (_, from_ir), (_, from_torch) = (read_results(one) for one in runs)
    assert from_ir.anns.keys() == from_torch.anns.keys()
    for key, entry in from_ir.anns.items():
        other = from_torch.anns[key]
        assert entry["prompt"] == other["prompt"]
        assert entry["score"] == pytest.approx(other["score"], abs=1e-4)
        assert (from_ir.annToMask(entry) != from_torch.annToMask(other)).sum() <= 4
