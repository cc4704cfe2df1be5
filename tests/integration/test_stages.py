"""Whole runs of the stages: what they leave behind, what a test takes from a training, and what is said when they fail."""

import csv
import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import DEBUG, RunDebug
from vpexp.cli import main
from vpexp.config import load_config
from vpexp.data.masks import encode_mask
from vpexp.engine import Engine
from vpexp.errors import CheckpointError, ConfigError, DataError, VpexpError
from vpexp.runfolder import read_metrics
from vpexp.stages.shared.context import StageResult

REPOSITORY = Path(__file__).resolve().parents[2]
PIXEL_METRICS = ("dice", "f1-score", "iou", "mean_iou")
COCO_METRICS = (
    *("map", "map_50", "map_75", "map_small", "map_medium", "map_large"),
    *("mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"),
)
TIMES = ("iter_time", "encoder_time", "decoder_time", "data_time")
OBJECTS = {"train": 53, "val": 31, "test": 33}


def is_time(name: str) -> bool:
    return name.endswith((*TIMES, "load_time", "train_time"))


def get_numbers(result: StageResult) -> dict[str, float]:
    """All numbers that a repeated run must give again."""
    return {name: value for name, value in result.metrics.items() if not is_time(name) and math.isfinite(value)}


def get_folder(result: StageResult) -> Path:
    assert result.folder is not None
    return result.folder


