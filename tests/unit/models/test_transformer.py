import torch

from tests.references.official import import_segment_anything, randomize
from vpexp.models.cross_attention import Attention, SharedImage
from vpexp.models.transformer import TwoWayTransformer


def build_inputs():
    return torch.randn(3, 20, 32), torch.randn(1, 20, 32), torch.randn(3, 6, 32)


def share(image, positions, index=None):
    return SharedImage(image, image + positions, index)


@torch.no_grad()
def test_two_way_transformer__equals_official():
    modeling = import_segment_anything().modeling
    official = randomize(modeling.TwoWayTransformer(depth=2, embedding_dim=32, num_heads=4, mlp_dim=48))
    transformer = TwoWayTransformer(depth=2, channels=32, heads=4, mlp_channels=48)
    transformer.load_state_dict(official.state_dict())
    image, positions, tokens = build_inputs()
    grid = image.transpose(1, 2).reshape(3, 32, 4, 5)
    grid_positions = positions.transpose(1, 2).reshape(1, 32, 4, 5).expand(3, -1, -1, -1)
    expected_tokens, expected_image = official(grid, grid_positions, tokens)
    found_tokens, found_image = transformer(share(image, positions), positions, tokens, None)
    torch.testing.assert_close(found_tokens, expected_tokens, atol=1e-4, rtol=0)
    torch.testing.assert_close(found_image, expected_image, atol=1e-4, rtol=0)


@torch.no_grad()
def test_two_way_transformer__masked_tokens_count_as_absent():
    transformer = randomize(TwoWayTransformer(depth=2, channels=32, heads=4, mlp_channels=48))
    image, positions, tokens = build_inputs()
    mask = torch.tensor([True, True, False, True, False, True]).expand(3, -1)
    kept_tokens, kept_image = transformer(share(image, positions), positions, tokens[:, mask[0]], None)
    masked_tokens, masked_image = transformer(share(image, positions), positions, tokens, mask)
    torch.testing.assert_close(masked_tokens[:, mask[0]], kept_tokens, atol=1e-5, rtol=0)
    torch.testing.assert_close(masked_image, kept_image, atol=1e-5, rtol=0)


@torch.no_grad()
def test_two_way_transformer__a_mask_of_all_tokens_changes_nothing():
    transformer = randomize(TwoWayTransformer(depth=2, channels=32, heads=4, mlp_channels=48))
    image, positions, tokens = build_inputs()
    without = transformer(share(image, positions), positions, tokens, None)
    with_mask = transformer(share(image, positions), positions, tokens, torch.ones(3, 6, dtype=torch.bool))
    torch.testing.assert_close(with_mask, without, atol=1e-5, rtol=0)


def test_two_way_transformer__one_image_for_all_prompts_and_several_by_index_equal_one_each():
    transformer = randomize(TwoWayTransformer(depth=2, channels=32, heads=4, mlp_channels=48))
    images, positions, tokens = build_inputs()
    index = torch.tensor([2, 0, 2])
    for shared, chosen, own in ((images[:1], None, images[:1].expand(3, -1, -1)), (images, index, images[index])):
        image = shared.clone().requires_grad_()
        each = own.clone().requires_grad_()
        found = transformer(share(image, positions, chosen), positions, tokens, None)
        expected = transformer(share(each, positions), positions, tokens, None)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        sum(part.square().sum() for part in found).backward()
        sum(part.square().sum() for part in expected).backward()
        summed = torch.zeros_like(image).index_add(
            0, index if chosen is not None else torch.zeros_like(index), each.grad
        )
        torch.testing.assert_close(image.grad, summed, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_attention__no_prompts():
    attention = Attention(32, 4, downsample_rate=2)
    tokens = torch.zeros(0, 5, 32)
    assert attention(tokens, tokens, tokens).shape == (0, 5, 32)
    shared = share(torch.zeros(1, 9, 32), torch.zeros(1, 9, 32))
    assert attention.from_tokens_to_shared_image(tokens, shared).shape == (0, 5, 32)
    assert attention.from_tokens_to_image(tokens, torch.zeros(1, 9, 32), torch.zeros(0, 9, 32)).shape == (0, 5, 32)
    assert attention.from_shared_image_to_tokens(shared, tokens, tokens, None).shape == (0, 9, 32)
