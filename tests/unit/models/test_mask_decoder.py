import copy

import pytest
import torch

from tests.references.official import build_official_sam, randomize
from vpexp.models.mask_decoder import MaskDecoder


@pytest.fixture(scope="module")
def decoders():
    torch.manual_seed(0)
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
    torch.testing.assert_close(iou, expected_iou, atol=1e-4, rtol=0)
    expected = dict(official.named_parameters())
    for name, parameter in decoder.named_parameters():
        if parameter.grad is None:
            # The unused mask tokens' networks: the official decoder computes them and drops the result.
            assert name.startswith("output_hypernetworks_mlps.")
            assert not expected[name].grad.any()
        else:
            torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("prompts", [1, 12, 64])
@pytest.mark.parametrize("images", [1, 3])
def test_mask_decoder__prompts_on_several_images_equal_the_official_calls_with_gradients(decoders, images, prompts):
    # Fixed: where a ReLU's input is 0 but for rounding, float32 and float64 may rightly differ.
    torch.manual_seed(0)
    inputs = torch.randn(images, 256, 8, 8), torch.randn(1, 256, 8, 8), torch.randn(prompts, 3, 256)
    index = torch.randint(images, (prompts,))
    truth, theirs = (
        run(decoders[1], decode_by_image, inputs, index, dtype) for dtype in (torch.float64, torch.float32)
    )
    exact, ours = (run(decoders[0], decode_at_once, inputs, index, dtype) for dtype in (torch.float64, torch.float32))
    largest = max(float(truth[name].abs().max()) for name in exact)
    for name, expected in truth.items():
        if name in exact:
            # Gradients that are zero by nature (of the keys' biases) are compared with the largest of all.
            scale = max(float(expected.abs().max()), largest / 1000)
            assert (exact[name] - expected).abs().max() < 1e-10 * scale, name
            # In float32 the official decoder is as far from the truth as ours.
            rounding = max(float((theirs[name] - expected).abs().max()), 1e-5 * scale)
            assert (ours[name] - expected).abs().max() < 2 * rounding, name


def run(module, decode, inputs, index, dtype):
    """Decode and differentiate; returns masks, predicted IoU, and the gradients of the embeddings and all parameters."""
    module = copy.deepcopy(module).to(dtype)
    module.zero_grad()
    embeddings, positions, tokens = (tensor.to(dtype, copy=True) for tensor in inputs)
    embeddings.requires_grad_()
    logits, iou = decode(module, embeddings, positions, tokens, index)
    ((logits**2).mean() + iou.mean()).backward()
    found = {"logits": logits, "iou": iou, "embeddings": embeddings.grad}
    found |= {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    return {name: tensor.detach() for name, tensor in found.items()}


def decode_at_once(decoder, embeddings, positions, tokens, index):
    return decoder(embeddings, positions, tokens, None, index if len(embeddings) > 1 else None)


def decode_by_image(official, embeddings, positions, tokens, index):
    logits, iou = tokens.new_zeros(len(tokens), 1, 32, 32), tokens.new_zeros(len(tokens), 1)
    for image in index.unique():
        mine = (index == image).nonzero()[:, 0]
        found_logits, found_iou = official(
            image_embeddings=embeddings[image : image + 1],
            image_pe=positions,
            sparse_prompt_embeddings=tokens[mine],
            dense_prompt_embeddings=tokens.new_zeros(len(mine), 256, 8, 8),
            multimask_output=False,
        )
        logits, iou = logits.index_copy(0, mine, found_logits), iou.index_copy(0, mine, found_iou)
    return logits, iou


@torch.no_grad()
def test_mask_decoder__no_prompts(decoders):
    decoder, _ = decoders
    for images in (0, 1):
        image = torch.zeros(images, 256, 8, 8)
        logits, iou = decoder(image, torch.zeros(1, 256, 8, 8), torch.zeros(0, 2, 256), None)
        assert logits.shape == (0, 1, 32, 32)
        assert iou.shape == (0, 1)
