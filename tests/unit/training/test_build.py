"""From configuration to loss, optimizer, schedule and callbacks; what is wrong is told in one line."""

import pytest
import torch
from omegaconf import OmegaConf

from vpexp.config import compose_config
from vpexp.config.schema import LossConfig
from vpexp.errors import ConfigError
from vpexp.models.registry import build_sam_debug
from vpexp.training.build import build_callbacks, build_loss, build_optimizer_factory, build_scheduler_factory
from vpexp.training.callbacks import EarlyStoppingAfter, TrainingProgress


@pytest.fixture(scope="module")
def cfg():
    return compose_config([])


def build_optimizer(section):
    return build_optimizer_factory(OmegaConf.create(section))(build_sam_debug(64))


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"_target_": "nowhere.Loss"}, r"loss\._target_=nowhere\.Loss cannot be imported"),
        ({"_target_": "builtins.int"}, r"loss\._target_=builtins\.int: int\(\) argument must be"),
    ],
)
def test_build_loss__mistakes_are_one_line(section, words):
    with pytest.raises(ConfigError, match=words):
        build_loss(LossConfig(**section))


@pytest.mark.parametrize("partial", [True, False])
def test_build__partial_of_hydra_changes_nothing(partial):
    marked = {"_partial_": True} if partial else {}
    optimizer = build_optimizer({"_target_": "torch.optim.SGD", "lr": 0.1, **marked})
    section = {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 3, **marked}
    built = build_scheduler_factory(OmegaConf.create(section))(optimizer, 10)
    assert (optimizer.param_groups[0]["lr"], built["scheduler"].step_size, built["interval"]) == (0.1, 3, "epoch")


def test_build__defaults_are_adam_at_1e_5_and_a_constant_rate(cfg):
    optimizer = build_optimizer_factory(cfg.optimizer)(build_sam_debug(64))
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.param_groups[0]["lr"] == 1e-5
    built = build_scheduler_factory(cfg.scheduler)(optimizer, 10)
    assert built["interval"] == "step"
    scheduler = built["scheduler"]
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 1e-5
    loss = build_loss(OmegaConf.to_object(cfg.loss)).settings
    assert (loss.focal_weight, loss.dice_weight, loss.iou_weight) == (20, 1, 1)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("scheduler", ["constant", "linear", "cosine", "linear_warmup"])
def test_build__every_option_of_the_groups(name, scheduler):
    cfg = compose_config([f"optimizer={name}", f"scheduler={scheduler}"])
    optimizer = build_optimizer_factory(cfg.optimizer)(build_sam_debug(64))
    assert type(optimizer).__name__.lower() == name
    assert build_scheduler_factory(cfg.scheduler)(optimizer, 10)["scheduler"].get_last_lr()[0] > 0


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"_target_": "torch.optim.Adamm", "lr": 1e-3}, r"optimizer: .*Adamm"),
        ({"_target_": "torch.optim.Adam", "learning_rate": 1e-3}, r"optimizer: .*learning_rate"),
        ({"_target_": "torch.optim.Adam", "lr": -1.0}, r"optimizer: .*learning rate"),
        ({"lr": 1e-3}, "optimizer has no _target_"),
    ],
)
def test_build_optimizer__mistakes_are_one_line(section, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build_optimizer(section)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+scheduler.gamma=0.5"], r"StepLR.*'step_size'"),
        (
            ["+scheduler.step_size=1", "scheduler.warmup_steps=5"],
            r"StepLR takes no warmup_steps .*~scheduler.warmup_steps",
        ),
        (["+scheduler.step_size=1", "+scheduler.interval=hour"], r"scheduler.interval=hour: must be step or epoch"),
    ],
)
def test_build_scheduler__options_that_torch_does_not_take_are_one_line(overrides, words):
    cfg = compose_config(["scheduler._target_=torch.optim.lr_scheduler.StepLR", *overrides])
    optimizer = build_optimizer({"_target_": "torch.optim.Adam"})
    with pytest.raises(ConfigError, match=words) as caught:
        build_scheduler_factory(cfg.scheduler)(optimizer, 10)
    assert "\n" not in str(caught.value)


def test_build_scheduler__unknown_option_is_one_line():
    section = {"_target_": "vpexp.training.schedulers.build_linear", "warmup": 3}
    optimizer = build_optimizer({"_target_": "torch.optim.Adam"})
    with pytest.raises(ConfigError, match=r"scheduler: .*warmup") as caught:
        build_scheduler_factory(OmegaConf.create(section))(optimizer, 10)
    assert "\n" not in str(caught.value)


def test_build_callbacks__null_switches_off(cfg):
    stopping, progress = build_callbacks(cfg.callbacks)
    assert isinstance(stopping, EarlyStoppingAfter)
    assert (stopping.patience, stopping.min_epochs, abs(stopping.min_delta)) == (5, 3, 1e-3)
    assert isinstance(progress, TrainingProgress)
    fewer = build_callbacks(compose_config(["callbacks.early_stopping=null"]).callbacks)
    assert [type(callback) for callback in fewer] == [TrainingProgress]
    assert build_callbacks(OmegaConf.create({})) == []


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"_target_": "vpexp.training.callbacks.Nothing"}, "callbacks.mine: .*Nothing"),
        ({"_target_": "vpexp.training.callbacks.EarlyStoppingAfter", "patient": 3}, "callbacks.mine: "),
        ({"_target_": "torch.nn.Identity"}, "callbacks.mine: Identity is no callback"),
        ({"_target_": "pytorch_lightning.callbacks.Timer", "interval": "year"}, "callbacks.mine: "),
    ],
)
def test_build_callbacks__mistakes_name_the_entry(section, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build_callbacks(OmegaConf.create({"mine": section}))
    assert "\n" not in str(caught.value)


def test_build_optimizer__the_encoder_learns_at_its_own_rate():
    sam = build_sam_debug(64)
    options = {"_target_": "torch.optim.SGD", "lr": 0.1, "lr_encoder": 0.02, "layer_decay": 0.5, "momentum": 0.9}
    optimizer = build_optimizer_factory(OmegaConf.create(options))(sam)
    rates = {id(value): group["lr"] for group in optimizer.param_groups for value in group["params"]}
    assert rates[id(sam.mask_decoder.iou_token.weight)] == optimizer.param_groups[0]["lr"] == 0.1
    assert rates[id(sam.image_encoder.neck[0].weight)] == 0.02
    assert rates[id(sam.image_encoder.blocks[-1].norm1.weight)] == pytest.approx(0.01)
    assert len(rates) == len(list(sam.parameters()))
