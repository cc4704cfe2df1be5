"""Models from a configuration."""

import pytest
import torch

from vpexp.config.schema import ModelConfig
from vpexp.errors import ConfigError, WeightsError
from vpexp.inference.torch_model import load_sam
from vpexp.models.registry import build_sam_debug
from vpexp.models.weights import compute_state_hash, save_weights


def build_section(**changes):
    section = {
        "name": "sam_debug",
        "_target_": "vpexp.models.registry.build_sam_debug",
        "image_size": 64,
        "weights": "random",
    }
    return ModelConfig(**{**section, **changes})


def test_load_sam__random_weights_follow_the_seed_alone(tmp_path):
    torch.manual_seed(1)
    first = compute_state_hash(load_sam(build_section(), seed=3, weights_dir=tmp_path))
    state = torch.random.get_rng_state()
    second = load_sam(build_section(), seed=3, weights_dir=tmp_path)
    assert compute_state_hash(second) == first
    assert torch.equal(torch.random.get_rng_state(), state)  # and draw nothing from the run's own numbers
    assert compute_state_hash(load_sam(build_section(), seed=4, weights_dir=tmp_path)) != first
    assert not second.training


def test_load_sam__weights_of_a_file_and_another_size(tmp_path):
    path = save_weights(build_sam_debug(64), tmp_path / "w.safetensors")
    sam = load_sam(build_section(weights=str(path)), seed=0, weights_dir=tmp_path)
    assert compute_state_hash(sam) == compute_state_hash(
        load_sam(build_section(weights=str(path)), seed=9, weights_dir=tmp_path)
    )
    assert load_sam(build_section(image_size=96), seed=0, weights_dir=tmp_path).image_size == 96


def test_load_sam__a_users_own_builder(tmp_path):
    assert load_sam(build_section(name="mine"), seed=0, weights_dir=tmp_path).image_size == 64
    with pytest.raises(ConfigError, match="no file for model mine"):
        load_sam(build_section(name="mine", weights="auto"), seed=0, weights_dir=tmp_path)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"_target_": "vpexp.models.registry.build_sam_dbug"}, ConfigError, "cannot be imported"),
        ({"_target_": "nowhere.build"}, ConfigError, "cannot be imported"),
        ({"_target_": "builtins.dict"}, ConfigError, "returned a dict, not a Sam"),
        ({"weights": "/nowhere/w.pth"}, WeightsError, "/nowhere/w.pth"),
        ({"name": "mine", "weights": "/nowhere/w.pth"}, WeightsError, "/nowhere/w.pth"),
    ],
)
def test_load_sam__mistakes_are_one_line(tmp_path, changes, error, words):
    with pytest.raises(error, match=words) as caught:
        load_sam(build_section(**changes), seed=0, weights_dir=tmp_path)
    assert "\n" not in str(caught.value)
