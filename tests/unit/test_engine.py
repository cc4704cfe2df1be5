from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

import vpexp
from vpexp import Engine, load_predictor
from vpexp.config import compose_config, save_config
from vpexp.errors import CheckpointError, ConfigError
from vpexp.stages.shared.context import StageResult


@pytest.fixture
def runs(monkeypatch):
    """What reaches ``run``: (configuration, overrides)."""
    reached = []
    monkeypatch.setattr("vpexp.engine.run", lambda cfg, overrides: reached.append((cfg, list(overrides))))
    return reached


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "config.yaml"
    save_config(compose_config(["model=sam_debug", "data=coco", "data.root=grapes", "seed=3"]), path)
    return path


def test_engine__composes_what_the_command_line_would(runs):
    engine = Engine(model="sam_tiny_vit", data_root="data/wgisd", work_dir="outputs")

    engine.train(max_epochs=10)
    engine.test()
    engine.test(checkpoint=None)

    asked = ["model=sam_tiny_vit", "data=auto", "data.root=data/wgisd", "paths.output_dir=outputs"]
    train, test, test_raw = runs
    assert train[1] == [*asked, "stage=train", "trainer.max_epochs=10"]
    assert train[0] == compose_config(train[1])
    assert (train[0].stage.name, train[0].trainer.max_epochs, train[0].data.format) == ("train", 10, "auto")
    assert (test[0].stage.name, test[0].checkpoint) == ("test", "latest")
    assert test_raw[0].checkpoint is None


def test_engine__demo_labels_a_source(runs):
    Engine(model="sam_debug").demo("my photos", checkpoint=None, overrides={"demo.labels": ["berry", "leaf"]})

    ((cfg, _),) = runs
    assert (cfg.stage.name, cfg.source, cfg.checkpoint) == ("demo", "my photos", None)
    assert list(cfg.demo.labels) == ["berry", "leaf"]


def test_engine__overrides_of_construction_and_call(runs):
    engine = Engine(
        model="sam_debug", data="synthetic", overrides={"data.batch_size": 1, "+optimizer.betas": [0.9, 0.99]}
    )

    engine.train(overrides={"data.batch_size": 3, "callbacks.early_stopping": None, "prompt": "point"})

    ((cfg, overrides),) = runs
    assert cfg.data.batch_size == 3
    assert cfg.optimizer.betas == [0.9, 0.99]
    assert cfg.callbacks.early_stopping is None
    assert cfg.prompt.type == "point"
    assert "data=synthetic" in overrides


@pytest.mark.parametrize("name", ["my data", "a=b", "it's", "a,b", "{x}", "tëst", "c:\\data"])
def test_engine__paths_with_odd_characters(runs, tmp_path, name):
    root = tmp_path / name

    Engine(model="sam_debug", data="coco", data_root=root, work_dir=root).test(checkpoint=root / "a.ckpt")

    ((cfg, _),) = runs
    assert cfg.data.root == str(root)
    assert cfg.paths.output_dir == str(root)
    assert cfg.checkpoint == str(root / "a.ckpt")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"overrides": {"data.batch_sise": 2}}, "unknown key 'data.batch_sise'; did you mean 'data.batch_size'?"),
        ({"overrides": {"data.batch_size": "two"}}, "data.batch_size=two: must be a whole number"),
        ({"model": "sam_vit_c"}, "model has no option 'sam_vit_c'; did you mean 'sam_vit_b'?"),
        ({"config_dir": "nowhere"}, "nowhere is no folder"),
    ],
)
def test_engine__mistake_is_one_line_at_once(settings, words):
    with pytest.raises(ConfigError) as caught:
        Engine(**settings)

    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_engine__groups_of_the_user(runs, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("format: voc\nroot: grapes\n")

    Engine(data="mine", config_dir=tmp_path).train()

    assert (runs[0][0].data.format, runs[0][0].data.root) == ("voc", "grapes")


def test_from_config__same_stage_is_the_same_configuration(runs, saved):
    Engine.from_config(saved).train()

    ((cfg, overrides),) = runs
    expected = compose_config(["model=sam_debug", "data=coco", "data.root=grapes", "seed=3"])
    assert OmegaConf.to_container(cfg, resolve=True) == OmegaConf.to_container(expected, resolve=True)
    assert overrides == list(cfg)  # complete: nothing is inherited


def test_from_config__other_stage(runs, saved):
    engine = Engine.from_config(str(saved))
    engine.test()
    engine.test(checkpoint="a.ckpt", overrides={"prompt.type": "point"})

    (latest, _), (named, _) = runs
    assert (latest.stage.name, latest.checkpoint, latest.data.root) == ("test", "latest", "grapes")
    assert (named.checkpoint, named.prompt.type) == ("a.ckpt", "point")
    assert engine.saved.stage.name == "train", "the saved configuration stays as it was"


def test_from_config__checkpoint_of_a_saved_test_stays(runs, tmp_path):
    save_config(compose_config(["model=sam_debug", "stage=test", "checkpoint=a.ckpt"]), tmp_path / "config.yaml")
    engine = Engine.from_config(tmp_path / "config.yaml")

    engine.test()
    engine.test(checkpoint=None)
    engine.train()

    assert [cfg.checkpoint for cfg, _ in runs] == ["a.ckpt", None, None]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"data.batch_sise": 2}, "unknown key 'data.batch_sise'; did you mean 'data.batch_size'?"),
        ({"data.batch_size": "two"}, "data.batch_size=two: must be a whole number"),
    ],
)
def test_from_config__mistake_is_one_line(runs, saved, overrides, words):
    with pytest.raises(ConfigError) as caught:
        Engine.from_config(saved).train(overrides=overrides)

    assert str(caught.value) == words
    assert runs == []


