"""The modules that are exported compute what training and testing compute, traced and with prompts of any number."""

import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from vpexp.data.geometry import compute_resized_size
from vpexp.deploy.graph import ExportableDecoder, ExportableEncoder, _compute_resized_size
from vpexp.inference.graph_predictor import DECODER_OUTPUTS
from vpexp.models.mask_decoder import ALL_MASKS
from vpexp.models.sam import upscale_logits

SIZE = 64
LOW = SIZE // 4
ORIGINALS = [(48, 64), (100, 37), (64, 64), (20, 31)]
SIDES = st.integers(1, 12_000)


@pytest.fixture(scope="module")
def traced(debug_sam):
    decoder = ExportableDecoder(debug_sam, "auto").eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python numbers that become constants
        return torch.jit.trace(decoder, decoder.build_example(), check_trace=False)


@pytest.fixture(scope="module")
def embedding(debug_sam):
    with torch.no_grad():
        return debug_sam.encode_image(torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def draw_prompts(kind, count):
    """Coordinates [N, P, 2] in pixels of the resized image, and labels [N, P]."""
    if kind == "box":
        corners = draw(count, 2, 2).mul(SIZE).sort(dim=1).values
        return corners, torch.tensor([2.0, 3.0]).expand(count, 2)
    if kind == "point":
        return draw(count, 1, 2) * SIZE, torch.ones(count, 1)
    if kind == "filled":  # as vpexp's own prompts of points are
        coords = draw(count, 2, 2) * SIZE
        return coords, torch.tensor([1.0, -1.0]).expand(count, 2)
    coords = draw(count, 3, 2).mul(SIZE).sort(dim=1).values
    rows = [[2, 3, -1], [1, -1, -1], [1, 0, 1], [2, 3, 0]]
    return coords, torch.tensor([rows[index % len(rows)] for index in range(count)], dtype=torch.float32)


def decode_as_testing_does(sam, embedding, coords, labels, *, original_hw, mask_input=None, rule="auto"):
    index = torch.zeros(len(labels), dtype=torch.int64)
    decoded = sam.decode(embedding, index, coords, labels, mask_input, masks=ALL_MASKS)
    all_masks, all_ious = decoded.low_res_logits_NKHW, decoded.iou_NK
    tokens = []
    for ious, own in zip(all_ious.tolist(), labels.tolist(), strict=True):
        alone = rule == "auto" and sum(label != -1 for label in own) == 1 and mask_input is None
        tokens.append(ious.index(max(ious[1:]), 1) if alone or rule == "always" else 0)
    chosen = [(place, token) for place, token in enumerate(tokens)]
    low_res, iou = (torch.stack([found[place] for place in chosen])[:, None] for found in (all_masks, all_ious))
    logits = upscale_logits(
        low_res, image_size=SIZE, resized_hw=compute_resized_size(*original_hw, SIZE), original_hw=original_hw
    )
    return logits[:, None], iou, low_res, all_masks, all_ious


def assert_same(got, expected):
    for name, ours, theirs in zip(DECODER_OUTPUTS, got, expected, strict=True):
        assert ours.shape == theirs.shape, name
        torch.testing.assert_close(
            ours, theirs, atol=2e-5 * max(1.0, float(theirs.std(correction=0))), rtol=1e-5, msg=name
        )


@pytest.mark.parametrize("kind", ["box", "point", "filled", "mixed"])
@pytest.mark.parametrize("count", [1, 3, 12])
@torch.no_grad()
def test_decoder__traced_equals_what_testing_computes(debug_sam, traced, embedding, kind, count):
    coords, labels = draw_prompts(kind, count)
    original_hw = ORIGINALS[count % len(ORIGINALS)]

    got = traced(
        embedding, coords, labels, torch.zeros(1, 1, LOW, LOW), torch.zeros(1, 1), torch.tensor([list(original_hw)])
    )

    assert got[0].shape == (count, 1, *original_hw)
    assert_same(got, decode_as_testing_does(debug_sam, embedding, coords, labels, original_hw=original_hw))


@pytest.mark.parametrize("masks", [1, 4])
@torch.no_grad()
def test_decoder__earlier_mask(debug_sam, traced, embedding, masks):
    coords, labels = draw_prompts("mixed", 4)
    mask_input = torch.randn(masks, 1, LOW, LOW, generator=torch.Generator().manual_seed(1))
    inputs = (embedding, coords, labels, mask_input)

    given_ = traced(*inputs, torch.ones(masks, 1), torch.tensor([[48, 64]]))
    ignored = traced(*inputs, torch.zeros(masks, 1), torch.tensor([[48, 64]]))

    expected = decode_as_testing_does(debug_sam, embedding, coords, labels, original_hw=(48, 64), mask_input=mask_input)
    without = decode_as_testing_does(debug_sam, embedding, coords, labels, original_hw=(48, 64))
    assert_same(given_, expected)
    assert_same(ignored, without)
    assert (expected[2] - without[2]).abs().max() > 1e-2 * without[2].std()  # the mask makes a difference


@torch.no_grad()
def test_decoder__masks_for_some_prompts_only(debug_sam, traced, embedding):
    coords, labels = draw_prompts("mixed", 4)
    mask_input = torch.randn(4, 1, LOW, LOW, generator=torch.Generator().manual_seed(1))
    has_mask = torch.tensor([[1.0], [0.0], [0.0], [1.0]])

    got = traced(embedding, coords, labels, mask_input, has_mask, torch.tensor([[48, 64]]))

    expected = decode_as_testing_does(debug_sam, embedding, coords, labels, original_hw=(48, 64), mask_input=mask_input)
    without = decode_as_testing_does(debug_sam, embedding, coords, labels, original_hw=(48, 64))
    assert_same(
        got,
        [torch.where(has_mask.view(4, *[1] * (a.ndim - 1)) > 0, a, b) for a, b in zip(expected, without, strict=True)],
    )


@pytest.mark.parametrize("rule", ["always", "never"])
@torch.no_grad()
def test_decoder__rules(debug_sam, embedding, rule):
    coords, labels = draw_prompts("mixed", 4)
    empty = torch.zeros(1, 1, LOW, LOW), torch.zeros(1, 1), torch.tensor([[48, 64]])
    got = ExportableDecoder(debug_sam, rule)(embedding, coords, labels, *empty)
    assert_same(got, decode_as_testing_does(debug_sam, embedding, coords, labels, original_hw=(48, 64), rule=rule))


@torch.no_grad()
def test_encoder__is_the_models_own(debug_sam):
    encoder = ExportableEncoder(debug_sam)
    images = draw(1, 3, SIZE, SIZE)
    (found,) = encoder(images)
    assert torch.equal(found, debug_sam.encode_image(images))
    assert [tensor.shape for tensor in encoder.build_example()] == [images.shape]


@given(SIDES, SIDES, st.sampled_from([48, 64, 256, 320, 960, 1024]))
@example(147, 6272, 64)  # exactly 1.5: a scale in floating point falls short of it
@example(55, 352, 48)
@example(1365, 2048, 1024)
@example(1, 12_000, 64)
def test_compute_resized_size__equals_the_one_of_training_and_is_exact(height, width, image_size):
    got = tuple(int(side) for side in _compute_resized_size(torch.tensor([[height, width]]), image_size))

    assert got == compute_resized_size(height, width, image_size)
    longest = max(height, width)
    exact = [int(Fraction(side * image_size, longest) + Fraction(1, 2)) for side in (height, width)]
    assert got == tuple(max(side, 1) for side in exact)


def test_compute_resized_size__official_code_at_the_sizes_that_photos_have():
    for longest in (640, 1080, 1280, 1920, 2048, 3024, 4000, 4032, 6144):
        sides = np.arange(1, longest + 1)
        official = np.maximum((sides * (1024 / longest) + 0.5).astype(int), 1)  # ResizeLongestSide
        ours = [compute_resized_size(int(side), longest, 1024)[0] for side in sides]
        np.testing.assert_array_equal(ours, official)
