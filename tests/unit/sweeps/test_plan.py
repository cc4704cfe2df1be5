import pytest

from vpexp.command_line import read_command_line
from vpexp.errors import ConfigError
from vpexp.sweeps.plan import plan_sweep


def plan(*overrides, flags=()):
    return plan_sweep(read_command_line(["-m", *flags, "model=sam_debug", *overrides]))


def test_plan_sweep__grid():
    planned = plan("optimizer.lr=1e-5,1e-4", "data.batch_size=choice(1,2,4)", "seed=7")

    assert planned.varying == ("optimizer.lr", "data.batch_size")
    assert planned.jobs == 6
    assert planned.workers == 1
    assert not planned.searches
    assert (planned.cfg.optimizer.lr, planned.cfg.data.batch_size, planned.cfg.seed) == (1e-5, 1, 7)
    assert "hydra" not in planned.cfg


def test_plan_sweep__lr_batch_and_values_given_over_it():
    assert plan("sweep=lr_batch").jobs == 9

    planned = plan("sweep=lr_batch", "optimizer.lr=3e-5,3e-4")
    assert planned.jobs == 6
    assert sorted(planned.varying) == ["data.batch_size", "optimizer.lr"]
    assert planned.cfg.optimizer.lr == 3e-5


@pytest.mark.parametrize(
    "override", ["optimizer.lr=1e-4,0.0001", "+tracking.tags.k=x,y,x", "data.batch_size=choice(2,1,2)"]
)
def test_plan_sweep__the_same_job_twice_is_one_line(override):
    with pytest.raises(ConfigError, match="a value stands there twice"):
        plan(override)


def test_plan_sweep__models_and_data_vary_too(tmp_path):
    planned = plan("model=sam_debug,sam_micro", "data=coco,voc", f"data.root='{tmp_path}'")

    assert (planned.varying, planned.jobs) == (("model", "data"), 4)
    assert (planned.cfg.model.name, planned.cfg.data.format) == ("sam_debug", "coco")


def test_plan_sweep__folder_is_absolute_and_below_output_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert plan("seed=1,2").folder.parent == tmp_path / "outputs" / "sweeps"
    assert plan("seed=1,2", "paths.output_dir=elsewhere").folder.parent == tmp_path / "elsewhere" / "sweeps"
    assert list(tmp_path.iterdir()) == []


def test_plan_sweep__own_groups(tmp_path):
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "mine.yaml").write_text("_target_: torch.optim.SGD\nlr: 0.5\n")

    planned = plan("optimizer=mine,adam", flags=["--config-dir", str(tmp_path)])

    assert planned.cfg.optimizer.lr == 0.5


def test_plan_sweep__every_value_is_composed_once():
    with pytest.raises(ConfigError, match="scheduler has no option 'cosin'; did you mean 'cosine'"):
        plan("optimizer.lr=1e-5,1e-4", "scheduler=constant,cosin")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lrr=1,2"], "optimizer.lrr"),
        (["optimizer.lr=1e-5,"], "optimizer.lr"),
        (["trainer.devices=2", "seed=1,2"], "trainer.devices=2"),
    ],
)
def test_plan_sweep__mistakes(overrides, message):
    with pytest.raises(ConfigError) as caught:
        plan(*overrides)

    assert message in str(caught.value)