def test_from_config__missing_file_is_one_line():
    with pytest.raises(ConfigError, match=r"no configuration at nowhere/config\.yaml"):
        Engine.from_config(Path("nowhere/config.yaml"))


def test_engine__data_looks_at_the_data_set(runs):
    Engine(model="sam_debug", data_root="grapes").data(overrides={"stage.overlays": 3})

    ((cfg, _),) = runs
    assert (cfg.stage.name, cfg.stage.overlays, cfg.stage.duplicates) == ("data", 3, True)
    assert (cfg.data.format, cfg.data.root) == ("auto", "grapes")


def test_engine__settings_by_their_usual_names(runs):
    engine = Engine(model="sam_debug")
    engine.train(lr=1e-4, batch_size=4, max_epochs=5, prompt="point")
    engine.test(checkpoint=None, **{"data.limit_images": 3})

    (train, _), (test, _) = runs
    assert (train.optimizer.lr, train.data.batch_size, train.trainer.max_epochs) == (1e-4, 4, 5)
    assert train.prompt.type == "point"
    assert test.data.limit_images == 3
    with pytest.raises(ConfigError, match=r"unknown key 'data.batch_sise'; did you mean 'data.batch_size'"):
        engine.train(**{"data.batch_sise": 2})


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return Engine(model="sam_debug", work_dir=tmp_path_factory.mktemp("work"))


def test_predict__paths_arrays_and_pictures_give_the_same_masks(engine, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (48, 80, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    boxes = [[10, 5, 60, 40], [0, 0, 20, 20]]
    found = [
        engine.predict(image, boxes=boxes, checkpoint=None)
        for image in (pixels, Image.fromarray(pixels), tmp_path / "a.png", str(tmp_path / "a.png"))
    ]
    assert found[0].masks.shape == (2, 48, 80)
    assert all(np.array_equal(found[0].masks, other.masks) for other in found)
    expected = load_predictor("sam_debug").decode(load_predictor("sam_debug").embed(pixels), boxes=boxes)
    assert np.array_equal(found[0].masks, expected.masks)
    assert repr(found[0]).startswith("Prediction(2 masks of 80 x 48 pixels, predicted IoU ")
    table = found[0].to_dataframe()
    assert list(table.columns) == ["predicted_iou", "area", "x1", "y1", "x2", "y2"]
    assert table["area"].tolist() == [int(mask.sum()) for mask in found[0].masks]
    assert found[0].plot(pixels).width >= 80


def test_predict__an_image_that_is_cut_is_asked_in_its_tiles(engine):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 160, 3), np.uint8)
    boxes = [[4, 5, 40, 40], [120, 10, 150, 50]]
    found = engine.predict(pixels, boxes=boxes, checkpoint=None, **{"data.tile": 64, "data.tile_overlap": 0.25})

    predictor = load_predictor("sam_debug")
    for left, box, mask_HW, iou in zip((0, 96), boxes, found.masks, found.iou, strict=True):
        moved = [[box[0] - left, box[1], box[2] - left, box[3]]]
        expected = predictor.decode(predictor.embed(pixels[:, left : left + 64]), boxes=moved)
        np.testing.assert_array_equal(mask_HW[:, left : left + 64], expected.masks[0])
        assert iou == expected.iou[0]
        assert mask_HW.sum() == expected.masks.sum()
    with pytest.raises(ValueError, match=r"boxes\[0\] is .*outside of the image"):
        engine.predict(pixels, boxes=[[200, 5, 240, 40]], checkpoint=None, **{"data.tile": 64})


