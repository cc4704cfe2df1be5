"""The loss of a step: every prompt on its own image, padding left out, and chunks that equal the whole."""

import numpy as np
import pytest
import torch

from vpexp.config.schema import LossConfig, PromptConfig
from vpexp.data.batch import build_targets, collate_training
from vpexp.data.interface import SAM
from vpexp.data.masks import encode_mask
from vpexp.models.mask_decoder import ALL_MASKS, ONE_MASK
from vpexp.models.registry import build_sam_debug
from vpexp.models.sam import DecodedMasks
from vpexp.training import step_loss as step_loss_file
from vpexp.training.losses import MaskLoss
from vpexp.training.step_loss import StepLoss, sum_over_chunks

FROZEN = ("image_encoder", "prompt_encoder")
RESOLUTIONS = ("low", "input", "original")


def get_batch(data, count=3):
    return collate_training([data.training_set[0, index] for index in range(count)])


def compute_gradients(module, batch):
    terms = module.step_loss.compute(module.sam, module.sam.encode_image(batch.images_B3SS), batch)
    terms.total.backward()
    gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return [terms.total.item(), terms.focal.item(), terms.dice.item(), terms.iou.item()], gradients


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("freeze", [FROZEN, ("prompt_encoder",)])
def test_compute__chunks_equal_the_whole(monkeypatch, build_module, build_data, resolution, freeze):
    module = build_module(resolution=resolution, freeze=freeze).train()
    batch = get_batch(build_data(resolution=resolution))
    assert len(batch.labels_NP) == 9
    decoded = []
    original = module.sam.decode
    monkeypatch.setattr(
        module.sam, "decode", lambda *args, masks: decoded.append(len(args[3])) or original(*args, masks=masks)
    )
    # The whole as a GPU takes it: one chunk of three images.
    parts = [[step_loss_file.Part(image, 0, 3) for image in range(3)]]
    with monkeypatch.context() as patch:
        patch.setattr(StepLoss, "_cut", lambda *_: parts)
        expected_terms, expected = compute_gradients(module, batch)
    monkeypatch.setattr(step_loss_file, "CHUNK_PIXELS", 2 * 64 * 64)
    terms, found = compute_gradients(module, batch)
    assert decoded == [9, 2, 1, 2, 1, 2, 1]
    assert terms == pytest.approx(expected_terms, rel=1e-5)
    assert found.keys() == expected.keys()
    assert ("sam.image_encoder.pos_embed" in found) == ("image_encoder" not in freeze)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("room", [1, 2, 4, 5, 9])
def test_cut__chunks_of_several_images_hold_every_prompt_once(monkeypatch, build_data, room):
    batch = get_batch(build_data())
    batch.coords_NP2 = batch.coords_NP2.to("meta")  # any device that is no CPU
    monkeypatch.setattr(step_loss_file, "CHUNK_PIXELS", room * 64 * 64)
    chunks = StepLoss(MaskLoss(LossConfig()), "input")._cut(build_sam_debug(64), batch)
    prompts = [(part.image, place) for parts in chunks for part in parts for place in range(part.start, part.stop)]
    assert prompts == [(image, place) for image in range(3) for place in range(3)]
    sizes = [sum(part.stop - part.start for part in parts) for parts in chunks]
    assert sizes[:-1] == [room] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= room


def test_compute__prompts_see_their_own_image(build_module, build_data):
    """The flat batch equals the images one by one, weighted by their numbers of prompts."""
    module, data = build_module(), build_data()
    compute = module.step_loss.compute
    with torch.no_grad():
        whole = get_batch(data)
        together = compute(module.sam, module.sam.encode_image(whole.images_B3SS), whole).total
        alone = [collate_training([data.training_set[0, index]]) for index in range(3)]
        single = [compute(module.sam, module.sam.encode_image(b.images_B3SS), b).total for b in alone]
    assert together.item() == pytest.approx(sum(s.item() for s in single) / 3, rel=1e-5)
    assert max(single).item() - min(single).item() > 1e-3


def build_multimask(build_module, **options):
    return build_module(step_loss=StepLoss(MaskLoss(LossConfig()), "low", multimask="auto"), **options)


