from pathlib import Path

import pytest
from omegaconf import OmegaConf

from vpexp import Engine
from vpexp.config import compose_config, save_config
from vpexp.errors import ConfigError


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
