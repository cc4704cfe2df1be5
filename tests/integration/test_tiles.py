"""``data.tile`` from training to prediction: tiles are encoded once, masks are measured whole, models bring their tiles along."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.integration import test_embedding_cache as embedding_cache
from tests.integration.test_embedding_cache import read_record
from tests.integration.test_resume import assert_same_training
from vpexp.config.schema import DataConfig
from vpexp.data.annotations import Region
from vpexp.data.dataset import load_dataset
from vpexp.data.images import read_image
from vpexp.data.masks import decode_rle, encode_mask
from vpexp.data.prompts import prompts_from_boxes
from vpexp.data.tiles import TiledImages, Tiling, put_back
from vpexp.inference.load import load_predictor
from vpexp.stages.shared.context import StageResult

SIDE, TILE = 128, 64
DEBUG = ("tracking=none", "callbacks.progress=null", "trainer.threads=1", "stage.overlays=1")
DRAWN = ("experiment=debug", f"data.synthetic.image_size={SIDE}", "data.synthetic.scene=vineyard")
TRAIN = (*DRAWN, f"data.tile={TILE}", "prompt.jitter=0.3", "optimizer.lr=1e-3", "callbacks.early_stopping=null")


run_stage = partial(embedding_cache.run_stage, defaults=DEBUG)


def count_tiles(root: Path, *, empty: tuple[str, ...] = ()) -> dict[str, int]:
    """Count the tiles by split: those that have objects, of the splits ``empty`` all."""
    (data_root,) = root.glob("cache/synthetic/*")
    dataset, tiling = load_dataset(DataConfig(format="coco", root=str(data_root))), Tiling(TILE, 0.25)
    every = {name: sum(len(tiling.plan(i.height, i.width)) for i in dataset.splits[name].images) for name in empty}
    return every or {name: len(TiledImages.cut(split.images, tiling)) for name, split in dataset.splits.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StageResult]:
    root = tmp_path_factory.mktemp("tiled")
    return root, run_stage(root, *TRAIN, "trainer.max_epochs=2")


def test_train__each_tile_is_encoded_once_and_a_resumed_run_ends_alike(trained, capsys):
    root, first = trained
    tiles = count_tiles(root)
    assert tiles["train"] > 4, "more tiles than images"
    record = read_record(first)
    assert record["splits"]["train"]["images"] == 4
    every = tiles | count_tiles(root, empty=("train", "val"))  # the prompter learns from those without objects too
    assert (record["cache"]["encoded"], record["encoder_passes"]) == (sum(every.values()), sum(every.values()))
    half = run_stage(root, *TRAIN, "trainer.max_epochs=1")
    assert (read_record(half)["cache"]["hits"], read_record(half)["encoder_passes"]) == (sum(every.values()), 0)
    out = capsys.readouterr().out
    assert f"  train: {tiles['train']} tiles of {TILE} px with objects" in out
    resumed = run_stage(root, *TRAIN, "trainer.max_epochs=2", f"resume={half.folder}")
    assert_same_training(first.folder, resumed.folder)


def test_test__inherits_tiles_and_measures_whole_masks(trained, capsys):
    root, first = trained
    checkpoint = f"checkpoint={first.artifacts['best_checkpoint']}"
    result = run_stage(root, "stage=test", checkpoint)
    assert result.metrics["test/f1-score"] == first.metrics["test/f1-score"]
    assert f"test: {count_tiles(root)['test']} tiles of {TILE} px" in capsys.readouterr().out
    details = result.details["test"]
    whole = run_stage(root, "stage=test", checkpoint, "data.tile=null")
    assert details == whole.details["test"], "so many images and objects, of whatever size"
    assert whole.metrics["test/f1-score"] != result.metrics["test/f1-score"]
    for name in (
        "box_filled/f1-score",
        "box_filled/mean_iou",
    ):  # prompts are the whole boxes where tiles hold objects whole
        assert result.metrics[f"test/{name}"] == pytest.approx(whole.metrics[f"test/{name}"], abs=0.02)
    assert list((result.folder / "overlays").iterdir())
    (data_root,) = root.glob("cache/synthetic/*")
    other = run_stage(root, "stage=test", checkpoint, "data=coco", f"data.root={data_root}", "cache=none")
    assert other.metrics["test/f1-score"] == pytest.approx(result.metrics["test/f1-score"], abs=1e-3), (
        "other data, same tiles"
    )


def test_test__by_clicks_and_in_workers(trained):
    root, _ = trained
    asked = (*TRAIN, "stage=test", "prompt=clicks", "prompt.clicks=3", "stage.controls=false")
    alone, shared = run_stage(root, *asked), run_stage(root, *asked, "data.num_workers=2")
    for name in ("test/f1-score_clicks_3", "test/mean_iou", "test/map"):
        assert alone.metrics[name] == shared.metrics[name]


def test_predict__a_prompt_sees_its_tile_and_the_grid_all(trained, tmp_path):
    root, first = trained
    photo = next(root.glob("cache/synthetic/*/images/*"))
    box = [
        70,
        50,
        100,
        90,
    ]  # tiles begin at 0, 48 and 64: only from 48 there are all its rows, and most room to its sides
    (tmp_path / "prompts.json").write_text(json.dumps({photo.name: {"boxes": [box], "points": [[[5, 5]]]}}))
    checkpoint = f"checkpoint={first.artifacts['best_checkpoint']}"
    result = run_stage(root, "stage=predict", checkpoint, f"source={photo}", f"prompts={tmp_path}/prompts.json")
    found = json.loads((result.folder / "predictions.json").read_text())
    window = Region(48, 48, 112, 112)
    crop_HW3 = np.ascontiguousarray(read_image(photo)[window.slices])
    predictor = load_predictor(first.artifacts["best_checkpoint"])
    expected = predictor.decode_prompts(
        predictor.embed(crop_HW3), prompts_from_boxes(np.array([[22, 2, 52, 42]], np.float32))
    )
    rle = found[0]["segmentation"] | {"counts": found[0]["segmentation"]["counts"].encode()}
    assert rle == put_back(encode_mask(expected.masks[0]), window, SIDE, SIDE)
    assert found[0]["prompt"]["box"] == box
    assert found[0]["score"] == pytest.approx(float(expected.iou[0]), abs=1e-6)
    grid = run_stage(root, "stage=predict", checkpoint, f"source={photo}", "prompts=grid", "predict.grid_min_score=0")
    assert grid.metrics["predict/prompts"] == 9 * 16**2, "nine tiles"
    union_HW = np.zeros((SIDE, SIDE), bool)
    for one in json.loads((grid.folder / "predictions.json").read_text()):
        union_HW |= decode_rle(one["segmentation"] | {"counts": one["segmentation"]["counts"].encode()})
    assert union_HW.any()


@pytest.mark.slow
def test_export__a_model_brings_its_tiles_along(trained, tmp_path):
    root, first = trained
    exported = run_stage(root, "stage=export", f"checkpoint={first.artifacts['best_checkpoint']}")
    alone = tmp_path / "model"
    alone.mkdir()
    for file in exported.folder.glob("exported_model*"):
        (alone / file.name).write_bytes(file.read_bytes())  # without the configuration beside it
    result = run_stage(root, *DRAWN, "stage=test", f"checkpoint={alone}")
    assert result.metrics["test/f1-score"] == pytest.approx(first.metrics["test/f1-score"], abs=0.02)
    record = (result.folder / "config.yaml").read_text()
    assert f"tile: {TILE}\n" in record
