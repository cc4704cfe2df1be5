"""Learning rates, step by step."""

import math
import shutil

import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Callback

from vpexp.training.build import build_scheduler_factory
from vpexp.training.callbacks import build_checkpoint_callbacks
from vpexp.training.schedulers import build_constant, build_cosine, build_linear


def follow(build, steps, **options):
    """The rates that the optimizer's steps 0, 1, ... are taken with."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = build(optimizer, **options)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_constant__stays():
    assert follow(build_constant, 5, total_steps=5) == [2.0] * 5


@pytest.mark.parametrize("build", [build_constant, build_linear, build_cosine])
def test_warmup__rises_in_equal_steps_and_never_starts_at_zero(build):
    rates = follow(build, 4, total_steps=100, warmup_steps=3)
    assert rates == pytest.approx([0.5, 1.0, 1.5, 2.0])


def test_linear__falls_in_a_straight_line():
    assert follow(build_linear, 5, total_steps=4) == pytest.approx([2.0, 1.5, 1.0, 0.5, 0.0])
    assert follow(build_linear, 5, total_steps=4, final_factor=0.5) == pytest.approx([2.0, 1.75, 1.5, 1.25, 1.0])
    assert follow(build_linear, 5, total_steps=4, warmup_steps=2) == pytest.approx([2 / 3, 4 / 3, 2.0, 1.0, 0.0])


def test_cosine__falls_along_half_a_cosine():
    rates = follow(build_cosine, 9, total_steps=8)
    assert rates == pytest.approx([1 + math.cos(math.pi * step / 8) for step in range(9)])
    tenth = follow(build_cosine, 9, total_steps=8, final_factor=0.1)
    assert tenth[0] == pytest.approx(2.0)
    assert tenth[4] == pytest.approx(1.1)
    assert tenth[8] == pytest.approx(0.2)


@pytest.mark.parametrize("build", [build_linear, build_cosine])
def test_decay__stays_at_its_end(build):
    assert follow(build, 8, total_steps=3, final_factor=0.25)[4:] == pytest.approx([0.5] * 4)


@pytest.mark.parametrize("build", [build_constant, build_linear, build_cosine])
def test_warmup__longer_than_the_training_only_rises(build):
    rates = follow(build, 4, total_steps=4, warmup_steps=9)
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8])


class EpochWatch(Callback):
    """Notes rate and F1 of each epoch, and keeps the checkpoint of the first."""

    def __init__(self, folder):
        self.folder, self.rates, self.scores = folder, [], []

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1 and not (self.folder / "first.ckpt").exists():
            shutil.copy(self.folder / "last.ckpt", self.folder / "first.ckpt")

    def on_train_epoch_end(self, trainer, pl_module):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.scores.append(float(trainer.callback_metrics["val/f1-score"]))


def follow_epochs(optimizer, scheduler, steps, scores):
    """The rates after each epoch, by torch alone; ``steps`` of the schedule an epoch, or one with the epoch's score."""
    rates = []
    for score in scores:
        for _ in range(steps or 1):
            optimizer.step()
            scheduler.step(*([] if steps else [score]))
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.fixture
def fit(tmp_path, build_module, build_data, build_plain_trainer):
    """Fit three epochs with a schedule, from the start or from a checkpoint."""

    def run(section, watch, start=None):
        module = build_module(build_scheduler=build_scheduler_factory(OmegaConf.create(section)))
        callbacks = [watch, *build_checkpoint_callbacks(tmp_path)]
        trainer = build_plain_trainer(*callbacks, max_epochs=3, enable_checkpointing=True)
        trainer.fit(module, datamodule=build_data(), ckpt_path=start, weights_only=True if start else None)
        return trainer, module.sam.state_dict()

    return run


@pytest.mark.parametrize(
    ("name", "options", "counts"),
    [
        ("StepLR", {"step_size": 2, "gamma": 0.5, "interval": "step"}, "step"),
        ("CosineAnnealingLR", {"T_max": 3}, "epoch"),
        ("OneCycleLR", {"max_lr": 0.01}, "step"),
        ("ReduceLROnPlateau", {"patience": 0, "factor": 0.5, "threshold": 0.5}, "score"),
    ],
)
def test_fit__schedules_of_torch_are_torchs_own_and_resume_to_the_bit(tmp_path, fit, name, options, counts):
    section = {"_target_": f"torch.optim.lr_scheduler.{name}", "warmup_steps": 0, **options}
    watch, again = EpochWatch(tmp_path), EpochWatch(tmp_path)

    trainer, weights = fit(section, watch)
    steps = {"epoch": 1, "step": trainer.global_step // 3, "score": 0}[counts]
    assert counts != "step" or steps > 1
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    given = {key: value for key, value in options.items() if key != "interval"}
    given |= {"total_steps": trainer.global_step} if name == "OneCycleLR" else {}
    given |= {"mode": "max"} if counts == "score" else {}
    reference = getattr(torch.optim.lr_scheduler, name)(optimizer, **given)
    assert watch.rates == follow_epochs(optimizer, reference, steps, watch.scores)
    assert len(set(watch.rates)) > 1

    _, resumed = fit(section, again, tmp_path / "first.ckpt")
    assert again.rates[-2:] == watch.rates[1:]
    assert all(torch.equal(weights[key], resumed[key]) for key in weights)