def test_compute__ambiguous_prompts_learn_from_the_best_of_three(build_module, build_data):
    """The loss, written out prompt by prompt: a box by token 0, a point by its best token, and by token 0 as well."""
    module, batch = build_multimask(build_module), get_batch(build_data(resolution="low"), 1)
    is_point_N = torch.tensor([True, False, True])
    batch.labels_NP[is_point_N] = torch.tensor([1.0, -1.0])
    with torch.no_grad():
        embeddings = module.sam.encode_image(batch.images_B3SS)
        decoded = module.sam.decode(embeddings, batch.image_index_N, batch.coords_NP2, batch.labels_NP, masks=ALL_MASKS)
        terms = module.step_loss.compute(module.sam, embeddings, batch)
    rows, columns = batch.targets[0].grid_hw
    targets = batch.targets[0].unpack(slice(None))
    found = []
    for prompt, is_point in enumerate(is_point_N.tolist()):
        single = [
            MaskLoss(LossConfig())(
                decoded.low_res_logits_NKHW[prompt, token, None, :rows, :columns],
                decoded.iou_NK[prompt, token, None],
                targets[prompt, None],
            )
            for token in range(4)
        ]
        best = min(range(1, 4), key=lambda token: (20 * single[token].focal + single[token].dice).item())
        asked, total = (best, single[best].total + single[0].total) if is_point else (0, single[0].total)
        ranking = sum(single[token].iou.item() for token in (1, 2, 3)) / 3 if is_point else 0
        found.append([total.item() + ranking, single[asked].dice.item()])
    assert np.mean(found, axis=0) == pytest.approx([terms.total.item(), terms.dice.item()], rel=1e-5)


@pytest.mark.parametrize("kind", ["both", "clicks"])
def test_compute__chunks_of_ambiguous_prompts_equal_the_whole(monkeypatch, build_module, build_data, kind):
    module = build_multimask(build_module).train()
    batch = get_batch(build_data(resolution="low", recipe=PromptConfig(type=kind)))
    expected_terms, expected = compute_gradients(module, batch)
    monkeypatch.setattr(step_loss_file, "CHUNK_PIXELS", 2 * 64 * 64)
    terms, found = compute_gradients(module, batch)
    assert terms == pytest.approx(expected_terms, rel=1e-5)
    assert found.keys() == expected.keys()
    networks = {name.split(".")[3] for name in found if "hypernetworks" in name}
    assert networks == {"0", "1", "2", "3"}
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


class PerfectSam:
    """Answers each prompt with one mask's logits, as a decoder would that knows the truth; the padding is full of objects."""

    image_size = 64

    interface = SAM

    def __init__(self, low_res_hw):
        self.logits = torch.full((1, 1, 16, 16), 3.0)
        self.logits[0, 0, : low_res_hw.shape[0], : low_res_hw.shape[1]] = torch.from_numpy(low_res_hw)
        self.prompt_encoder = self.mask_decoder = torch.nn.Linear(1, 1)

    def decode(self, *_, masks):
        assert masks == ONE_MASK
        return DecodedMasks(self.logits, torch.ones(1, 1))


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize(("height", "width"), [(48, 64), (45, 64), (96, 128), (30, 33)])
def test_compute__padding_never_counts_and_grids_line_up(build_data, resolution, height, width):
    """An upright edge through the image: a model that draws it is nearly right, whatever it says of the padding."""
    batch = get_batch(build_data(), 1)
    resized_hw = (round(height * 64 / width), 64) if width >= height else (64, round(width * 64 / height))
    mask_HW = np.zeros((height, width), dtype=bool)
    mask_HW[:, : width // 2] = True
    columns = (np.arange(16) + 0.5) * 4  # of the low-resolution cells, in pixels of the input
    low_hw = np.tile(np.where(columns < 32, 3.0, -3.0).astype(np.float32), (-(-resized_hw[0] // 4), 1))
    batch.targets = [build_targets([encode_mask(mask_HW)], resized_hw, resolution)]
    batch.resized_B2 = torch.tensor([resized_hw])
    terms = StepLoss(MaskLoss(LossConfig()), resolution).compute(PerfectSam(low_hw), torch.zeros(1, 1, 4, 4), batch)
    assert terms.iou.item() < 0.01
    assert terms.dice.item() < 0.15
    assert terms.focal.item() < 0.1


def test_sum_over_chunks__is_the_sum_with_its_gradient():
    weight = torch.randn(4, requires_grad=True)
    unused = torch.randn(2, requires_grad=True)
    chunks = list(torch.randn(5, 4))

    def compute(chunk_4):
        return torch.stack([(chunk_4 * weight).sum() ** 2, weight.sum()])

    for scale in (1.0, 1024.0):
        weight.grad = None
        terms = sum_over_chunks(compute, chunks, [weight, unused], scale=scale)
        (terms[0] * 3).backward()
        expected = torch.stack([compute(chunk) for chunk in chunks]).sum(dim=0)
        (wanted,) = torch.autograd.grad(expected[0] * 3, weight)
        torch.testing.assert_close(terms, expected)
        torch.testing.assert_close(weight.grad, wanted)
        assert unused.grad is None


def test_sum_over_chunks__holds_one_chunk_at_a_time():
    weight = torch.randn(3, requires_grad=True)
    alive = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(_, value):
            alive.append(1)
            return value.clone()

        @staticmethod
        def backward(_, gradient):
            alive.pop()
            return gradient

    def compute(chunk):
        assert not alive, "the chunk before was differentiated"
        return (Watched.apply(weight) * chunk).sum()[None]

    sum_over_chunks(compute, [1.0, 2.0, 3.0], [weight])
    assert not alive
