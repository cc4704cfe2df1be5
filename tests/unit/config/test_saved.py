import pytest
from omegaconf import OmegaConf

from vpexp.config import INHERITED, compose_config, inherit, load_config, save_config
from vpexp.errors import ConfigError

ASKED = ["model=sam_debug", "optimizer=sgd", "optimizer.lr=0.1", "scheduler=cosine", "callbacks.early_stopping=null"]


def resolve(cfg):
    return OmegaConf.to_container(cfg, resolve=True)


def test_save_config__reads_back_equal_and_complete(tmp_path):
    cfg = compose_config([*ASKED, "data=coco", 'data.root="my data/a=b"', "seed=3"])
    path = tmp_path / "config.yaml"

    save_config(cfg, path)

    loaded = load_config(path)
    assert resolve(loaded) == resolve(cfg)
    assert loaded.optimizer._target_ == "torch.optim.SGD"
    assert loaded.scheduler._target_ == "vpexp.training.schedulers.build_cosine"
    body = path.read_text().partition("\nstage:")[2]
    assert "${" not in body
    assert f'python -m vpexp -cp "{tmp_path}" -cn config' in path.read_text()


def test_save_config__numbers_keep_their_types(tmp_path):
    cfg = compose_config(["trainer.limit_train_batches=1", "trainer.limit_val_batches=1.0", "trainer.devices='2'"])

    save_config(cfg, tmp_path / "config.yaml")

    loaded = load_config(tmp_path / "config.yaml").trainer
    assert isinstance(loaded.limit_train_batches, int)
    assert isinstance(loaded.limit_val_batches, float)
    assert loaded.devices == "2"


def test_load_config__is_typed_and_closed(tmp_path):
    save_config(compose_config(), tmp_path / "config.yaml")
    cfg = load_config(tmp_path / "config.yaml")

    with pytest.raises(Exception, match="could not be converted to Integer"):
        cfg.data.batch_size = "two"
    with pytest.raises(Exception, match="not in"):
        cfg.data.nope = 1


def test_load_config__reads_what_an_older_version_saved(tmp_path):
    path = tmp_path / "config.yaml"
    save_config(compose_config(), path)
    path.write_text(path.read_text().replace("\ndemo:\n", "\ndemo:\n  refine: auto\n"))
    assert "refine: auto" in path.read_text()

    assert "refine" not in load_config(path).demo


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no configuration at"),
        ("data: [", "config.yaml, line 1"),
        ("- a\n", "must be keys"),
        ("data:\n  bacth_size: 1\n", "unknown key 'data.bacth_size'; did you mean 'data.batch_size'?"),
        ("data:\n  batch_size: two\n", "data.batch_size=two: must be a whole number"),
        (b"seed: \xff\n", "is not text in UTF-8"),
    ],
)
def test_load_config__says_what_is_wrong_with_a_file(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    if isinstance(text, bytes):
        path.write_bytes(text)
    elif text is not None:
        path.write_text(text)

    with pytest.raises(ConfigError) as caught:
        load_config(path)

    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


SAVED = ["model=sam_debug", "data=coco", "data.root=mine", "data.val_split=valid", "prompt=point", "seed=7"]
SAVED += ["cache.precision=float32"]


def inherit_from(overrides):
    return inherit(compose_config(overrides), compose_config(SAVED), overrides)


def test_inherit__takes_model_data_prompt_cache_and_seed():
    cfg = inherit_from(["stage=test"])

    assert (cfg.model.name, cfg.data.root, cfg.prompt.type, cfg.seed) == ("sam_debug", "mine", "point", 7)
    assert cfg.cache.precision == "float32"
    assert (cfg.stage.name, cfg.checkpoint) == ("test", "latest")


def test_inherit__a_group_replaces_its_whole_section():
    cfg = inherit_from(["stage=test", "data=voc", "data.root=other"])

    assert (cfg.data.format, cfg.data.root, cfg.data.val_split) == ("voc", "other", "val")
    assert cfg.model.name == "sam_debug"


@pytest.mark.parametrize(
    ("asked", "tile"),
    [
        ((), (512, 0.5)),
        (("data=voc", "data.root=other"), (512, 0.5)),
        (("data=voc", "data.root=other", "data.tile=256"), (256, 0.25)),
        (("data=voc", "data.root=other", "data.tile_overlap=0"), (512, 0)),
        (("data.tile=null",), (None, 0.5)),
    ],
)
def test_inherit__tiles_come_with_the_model_for_other_data_too(asked, tile):
    overrides, saved = ["stage=test", *asked], [*SAVED, "data.tile=512", "data.tile_overlap=0.5"]
    cfg = inherit(compose_config(overrides), compose_config(saved), overrides)
    assert (cfg.data.tile, cfg.data.tile_overlap) == tile


def test_inherit__a_key_is_laid_over_the_saved_section():
    cfg = inherit_from(["stage=test", "data.batch_size=1", "prompt.test_jitter=0.4", "trainer.threads=1", "seed=1"])

    assert (cfg.data.batch_size, cfg.data.root, cfg.data.val_split) == (1, "mine", "valid")
    assert (cfg.prompt.type, cfg.prompt.test_jitter) == ("point", 0.4)
    assert (cfg.trainer.threads, cfg.seed) == (1, 1)


def test_inherit__a_key_inside_a_section_that_was_null():
    cfg = inherit_from(["stage=test", "data.synthetic.scene=shapes"])

    assert cfg.data.synthetic.scene == "shapes"
    assert cfg.data.root == "mine"


def test_inherit__without_prompts_the_model_stays_as_it_was_trained():
    cfg = inherit_from(["stage=test", "prompt=auto", "prompt.test_jitter=0.4"])

    assert resolve(cfg)["prompt"] == resolve(compose_config(SAVED))["prompt"] | {"type": "auto", "test_jitter": 0.4}


def test_inherit__an_experiment_speaks_for_all_sections():
    cfg = inherit_from(["stage=test", "experiment=quickstart"])

    assert (cfg.model.name, cfg.data.format, cfg.prompt.type) == ("sam_micro", "synthetic", "box")


def test_inherit__nothing_where_all_sections_are_named():
    overrides = ["stage=test", "data.batch_size=1"]
    cfg = inherit(compose_config(overrides), compose_config(SAVED), [*INHERITED, *overrides])

    assert resolve(cfg) == resolve(compose_config(overrides))


def test_inherit__a_saved_configuration_without_types():
    plain = OmegaConf.create(resolve(compose_config(SAVED)))

    assert resolve(inherit(compose_config(["stage=test"]), plain, ["stage=test"])) == resolve(
        inherit_from(["stage=test"])
    )


def test_inherit__a_checkpoint_of_another_version():
    plain = OmegaConf.create(resolve(compose_config(SAVED)) | {"model": {"nmae": "sam_debug"}})

    with pytest.raises(ConfigError, match=r"made by another version of vpexp: unknown key 'model\.nmae'"):
        inherit(compose_config(), plain, [])


def test_inherit__leaves_both_configurations_alone():
    now, saved = compose_config(["stage=test", "data.batch_size=1"]), compose_config(SAVED)
    before = resolve(now), resolve(saved)

    inherit(now, saved, ["stage=test", "data.batch_size=1"])

    assert (resolve(now), resolve(saved)) == before
