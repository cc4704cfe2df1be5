import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from vpexp.config import compose_config, load_config, save_config
from vpexp.config.compose import compose_from
from vpexp.errors import ConfigError


def test_compose_config__is_closed_and_typed():
    cfg = compose_config(["data.batch_size=4", "optimizer.lr=1e-4"])

    assert (cfg.data.batch_size, cfg.optimizer.lr) == (4, 1e-4)
    assert "hydra" not in cfg
    with pytest.raises(Exception, match="not in"):
        cfg.data.nope = 1


def test_compose_config__adds_groups_of_the_user(tmp_path):
    folder = tmp_path / "it's my=conf, really"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "mine.yaml").write_text("format: voc\nroot: grapes\n")

    cfg = compose_config(["data=mine", "data.batch_size=3"], config_dir=folder)

    assert (cfg.data.name, cfg.data.root, cfg.data.batch_size, cfg.data.val_fraction) == ("voc", "grapes", 3, 0.2)


def test_compose_config__config_dir_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="is no folder"):
        compose_config([], config_dir=tmp_path / "nope")


def test_compose_config__works_inside_another_hydra_application(tmp_path):
    (tmp_path / "theirs.yaml").write_text("a: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.2"):
        hydra = GlobalHydra.instance().hydra

        assert compose_config(["seed=5"]).seed == 5

        assert GlobalHydra.instance().hydra is hydra
        assert compose("theirs").a == 1
    assert not GlobalHydra.instance().is_initialized()


def test_compose_config__leaves_hydra_as_it_was_after_an_error():
    with pytest.raises(ConfigError, match=r"did you mean 'data\.batch_size'"):
        compose_config(["data.batch_sise=1"])

    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize(
    "override", ["tracking.tags.project=7", "+tracking.tags.project=7", "tracking.tags={project:7}"]
)
def test_compose_config__tags_are_texts_and_need_no_plus(override, tmp_path):
    cfg = compose_config(["tracking=none", override])
    save_config(cfg, tmp_path / "config.yaml")

    assert cfg.tracking.tags == load_config(tmp_path / "config.yaml").tracking.tags == {"project": "7"}
    again = compose_from(tmp_path, "config", ["tracking.tags.team=grapes"])
    assert again.tracking.tags == {"project": "7", "team": "grapes"}
    with pytest.raises(ConfigError, match=r"tracking\.tags\.a"):
        compose_config(["tracking.tags.a.b=1"])
