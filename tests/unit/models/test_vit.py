import pytest
import torch

from tests.references.official import build_official_vit, randomize
from tests.references.transformers_sam import build_transformers_sam, get_official_state
from vpexp.models.vit import (
    ImageEncoderViT,
    attend_biased,
    attend_lean,
    gather_relative_positions,
    resize_absolute_positions,
    resize_relative_positions,
)

SMALL = {"channels": 48, "depth": 3, "heads": 3, "window_size": 4, "global_attention_blocks": (1,)}
VIT_B = {"channels": 768, "depth": 12, "heads": 12, "window_size": 14, "global_attention_blocks": (2, 5, 8, 11)}


# Grids that the window divides, that leave a rest, and one smaller than the window.
@pytest.mark.parametrize("image_size", [128, 160, 32])
@torch.no_grad()
def test_image_encoder__equals_segment_anything(image_size):
    official = randomize(build_official_vit(image_size=image_size, **SMALL))
    encoder = ImageEncoderViT(image_size=image_size, **SMALL)
    encoder.load_state_dict(official.state_dict())
    images = torch.randn(2, 3, image_size, image_size)
    expected = official(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(encoder(images), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_image_encoder__equals_transformers():
    reference = randomize(build_transformers_sam(image_size=160, **SMALL))
    encoder = ImageEncoderViT(image_size=160, **SMALL)
    state = get_official_state(reference)
    encoder.load_state_dict(
        {key.removeprefix("image_encoder."): value for key, value in state.items() if key.startswith("image_encoder.")}
    )
    images = torch.randn(2, 3, 160, 160)
    expected = reference.get_image_embeddings(images)
    torch.testing.assert_close(encoder(images), expected, atol=1e-4, rtol=0)


@pytest.mark.slow
@torch.no_grad()
def test_image_encoder__vit_b_at_1024_equals_transformers():
    reference = randomize(build_transformers_sam(image_size=1024, **VIT_B))
    encoder = ImageEncoderViT(image_size=1024, **VIT_B)
    state = get_official_state(reference)
    encoder.load_state_dict(
        {key.removeprefix("image_encoder."): value for key, value in state.items() if key.startswith("image_encoder.")}
    )
    images = torch.randn(1, 3, 1024, 1024)
    expected = reference.get_image_embeddings(images)
    torch.testing.assert_close(encoder(images), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_fit_positions__relative_positions_equal_official_interpolation():
    # The official encoder interpolates, in its forward pass, tables that were made for another size.
    official = randomize(build_official_vit(image_size=96, **SMALL))
    for name in ("rel_pos_h", "rel_pos_w"):
        setattr(official.blocks[1].attn, name, torch.nn.Parameter(torch.randn(27, 16)))
    encoder = ImageEncoderViT(image_size=96, **SMALL)
    state = official.state_dict()
    encoder.fit_positions(state)
    encoder.load_state_dict(state)
    images = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(encoder(images), official(images), atol=1e-4, rtol=0)


def test_fit_positions__leaves_windowed_tables_alone():
    encoder = ImageEncoderViT(image_size=96, **SMALL)
    wrong = torch.zeros(99, 16)
    state = {"image_encoder.blocks.0.attn.rel_pos_h": wrong, "image_encoder.blocks.1.attn.rel_pos_h": wrong}
    encoder.fit_positions(state, prefix="image_encoder.")
    assert state["image_encoder.blocks.0.attn.rel_pos_h"] is wrong
    assert state["image_encoder.blocks.1.attn.rel_pos_h"].shape == (11, 16)


def test_gather_relative_positions__entry_is_query_minus_key():
    table = torch.arange(7.0)[:, None]
    gathered = gather_relative_positions(table, 4)
    assert gathered.shape == (4, 4, 1)
    assert gathered[0, 0] == 3
    assert gathered[3, 0] == 6
    assert gathered[0, 3] == 0


def test_resize_positions__same_size_is_untouched():
    table, grid = torch.randn(7, 8), torch.randn(1, 4, 4, 8)
    assert resize_relative_positions(table, 7) is table
    assert resize_absolute_positions(grid, 4) is grid


def test_resize_absolute_positions__keeps_a_constant():
    resized = resize_absolute_positions(torch.full((1, 4, 4, 2), 3.0), 6)
    torch.testing.assert_close(resized, torch.full((1, 6, 6, 2), 3.0))


def test_attend_lean__same_values_and_gradients_as_with_the_bias_of_all_pairs():
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 20, 8)] * 3 + [(2, 3, 20, 4), (2, 3, 20, 5)]
    found = []
    for attend in (attend_biased, attend_lean):
        generator.manual_seed(0)
        inputs = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
        output = attend(*inputs)
        output.square().sum().backward()
        found.append([output.detach(), *(value.grad for value in inputs)])
    for lean, biased in zip(*found, strict=True):
        torch.testing.assert_close(lean, biased, rtol=1e-9, atol=1e-12)
