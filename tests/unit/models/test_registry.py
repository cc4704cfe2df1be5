import pytest
import torch

from vpexp.errors import ConfigError
from vpexp.models.registry import get_model_info, list_models


def test_list_models__pattern():
    assert list_models("sam_*") == ["sam_tiny_vit", "sam_vit_b", "sam_micro", "sam_debug"]
    assert list_models("sam2*") == ["sam2_tiny", "sam2_small", "sam2_base_plus", "sam2_large", "sam2_debug"]
    assert len(list_models()) == 9
    assert list_models("*vit*") == ["sam_tiny_vit", "sam_vit_b"]
    assert list_models("nothing") == []


def test_get_model_info__unknown_name():
    with pytest.raises(ConfigError, match="unknown model 'sam_tiny_vi': did you mean 'sam_tiny_vit'"):
        get_model_info("sam_tiny_vi")
    with pytest.raises(ConfigError, match="unknown model 'xyz': known: sam_tiny_vit"):
        get_model_info("xyz")


@pytest.mark.parametrize("name", list_models())
def test_get_model_info__builds_what_it_names(name):
    info = get_model_info(name)
    with torch.device("meta"):
        sam = info.build(info.image_size)
    assert sam.image_size == info.image_size
    assert sam.embedding_size == info.image_size // 16
    assert "\n" not in info.recipe


@pytest.mark.parametrize(
    ("name", "image_size"),
    [
        ("sam_vit_b", 256),
        ("sam_tiny_vit", 256),
        ("sam_tiny_vit", 320),
        ("sam_micro", 112),
        ("sam_debug", 80),
        ("sam2_tiny", 160),
        ("sam2_debug", 96),
    ],
)
@torch.no_grad()
def test_build__any_image_size_runs(name, image_size):
    sam = get_model_info(name).build(image_size)
    side = image_size // 16
    embeddings = sam.encode_image(torch.randn(1, 3, image_size, image_size))
    assert embeddings.shape == (1, sam.embedding_channels, side, side)
    decoded = sam.decode(embeddings, torch.zeros(1, dtype=torch.int64), torch.rand(1, 1, 2), torch.ones(1, 1))
    assert decoded.low_res_logits_NKHW.shape == (1, 1, 4 * side, 4 * side)
    assert decoded.low_res_logits_NKHW.isfinite().all()


@pytest.mark.parametrize("image_size", [0, -16, 8, 1000])
@pytest.mark.parametrize("name", list_models())
def test_build__wrong_image_size(name, image_size):
    with pytest.raises(ConfigError, match=rf"model.image_size={image_size}: must be a multiple of (16|32)"):
        get_model_info(name).build(image_size)
