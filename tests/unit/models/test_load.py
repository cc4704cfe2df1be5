import pytest
import torch

from vpexp.errors import ConfigError, WeightsError
from vpexp.inference.load import load_model
from vpexp.models.weights import compute_state_hash, save_weights


def test_load_model__debug_is_always_the_same_and_leaves_the_seed_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = compute_state_hash(load_model("sam_debug"))
    assert torch.equal(torch.rand(1), expected)
    assert compute_state_hash(load_model("sam_debug", "auto")) == first


def test_load_model__random_follows_the_seed():
    def draw(seed):
        torch.manual_seed(seed)
        return compute_state_hash(load_model("sam_debug", "random"))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_load_model__from_a_file_in_eval_mode(tmp_path):
    torch.manual_seed(1)
    trained = load_model("sam_micro", "random")
    path = save_weights(trained, tmp_path / "micro.safetensors")
    loaded = load_model("sam_micro", path, image_size=128)
    assert compute_state_hash(loaded) == compute_state_hash(trained)
    assert loaded.image_size == 128
    assert not any(module.training for module in loaded.modules())


def test_load_model__errors(tmp_path):
    with pytest.raises(ConfigError, match="unknown model 'sam_vit_bb': did you mean 'sam_vit_b'"):
        load_model("sam_vit_bb")
    with pytest.raises(WeightsError, match="does not exist"):
        load_model("sam_debug", tmp_path / "nothing.pth")
    with pytest.raises(ConfigError, match=r"model.image_size=100: must be a multiple of 16, e.g. 96"):
        load_model("sam_debug", image_size=100)
