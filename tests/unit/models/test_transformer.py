import torch

from tests.references.official import import_segment_anything, randomize
from vpexp.models.transformer import Attention, TwoWayTransformer


def build_inputs():
    return torch.randn(3, 20, 32), torch.randn(1, 20, 32), torch.randn(3, 6, 32)


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
    found_tokens, found_image = transformer(image, positions, tokens, None)
    torch.testing.assert_close(found_tokens, expected_tokens, atol=1e-4, rtol=0)
    torch.testing.assert_close(found_image, expected_image, atol=1e-4, rtol=0)


@torch.no_grad()
def test_two_way_transformer__masked_tokens_count_as_absent():
    transformer = randomize(TwoWayTransformer(depth=2, channels=32, heads=4, mlp_channels=48))
    image, positions, tokens = build_inputs()
    mask = torch.tensor([True, True, False, True, False, True]).expand(3, -1)
    kept_tokens, kept_image = transformer(image, positions, tokens[:, mask[0]], None)
    masked_tokens, masked_image = transformer(image, positions, tokens, mask)
    torch.testing.assert_close(masked_tokens[:, mask[0]], kept_tokens, atol=1e-5, rtol=0)
    torch.testing.assert_close(masked_image, kept_image, atol=1e-5, rtol=0)


@torch.no_grad()
def test_two_way_transformer__a_mask_of_all_tokens_changes_nothing():
    transformer = randomize(TwoWayTransformer(depth=2, channels=32, heads=4, mlp_channels=48))
    image, positions, tokens = build_inputs()
    without = transformer(image, positions, tokens, None)
    with_mask = transformer(image, positions, tokens, torch.ones(3, 6, dtype=torch.bool))
    torch.testing.assert_close(with_mask, without, atol=1e-5, rtol=0)


@torch.no_grad()
def test_attention__no_prompts():
    attended = Attention(32, 4, downsample_rate=2)(torch.zeros(0, 5, 32), torch.zeros(0, 9, 32), torch.zeros(0, 9, 32))
    assert attended.shape == (0, 5, 32)