def read_json(path: Path) -> dict:
    """Strictly: NaN is no JSON."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} in {path}")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def trained(output_dir: Path, run_debug: RunDebug) -> StageResult:
    """The training that most tests look at: two epochs, seed 0."""
    return run_debug(output_dir, "tracking=none", "trainer.max_epochs=2")


@pytest.fixture(scope="module")
def folder(trained: StageResult) -> Path:
    return get_folder(trained)


# ---------------------------------------------------------------- what a training leaves behind


def test_train__run_folder_holds_what_the_design_lists(folder: Path, trained: StageResult) -> None:
    assert re.fullmatch(r"\d{8}_\d{6}_\d{6}", folder.name)
    assert folder.parent.name == "train"
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "checkpoints", "metrics.csv", "metrics.json", "tensorboard", "overlays", "vpexp.log"),
        *(
            "run.json",
            "images_before.json",
            "prompts_before.json",
            "images_val.csv",
            "images_test.csv",
            "report.html",
            "images",
        ),
    }
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert len(names) == 3
    assert re.fullmatch(r"epoch_00[01]\.ckpt", names[0])
    assert names[1:] == ["last.ckpt", "prompter.ckpt"]
    assert trained.artifacts["best_checkpoint"] == folder / "checkpoints" / names[0]
    assert [path.name.startswith("events.") for path in (folder / "tensorboard").glob("events*")] == [True]
    assert Image.open(next((folder / "overlays").glob("test_*.png"))).size[0] > 64


def test_train__report_shows_what_came_out(folder: Path, trained: StageResult) -> None:
    page = trained.artifacts["report"].read_text(encoding="utf-8")
    record = read_json(folder / "run.json")

    assert f"<li>{record['verdict']}</li>" in page
    assert "against the filled box: f1-score" in page
    assert f"<td>{trained.metrics['test/f1-score']:.4f}</td>" in page
    assert page.count("<svg") == 1
    links = re.findall(r'href="(images/[^"]+)"', page)
    assert len(links) == 2  # of two images one is the worst, the other the best
    assert all(Image.open(folder / link).size[0] > 64 for link in links)


def test_train__run_json_says_what_ran(folder: Path) -> None:
    record = read_json(folder / "run.json")

    assert record["status"] == "FINISHED"
    assert record["error"] is None
    assert record["stage"] == "train"
    assert record["mlflow_run_id"] is None
    assert record["started"] <= record["ended"]
    assert {"vpexp", "torch", "pytorch-lightning", "datumaro", "mlflow"} <= record["versions"].keys()
    assert record["versions"]["torch"] == torch.__version__
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    assert (record["git_commit"] or "").rstrip("+") == commit
    assert {name: split["objects"] for name, split in record["splits"].items()} == OBJECTS
    assert {name: split["images"] for name, split in record["splits"].items()} == {"train": 4, "val": 2, "test": 2}
    assert all(split["skipped"] == {} for split in record["splits"].values())
    assert record["before"]["val"]["f1-score"] > 0
    assert record["before"]["val"]["map_large"] is None
    assert record["epochs"] == 2
    assert (folder / record["best_checkpoint"]).is_file()


@pytest.mark.parametrize("split", ["val", "test"])
def test_train__every_metric_before_and_after(folder: Path, trained: StageResult, split: str) -> None:
    written = read_json(folder / "metrics.json")["metrics"]

    for name in (*PIXEL_METRICS, *COCO_METRICS, *TIMES):
        assert f"{split}/{name}" in written
        assert f"before/{split}/{name}" in written
    for name in ("map_per_class", "mar_100_per_class"):
        assert f"{split}/{name}/star" in written
    assert written[f"{split}/dice"] == written[f"{split}/f1-score"] > 0
    assert written.keys() == trained.metrics.keys()
    assert written["test/box_filled/f1-score"] > 0.4
    assert "test/wrong_image/f1-score" in written
    assert "val/box_filled/f1-score" not in written


def test_train__metrics_csv_has_a_row_an_epoch(folder: Path, trained: StageResult) -> None:
    rows = read_metrics(folder / "metrics.csv")

    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert float(rows[0]["val/f1-score"]) == trained.metrics["before/val/f1-score"]
    assert max(float(row["val/f1-score"]) for row in rows[1:]) == pytest.approx(trained.metrics["val/f1-score"])
    for name in ("train/loss", "train/loss_focal", "train/loss_dice", "train/loss_iou", "lr", "train/iter_time"):
        assert rows[0][name] == ""
        assert all(math.isfinite(float(row[name])) for row in rows[1:])
    assert all(row["val/map_large"] == "" for row in rows)


def test_train__checkpoints_hold_the_decoder_only(folder: Path, trained: StageResult) -> None:
    best = torch.load(trained.artifacts["best_checkpoint"], weights_only=True)
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)

    for content in (best, last):
        assert {name.split(".")[1] for name in content["state_dict"]} == {"mask_decoder"}
        assert set(content["vpexp"]["frozen"]) == {"image_encoder", "prompt_encoder"}
    assert "optimizer_states" not in best
    assert last["optimizer_states"]


def test_train__config_is_resolved_and_complete(folder: Path) -> None:
    text = (folder / "config.yaml").read_text()
    body = text.split("\nstage:")[1]

    assert f'python -m vpexp -cp "{folder}" -cn config' in text
    assert "${" not in body
    cfg = load_config(folder / "config.yaml")
    assert cfg.optimizer._target_ == "torch.optim.Adam"
    assert cfg.scheduler._target_.startswith("vpexp.training.schedulers.")
    assert cfg.trainer.max_epochs == 2
    assert cfg.resume is None


def test_train__log_holds_what_was_said(folder: Path) -> None:
    text = (folder / "vpexp.log").read_text()

    assert f"run folder: {folder}" in text
    assert "before training: f1-score" in text
    assert "best epoch:" in text


def test_train__latest_points_at_it_relatively(folder: Path, output_dir: Path) -> None:
    link = output_dir / ".latest" / "train"

    assert link.readlink() == Path(f"../train/{folder.name}")
    assert link.resolve() == folder


def test_train__leaves_no_other_log_handler(trained: StageResult) -> None:
    assert not [h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler) and "vpexp" in str(h)]


# ---------------------------------------------------------------- the same numbers again


def test_train__same_seed_same_numbers_other_seed_others(
    trained: StageResult, tmp_path: Path, run_debug: RunDebug
) -> None:
    again = run_debug(tmp_path, "tracking=none", "trainer.max_epochs=2")
    other = run_debug(tmp_path, "tracking=none", "trainer.max_epochs=2", "seed=1")

    assert get_numbers(again) == get_numbers(trained)
    assert get_numbers(other) != get_numbers(trained)


def test_engine__from_config_gives_the_same_numbers(trained: StageResult, folder: Path, tmp_path: Path) -> None:
    engine = Engine.from_config(folder / "config.yaml")

    result = engine.train(overrides={"paths.output_dir": str(tmp_path)})

    assert get_numbers(result) == get_numbers(trained)
    assert get_folder(result).parent == tmp_path / "train"


@pytest.mark.slow
def test_command__saved_configuration_gives_the_same_numbers_from_anywhere(
    trained: StageResult, folder: Path, output_dir: Path, tmp_path: Path
) -> None:
    before = (output_dir / ".latest" / "train").readlink()
    command = [sys.executable, "-m", "vpexp", "-cp", str(folder), "-cn", "config", f"paths.output_dir={tmp_path}/again"]

    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    (again,) = (tmp_path / "again" / "train").iterdir()
    numbers = read_json(again / "metrics.json")["metrics"]
    found = {name: value for name, value in numbers.items() if value is not None and not is_time(name)}
    assert found == get_numbers(trained)
    assert [path.name for path in tmp_path.iterdir()] == ["again"], "nothing else is written where it was started"
    assert (output_dir / ".latest" / "train").readlink() == before
    assert done.stderr == ""


# ---------------------------------------------------------------- stage=test


@pytest.fixture(scope="module")
def tested(trained: StageResult, output_dir: Path, run_debug: RunDebug) -> StageResult:
    """``stage=test`` and nothing else."""
    return run_debug(output_dir, "stage=test", "tracking=none")


def select(result: StageResult, prefix: str) -> dict[str, float]:
    return {n.removeprefix(prefix): v for n, v in get_numbers(result).items() if n.startswith(prefix)}


def test_test__alone_tests_what_was_last_trained_on_its_own_data(trained: StageResult, tested: StageResult) -> None:
    cfg = load_config(get_folder(tested) / "config.yaml")

    assert (cfg.model.name, cfg.data.synthetic.image_size, cfg.data.synthetic.train) == ("sam_debug", 64, 4)
    assert cfg.checkpoint == str(trained.artifacts["best_checkpoint"])
    measured = select(tested, "test/")
    assert measured.pop("size_mb") == pytest.approx(11, abs=0.1)  # float32 weights
    assert measured == select(trained, "test/")


def test_test__leaves_a_run_folder(tested: StageResult, output_dir: Path) -> None:
    folder = get_folder(tested)

    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "images_test.csv", "metrics.csv", "metrics.json", "overlays", "run.json", "vpexp.log"),
        *("report.html", "images"),
    }
    assert list(read_json(folder / "run.json")["splits"]) == ["test"]
    (row,) = read_metrics(folder / "metrics.csv")
    assert float(row["test/f1-score"]) == tested.metrics["test/f1-score"]
    assert (output_dir / ".latest" / "test").resolve() == folder
    by_image = tested.to_dataframe("image").set_index("image")
    overlap, areas = by_image["overlap"].sum(), by_image["predicted"].sum() + by_image["annotated"].sum()
    assert 2 * overlap / areas == pytest.approx(tested.metrics["test/f1-score"])
    assert "f1-score" in tested.to_dataframe().index


def test_test__other_data_by_override(trained: StageResult, output_dir: Path, run_debug: RunDebug) -> None:
    result = run_debug(
        *(output_dir, "stage=test", "tracking=none", "data=synthetic", "data.synthetic.scene=shapes"),
        *("data.synthetic.image_size=48", "data.synthetic.train=1", "data.synthetic.val=1", "data.synthetic.test=3"),
        "data.num_workers=0",
    )

    assert read_json(get_folder(result) / "run.json")["splits"]["test"]["images"] == 3
    assert load_config(get_folder(result) / "config.yaml").model.name == "sam_debug"


def test_test__a_single_key_is_laid_over_the_training_s_data(
    trained: StageResult, output_dir: Path, run_debug: RunDebug
) -> None:
    result = run_debug(output_dir, "stage=test", "tracking=none", "data.limit_images=1")

    assert read_json(get_folder(result) / "run.json")["splits"]["test"]["images"] == 1


def test_test__point_prompts(tested: StageResult, output_dir: Path, run_debug: RunDebug) -> None:
    result = run_debug(output_dir, "stage=test", "tracking=none", "prompt=point")

    assert load_config(get_folder(result) / "config.yaml").prompt.type == "point"
    assert result.metrics["test/f1-score"] != tested.metrics["test/f1-score"]
    assert result.metrics["test/box_filled/f1-score"] == tested.metrics["test/box_filled/f1-score"]


@pytest.mark.parametrize("form", ["file", "folder", "link", "moved"])
def test_test__checkpoint_in_every_form(
    trained: StageResult, tested: StageResult, tmp_path: Path, run_debug: RunDebug, form: str
) -> None:
    best = trained.artifacts["best_checkpoint"]
    output_dir = get_folder(trained).parents[1]
    moved = tmp_path / "my models" / "a=b.ckpt"
    moved.parent.mkdir()
    shutil.copy(best, moved)
    reference = {"file": best, "folder": best.parent.parent, "link": output_dir / ".latest" / "train", "moved": moved}

    result = run_debug(tmp_path, "stage=test", "tracking=none", f"checkpoint='{reference[form]}'")

    assert get_numbers(result) == get_numbers(tested)


def test_test__split_val(trained: StageResult, output_dir: Path, run_debug: RunDebug) -> None:
    result = run_debug(output_dir, "stage=test", "tracking=none", "stage.split=val", "stage.overlays=0")

    others = ("box_filled", "wrong_image", "auto", "prompts")
    expected = {n: v for n, v in select(trained, "val/").items() if not n.startswith(others)}
    assert {name: value for name, value in select(result, "val/").items() if name in expected} == expected
    assert not (get_folder(result) / "overlays").exists()


def test_test__model_as_it_came_has_the_numbers_before_training(
    trained: StageResult, tmp_path: Path, run_debug: RunDebug
) -> None:
    result = run_debug(tmp_path, *DEBUG, "stage=test", "checkpoint=null", "tracking=none")

    before = select(trained, "before/test/")
    assert {name: value for name, value in select(result, "test/").items() if name in before} == before
    assert before["f1-score"] != trained.metrics["test/f1-score"]


def test_test__nothing_trained_yet_is_one_line(tmp_path: Path, run_debug: RunDebug) -> None:
    with pytest.raises(CheckpointError, match=rf"nothing was trained yet under {tmp_path}: run stage=train first") as e:
        run_debug(tmp_path, "stage=test")

    assert "\n" not in str(e.value)
    assert not list(tmp_path.iterdir())


def test_test__another_model_than_the_checkpoint_s_is_one_line(
    trained: StageResult, output_dir: Path, run_debug: RunDebug
) -> None:
    with pytest.raises(CheckpointError, match="is of model sam_debug, not sam_micro: leave out model=") as caught:
        run_debug(output_dir, "stage=test", "model=sam_micro", "tracking=none")

    assert "\n" not in str(caught.value)


def test_engine__test_after_from_config_takes_the_configuration_s_data(trained: StageResult, folder: Path) -> None:
    engine = Engine.from_config(folder / "config.yaml")

    whole = engine.test()
    limited = engine.test(overrides={"data.limit_images": 1})
    before = engine.test(checkpoint=None)

    assert select(whole, "test/f1-score") == select(trained, "test/f1-score")
    assert read_json(get_folder(limited) / "run.json")["splits"]["test"]["images"] == 1
    assert before.metrics["test/f1-score"] == trained.metrics["before/test/f1-score"]


def test_engine__test_after_from_config_of_a_test_takes_its_checkpoint(
    trained: StageResult, tmp_path: Path, run_debug: RunDebug
) -> None:
    first = run_debug(tmp_path, "stage=test", f"checkpoint='{trained.folder}'", "tracking=none")
    run_debug(tmp_path, "tracking=none", "seed=5")  # now the latest is another one

    again = Engine.from_config(get_folder(first) / "config.yaml").test()

    assert get_numbers(again) == get_numbers(first)


# ---------------------------------------------------------------- training from a checkpoint


def test_train__from_latest_names_the_file_it_started_from(
    trained: StageResult, output_dir: Path, run_debug: RunDebug, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    shutil.copytree(output_dir, work, symlinks=True)

    result = run_debug(work, "tracking=none", "checkpoint=latest")

    assert result.metrics["before/test/f1-score"] == trained.metrics["test/f1-score"]
    started_from = Path(load_config(get_folder(result) / "config.yaml").checkpoint)
    assert started_from == work / trained.artifacts["best_checkpoint"].relative_to(output_dir)
    resumed = run_debug(work, f"resume='{result.folder}'", "trainer.max_epochs=2", "tracking=none")
    assert resumed.folder == result.folder
    assert resumed.metrics["before/test/f1-score"] == result.metrics["before/test/f1-score"]
    cfg = load_config(get_folder(result) / "config.yaml")
    assert (cfg.checkpoint, cfg.resume, cfg.trainer.max_epochs) == (str(started_from), None, 2)


def test_resume__latest_is_the_newest_run_with_a_checkpoint(tmp_path: Path, run_debug: RunDebug) -> None:
    first = run_debug(tmp_path, "tracking=none")
    (tmp_path / ".latest" / "train").unlink()  # as if it had been stopped
    (tmp_path / "train" / "99990101_000000_000000").mkdir()

    resumed = run_debug(tmp_path, "resume=latest", "trainer.max_epochs=2", "~callbacks.early_stopping", "tracking=none")

    assert resumed.folder == first.folder
    assert [row["epoch"] for row in read_metrics(get_folder(first) / "metrics.csv")] == ["0", "1", "2"]
    assert load_config(get_folder(first) / "config.yaml").callbacks.early_stopping is None


@pytest.mark.parametrize("reference", ["latest", "nowhere"])
def test_resume__nothing_to_go_on_from_is_one_line(tmp_path: Path, run_debug: RunDebug, reference: str) -> None:
    with pytest.raises(CheckpointError, match=f"resume={reference}: .*to go on from"):
        run_debug(tmp_path, f"resume={reference}")


# ---------------------------------------------------------------- errors


def write_boxes_only(root: Path) -> Path:
    (root / "annotations").mkdir(parents=True)
    (root / "images" / "train").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(root / "images" / "train" / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 32, "height": 32}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 8, 8], "area": 64, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "grape"}],
    }
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return root


FAILURES = [
    (["data=coco", "data.root={boxes}"], DataError, "box"),
    (["+optimizer.foo=1"], ConfigError, "optimizer: .*'foo'"),
    (["+callbacks.early_stopping.foo=1"], ConfigError, "callbacks.early_stopping: .*'foo'"),
    (["optimizer._target_=torch.optim.Adem"], ConfigError, "optimizer: .*Adem"),
    (["scheduler._target_=torch.optim.lr_scheduler.StepLR"], ConfigError, "scheduler: "),
    (["trainer.strategy=abacus"], ConfigError, "trainer: .*abacus"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=[" ".join(case[0]) for case in FAILURES])
def test_train__failure_is_one_line_and_recorded(
    trained: StageResult, tmp_path: Path, run_debug: RunDebug, failure: tuple[list[str], type[VpexpError], str]
) -> None:
    asked, kind, words = failure
    output_dir = get_folder(trained).parents[1]
    boxes = write_boxes_only(tmp_path / "boxes")
    runs = set((output_dir / "train").iterdir())
    latest = (output_dir / ".latest" / "train").readlink()

    with pytest.raises(kind, match=words) as caught:
        run_debug(output_dir, "tracking=none", *(word.format(boxes=boxes) for word in asked))

    assert "\n" not in str(caught.value)
    (failed,) = set((output_dir / "train").iterdir()) - runs
    record = read_json(failed / "run.json")
    assert record["status"] == "FAILED"
    assert record["error"] == f"{kind.__name__}: {caught.value}"
    assert record["ended"]
    assert not (failed / "metrics.csv").exists(), "found before the first evaluation"
    assert "Traceback" in (failed / "vpexp.log").read_text()
    assert (output_dir / ".latest" / "train").readlink() == latest


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["data=coco", "data.root=nowhere"], "nowhere: no such folder"),
        (
            ["data=auto", "data.root={boxes}/images"],
            "no known format.*; the folder above it is COCO: data.root=.*boxes$",
        ),
        (
            ["data=auto", "data.root={photos}"],
            "no known format.*; it holds images alone: .*, or label them: stage=demo source=.*photos$",
        ),
        (
            ["data=coco", "data.root={two}"],
            r"'default' \(annotations.json\), 'old' \(annotations_old.json\); .* with data.train_split=<name>$",
        ),
        (["data=voc", "data.root={boxes}"], "no Pascal VOC.*; it looks like COCO: data=auto finds the format"),
        (
            ["data=wgisd"],
            "data/wgisd: no such folder; scripts/prepare_wgisd lays out a clone of https://github.com/thsant",
        ),
        (["model.weights=nowhere/sam.pth"], "nowhere/sam.pth does not exist"),
        (["trainer=gpu"], "no GPU is found here; trainer.accelerator=auto takes one"),
    ],
)
def test_train__what_is_not_there_is_found_before_a_run_is_recorded(
    tmp_path: Path, run_debug: RunDebug, monkeypatch: pytest.MonkeyPatch, asked: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = {
        "boxes": write_boxes_only(tmp_path / "boxes"),
        "photos": tmp_path / "apart" / "photos",
        "two": tmp_path / "two",
    }
    shutil.copytree(folders["boxes"] / "images", folders["photos"])
    shutil.copytree(folders["boxes"] / "images", folders["two"])
    for name in ("annotations.json", "annotations_old.json"):
        shutil.copy(next((folders["boxes"] / "annotations").glob("*train*.json")), folders["two"] / name)

    with pytest.raises(VpexpError, match=words) as caught:
        run_debug(tmp_path / "outputs", *(word.format(**folders) for word in asked))

    assert "\n" not in str(caught.value)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("model.freeze=[image_encoder,prompt_encoder,mask_decoder]", "all parts are frozen"),
        ("callbacks.early_stopping.foo=1", "unknown key 'callbacks.early_stopping.foo'"),
        ("paths.output_dir=/proc/nowhere", "paths.output_dir=/proc/nowhere cannot be written"),
    ],
)
def test_command__exit_code_2_and_one_line_before_a_run_is_opened(tmp_path, monkeypatch, capsys, asked, words) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["experiment=debug", "tracking=none", asked])

    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("vpexp: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("whole", [False, True])
def test_command__failed_run_exits_with_2(tmp_path, monkeypatch, capsys, whole: bool) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    if whole:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(SystemExit) as caught:
        main(["experiment=debug", "tracking=none", "+optimizer.foo=1"])

    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert ("Traceback" in captured.err) is whole
    assert "'foo'" in captured.err.splitlines()[-1]
    if not whole:
        assert captured.err.count("\n") == 1
    (failed,) = (tmp_path / "outputs" / "train").iterdir()
    assert read_json(failed / "run.json")["status"] == "FAILED"


# ---------------------------------------------------------------- damaged images


def write_coco(root: Path, counts: dict[str, int], damaged: dict[str, int]) -> Path:
    """Write noisy images with one square object each; the first ones of a split damaged in their middle."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for split, count in counts.items():
        images, annotations = [], []
        (root / "images" / split).mkdir(parents=True)
        for index in range(count):
            path = root / "images" / split / f"{split}.{index}.png"
            Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(path)
            if index < damaged.get(split, 0):
                content = bytearray(path.read_bytes())
                middle = len(content) // 2
                content[middle : middle + 64] = bytes(64)
                path.write_bytes(content)
            mask_HW = np.zeros((48, 64), dtype=bool)
            mask_HW[10:30, 8 + index : 30] = True
            rle = encode_mask(mask_HW)
            images.append({"id": index + 1, "file_name": path.name, "width": 64, "height": 48})
            annotations.append(
                {
                    "id": index + 1,
                    "image_id": index + 1,
                    "category_id": 1,
                    "iscrowd": 0,
                    "area": 400,
                    "bbox": [8, 10, 22, 20],
                    "segmentation": {"size": [48, 64], "counts": rle["counts"].decode()},
                }
            )
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "grape (red), ½"}],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("workers", [0, 1])
def test_train__damaged_images_are_passed_over_and_counted(
    tmp_path: Path, run_debug: RunDebug, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    root = write_coco(tmp_path / "data", {"train": 4, "val": 2, "test": 2}, {"train": 1, "test": 1})

    result = run_debug(
        *(tmp_path / "outputs", "tracking=none", "data=coco", f"data.root={root}", f"data.num_workers={workers}"),
        *("trainer.max_epochs=2", "data.batch_size=1"),
    )

    folder = get_folder(result)
    record, written = read_json(folder / "run.json"), read_json(folder / "metrics.json")
    assert record["splits"]["train"]["skipped"] == {"image cannot be decoded": 1}
    assert record["splits"]["val"]["skipped"] == {}
    assert record["splits"]["test"]["skipped"] == {"image cannot be decoded": 1}
    (reason,) = written["details"]["train"]["unreadable"].values()
    assert "train.0.png" in reason
    assert written["details"]["test"]["images"] == 1
    said = capsys.readouterr().out
    assert said.count("1 image was passed over in train, damaged inside; the first: ") == 1
    assert said.count("passed over in") == 2
    assert math.isnan(result.metrics["test/wrong_image/f1-score"])
    assert "wrong image: needs at least two images" in said
    assert {path.name for path in (folder / "overlays").iterdir()} == {"test_test.1.png"}


@pytest.mark.parametrize(("split", "count"), [("train", 4), ("val", 2)])
def test_train__nothing_but_damaged_images_is_an_error(
    tmp_path: Path, run_debug: RunDebug, split: str, count: int
) -> None:
    root = write_coco(tmp_path / "data", {"train": 4, "val": 2, "test": 2}, {split: count})

    with pytest.raises(
        DataError, match=f"none of the {count} images of the {split} split can be read: .*{split}.0.png"
    ):
        run_debug(tmp_path / "outputs", "tracking=none", "data=coco", f"data.root={root}", "data.num_workers=0")


# ---------------------------------------------------------------- stage=models


@pytest.mark.slow
def test_models__prints_all_of_them(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    main(["stage=models"])

    said = capsys.readouterr().out
    for name in ("sam_debug", "sam_micro", "sam_tiny_vit", "sam_vit_b"):
        assert f" {name} " in said
    for heading in ("recipe", "parameters", "GFLOPs", "size"):
        assert heading in said
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- folders with odd names


def test_run__output_folder_in_the_home_folder(tmp_path: Path, monkeypatch, run_debug: RunDebug) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    result = run_debug(Path("~/my runs"), "tracking.experiment=a b")

    assert get_folder(result).parent == tmp_path / "my runs" / "train"
    # Libraries keep caches in hidden folders of the home folder.
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["my runs"]
    assert sorted(path.name for path in (tmp_path / "my runs").iterdir()) == [
        *(".latest", ".mlflow.db.lock", "mlartifacts", "mlflow.db", "train")
    ]
    run_id = read_json(get_folder(result) / "run.json")["mlflow_run_id"]
    assert (tmp_path / "my runs" / "mlartifacts" / run_id / "artifacts" / "metrics.csv").is_file()
    with (tmp_path / "my runs" / "mlartifacts" / run_id / "artifacts" / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2
