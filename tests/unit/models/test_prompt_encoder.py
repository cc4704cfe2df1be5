import pytest
import torch

from tests.references.official import build_official_sam, randomize
from vpexp.models.prompt_encoder import PromptEncoder


@pytest.fixture(scope="module")
def encoders():
    official = randomize(build_official_sam(torch.nn.Identity(), 128)).prompt_encoder
    encoder = PromptEncoder(image_size=128, embedding_size=8)
    encoder.load_state_dict(official.state_dict())
    return encoder, official


@torch.no_grad()
def test_embed_points__equals_official_points(encoders):
    encoder, official = encoders
    points = torch.rand(3, 4, 2) * 128
    labels = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 1], [1, -1, 1, 0]])
    expected, _ = official(points=(points, labels), boxes=None, masks=None)
    embedded = encoder.embed_points(points, labels)
    torch.testing.assert_close(embedded, expected[:, :4], atol=1e-4, rtol=0)
    # The official code appends its padding token itself.
    padding = encoder.embed_points(torch.zeros(3, 1, 2), torch.full((3, 1), -1.0))
    torch.testing.assert_close(padding, expected[:, 4:], atol=1e-4, rtol=0)


@torch.no_grad()
def test_embed_points__equals_official_boxes(encoders):
    encoder, official = encoders
    boxes = torch.rand(5, 4) * 128
    expected, _ = official(points=None, boxes=boxes, masks=None)
    labels = torch.tensor([2.0, 3.0]).expand(5, 2)
    torch.testing.assert_close(encoder.embed_points(boxes.view(5, 2, 2), labels), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_embed_masks__equals_official(encoders):
    encoder, official = encoders
    masks = torch.randn(3, 1, 32, 32)
    _, expected = official(points=None, boxes=None, masks=masks)
    torch.testing.assert_close(encoder.embed_masks(masks), expected, atol=1e-4, rtol=0)
    _, expected = official(points=None, boxes=torch.zeros(2, 4), masks=None)
    torch.testing.assert_close(encoder.embed_masks(None).expand_as(expected), expected, atol=0, rtol=0)


@torch.no_grad()
def test_compute_image_positions__equals_official(encoders):
    encoder, official = encoders
    torch.testing.assert_close(encoder.compute_image_positions(), official.get_dense_pe(), atol=1e-4, rtol=0)


def test_embed_points__stays_in_float32_under_autocast(encoders):
    encoder, _ = encoders
    points, labels = torch.rand(2, 3, 2) * 128, torch.ones(2, 3)
    exact = encoder.embed_points(points, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = encoder.embed_points(points, labels)
    torch.testing.assert_close(mixed, exact, atol=1e-5, rtol=0)
