import pytest
import torch

from tests.references.official import build_official_sam, randomize
from vpexp.models.mask_decoder import MaskDecoder


@pytest.fixture(scope="module")
def decoders():
    official = randomize(build_official_sam(torch.nn.Identity(), 128)).mask_decoder
    decoder = MaskDecoder().eval()
    decoder.load_state_dict(official.state_dict())
    return decoder, official


def build_inputs():
    return torch.randn(3, 256, 8, 8), torch.randn(1, 256, 8, 8), torch.randn(3, 2, 256)


def test_mask_decoder__equals_official_with_gradients(decoders):
    decoder, official = decoders
    image, positions, prompts = build_inputs()
    logits, iou = decoder(image, positions, prompts, None)
    ((logits**2).mean() + iou.sum()).backward()
    # The official decoder takes one image; its prompts' mask embedding is a convenient place for three.
    expected_logits, expected_iou = official(
        image_embeddings=torch.zeros(1, 256, 8, 8),
        image_pe=positions,
        sparse_prompt_embeddings=prompts,
        dense_prompt_embeddings=image,
        multimask_output=False,
    )
    ((expected_logits**2).mean() + expected_iou.sum()).backward()
    assert expected_logits.std() > 0.05
    torch.testing.assert_close(logits, expected_logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(iou, expected_iou[:, 0], atol=1e-4, rtol=0)
    expected = dict(official.named_parameters())
    for name, parameter in decoder.named_parameters():
        if parameter.grad is None:
            # The unused mask tokens' networks: the official decoder computes them and drops the result.
            assert name.startswith("output_hypernetworks_mlps.")
            assert not expected[name].grad.any()
        else:
            torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_mask_decoder__no_prompts(decoders):
    decoder, _ = decoders
    logits, iou = decoder(torch.zeros(0, 256, 8, 8), torch.zeros(1, 256, 8, 8), torch.zeros(0, 2, 256), None)
    assert logits.shape == (0, 1, 32, 32)
    assert iou.shape == (0,)
