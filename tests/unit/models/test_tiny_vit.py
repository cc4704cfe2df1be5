import pytest
import torch

from tests.references.official import build_official_tiny_vit, randomize, run_official_tiny_vit
from vpexp.models.tiny_vit import TinyViT

SMALL = {"channels": (16, 32, 32, 320), "depths": (1, 1, 2, 1), "heads": (1, 2, 2, 10), "window_sizes": (7, 7, 14, 7)}
FULL = {"channels": (64, 128, 160, 320), "depths": (2, 2, 6, 2), "heads": (2, 4, 5, 10), "window_sizes": (7, 7, 14, 7)}


def build_pair(image_size, dimensions):
    official = randomize(build_official_tiny_vit(image_size=image_size, **dimensions))
    encoder = TinyViT(**dimensions).eval()
    state = {key: value for key, value in official.state_dict().items() if not key.startswith("norm_head.")}
    encoder.load_state_dict(state)
    # The official attention keeps a copy of its biases, made when eval() is called.
    return encoder, official.train().eval()


# 112: the last grid is one window exactly; 80: grids of odd sides; the others leave a rest in the windows.
@pytest.mark.parametrize("image_size", [256, 320, 112, 80, 32])
@torch.no_grad()
def test_tiny_vit__equals_mobile_sam_at_any_size(image_size):
    encoder, official = build_pair(image_size, SMALL)
    images = torch.randn(2, 3, image_size, image_size)
    expected = run_official_tiny_vit(official, images)
    assert expected.std() > 0.1
    torch.testing.assert_close(encoder(images), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_tiny_vit__full_dimensions_equal_mobile_sam():
    encoder, official = build_pair(512, FULL)
    images = torch.randn(1, 3, 512, 512)
    torch.testing.assert_close(encoder(images), run_official_tiny_vit(official, images), atol=1e-4, rtol=0)


@pytest.mark.slow
@torch.no_grad()
def test_tiny_vit__full_dimensions_at_1024_equal_mobile_sam():
    encoder, official = build_pair(1024, FULL)
    images = torch.randn(1, 3, 1024, 1024)
    torch.testing.assert_close(encoder(images), official(images), atol=1e-4, rtol=0)


def test_tiny_vit__gradients_equal_mobile_sam():
    encoder, official = build_pair(80, SMALL)
    # The official encoder looks its biases up, with gradients, in training mode only.
    for module in official.modules():
        if hasattr(module, "attention_biases"):
            module.train()
    images = torch.randn(1, 3, 80, 80)
    encoder(images).square().mean().backward()
    run_official_tiny_vit(official, images).square().mean().backward()
    expected = dict(official.named_parameters())
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-4, rtol=1e-3)


def test_build_unused_head__has_the_official_shapes():
    encoder = TinyViT(**SMALL, unused_classes=1000)
    shapes = {name: tuple(tensor.shape) for name, tensor in encoder.build_unused_head().items()}
    assert shapes == {
        "norm_head.weight": (320,),
        "norm_head.bias": (320,),
        "head.weight": (1000, 320),
        "head.bias": (1000,),
    }
    assert TinyViT(**SMALL).build_unused_head() == {}