def test_predict__a_list_has_prompts_for_each_image(engine):
    images = [np.zeros((40, 60, 3), np.uint8), np.full((30, 30, 3), 90, np.uint8)]
    first, second = engine.predict(
        images,
        points=[[[[5, 5]], [[9, 9]]], [[[3, 3]]]],
        boxes=[[[1, 1, 9, 9], [2, 2, 8, 8]], [[1, 1, 9, 9]]],
        checkpoint=None,
    )
    assert (first.masks.shape, second.masks.shape) == ((2, 40, 60), (1, 30, 30))
    with pytest.raises(ValueError, match="boxes are given for 1 of 2 images"):
        engine.predict(images, boxes=[[[1, 1, 9, 9]]], checkpoint=None)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ({"boxes": [[30, 5, 10, 40]]}, "boxes[0] is [30, 5, 10, 40]: a box is [x1, y1, x2, y2] with x1 < x2"),
        ({"boxes": [[90, 5, 95, 40]]}, "outside of the image, which is 80 wide and 48 high"),
        ({"points": [[[10, 70]]]}, "points[0]: (10, 70) lies outside of the image, which is 80 wide and 48 high"),
        ({"points": [[10, 20]]}, "points must have shape [N, P, 2], not [1, 2]"),
    ],
)
def test_predict__impossible_prompts_are_one_line(engine, prompts, words):
    with pytest.raises(ValueError) as caught:
        engine.predict(np.zeros((48, 80, 3), np.uint8), checkpoint=None, **prompts)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_embed__a_path_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"not a str: Engine.predict takes paths"):
        load_predictor("sam_debug").embed("a.jpg")


def test_predict__without_anything_trained_says_so(engine):
    with pytest.raises(CheckpointError, match="nothing was trained yet"):
        engine.predict(np.zeros((48, 80, 3), np.uint8), boxes=[[1, 1, 9, 9]])


def test_vpexp__shows_its_names():
    assert {"Engine", "list_models", "load_model", "load_predictor"} <= set(dir(vpexp))


def test_result__tables_by_metric_class_and_image(tmp_path):
    (tmp_path / "images_test.csv").write_text("split,image,f1-score,iou\ntest,a.jpg,0.8,0.7\n")
    metrics = {"test/f1-score": 0.8, "test/map": 0.5, "test/box_filled/f1-score": 0.6, "test/map_per_class/a/b": 0.4}
    result = StageResult(metrics, {"images_of_test": tmp_path / "images_test.csv"}, tmp_path)
    table = result.to_dataframe()
    assert table.loc["f1-score"].tolist() == [0.8, 0.6]
    assert list(table.columns) == ["test", "test/box_filled"]
    assert result.to_dataframe("class").to_dict("records") == [{"split": "test", "class": "a/b", "map": 0.4}]
    assert result.to_dataframe("image")["iou"].tolist() == [0.7]
    assert repr(result).startswith("StageResult(test/f1-score 0.8; test/map 0.5;")
    assert "<table" in result._repr_html_()
    assert result.plot().size[0] > 400
    with pytest.raises(ValueError, match="must be metric, class or image"):
        result.to_dataframe("epoch")
