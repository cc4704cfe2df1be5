"""Learning rates, step by step."""

import math

import pytest
import torch

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
