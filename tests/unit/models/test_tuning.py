"""What learns of an encoder: its second half after a cut, or low-rank changes; neither changes what the model computes."""

import numpy as np
import pytest
import torch

from vpexp.errors import ConfigError
from vpexp.models.layers import EncoderCut
from vpexp.models.registry import build_sam_debug, build_sam_micro
from vpexp.models.sam2 import build_sam2_debug
from vpexp.models.tuning import (
    Lora,
    LoraLinear,
    apply_tuning,
    find_trained,
    group_parameters,
    merge_lora,
    plan_tuning,
)

FROZEN = ["image_encoder", "prompt_encoder"]
BUILDERS = {"vit": build_sam_debug, "tiny_vit": build_sam_micro, "hiera": build_sam2_debug}
SIDE = 64
LORA = Lora(rank=3, alpha=6.0, targets=("attention", "mlp"))


@pytest.fixture(params=BUILDERS)
def sam(request):
    torch.manual_seed(0)
    sam = BUILDERS[request.param](SIDE)
    with torch.no_grad():  # what starts as zero hides what it is multiplied with
        for parameter in sam.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return sam


@pytest.fixture
def images():
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def tune(sam, tune="none", lora=None, freeze=FROZEN):
    tuning = plan_tuning(sam, freeze, tune, lora)
    apply_tuning(sam, tuning)
    return tuning


def list_learning(sam):
    return {name for name, parameter in sam.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def test_cut__two_halves_are_the_whole(sam, images):
    whole = sam.encode_image(images)
    for block in range(1, len(sam.image_encoder.list_blocks()) + 1):
        sam.cut = EncoderCut(sam.image_encoder, SIDE, block)
        kept = sam.encode_kept(images)
        assert kept.shape[1:] == sam.kept_shape
        torch.testing.assert_close(sam.complete(kept), whole, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_cut__the_first_half_sees_all_weights_but_those_named_late(sam, images):
    for block in (1, len(sam.image_encoder.list_blocks())):
        sam.cut = EncoderCut(sam.image_encoder, SIDE, block)
        before, late = sam.encode_kept(images), sam.cut.late_names
        for name, parameter in sam.image_encoder.named_parameters():
            kept = parameter.clone()
            parameter.add_(torch.randn_like(parameter))
            is_seen = not torch.equal(sam.encode_kept(images), before)
            parameter.copy_(kept)
            # An added bias of all keys cancels in the softmax; SAM 2's vector for videos is added at the end.
            if not name.endswith(("qkv.bias", "no_mem_embed")):
                assert is_seen == (name not in late), name


@pytest.mark.parametrize("lora", [None, LORA])
def test_apply__gradients_reach_what_learns_and_the_first_half_is_left_alone(sam, images, lora):
    tune(sam, "last:1", lora)

    sam.complete(sam.encode_kept(images)).square().sum().backward()

    reached = {name for name, parameter in sam.named_parameters() if parameter.grad is not None}
    assert reached == {name for name in list_learning(sam) if name.startswith("image_encoder.")}
    assert reached
    assert {name.removeprefix("image_encoder.") for name in reached} <= find_trained(
        sam, plan_tuning(sam, FROZEN, "last:1", lora)
    )


@pytest.mark.parametrize(
    ("freeze", "name", "lora", "learns"),
    [
        (FROZEN, "none", None, ["mask_decoder."]),
        (["prompt_encoder"], "none", None, ["mask_decoder.", "image_encoder."]),
        (FROZEN, "full", None, ["mask_decoder.", "image_encoder."]),
        (FROZEN, "neck", None, ["mask_decoder.", "image_encoder.neck."]),
        (FROZEN, "last:1", None, ["mask_decoder.", "image_encoder.neck.", "image_encoder.blocks.1."]),
        (FROZEN, "last:1", LORA, ["mask_decoder.", "image_encoder.blocks.1.attn.qkv.lora", "image_encoder.blocks.1.attn.proj.lora",
                                  "image_encoder.blocks.1.mlp.lin1.lora", "image_encoder.blocks.1.mlp.lin2.lora"]),
        (FROZEN, "none", Lora(2, 2.0, ("mlp",)), ["mask_decoder.", *(f"image_encoder.blocks.{b}.mlp.lin{i}.lora" for b in (0, 1) for i in (1, 2))]),
        ([*FROZEN, "mask_decoder"], "last:1", None, ["image_encoder.neck.", "image_encoder.blocks.1."]),
    ],
)  # fmt: skip
def test_plan__what_learns(freeze, name, lora, learns):
    sam = build_sam_debug(SIDE)

    tune(sam, name, lora, freeze)

    found = list_learning(sam)
    assert all(any(entry.startswith(prefix) for entry in found) for prefix in learns)
    assert all(entry.startswith(tuple(learns)) for entry in found)


def test_plan__more_blocks_than_there_are():
    with pytest.raises(
        ConfigError, match=r"model\.tune=last:3: the image encoder has 2 blocks; set model\.tune=last:2 or full"
    ):
        plan_tuning(build_sam_debug(SIDE), FROZEN, "last:3", None)


def test_plan__an_encoder_of_ones_own_cannot_be_cut():
    sam = build_sam_debug(SIDE)
    sam.image_encoder = torch.nn.Sequential(sam.image_encoder)

    with pytest.raises(ConfigError, match="Sequential cannot be cut before a block"):
        plan_tuning(sam, FROZEN, "last:1", None)
    assert plan_tuning(sam, FROZEN, "full", None).whole


@torch.no_grad()
def test_lora__starts_as_no_change_and_adds_what_the_paper_says(images):
    layer = torch.nn.Linear(5, 4)
    changed, tokens = LoraLinear(layer, rank=2, scale=1.5), torch.randn(7, 5)
    assert torch.equal(changed(tokens), layer(tokens))

    changed.lora_up.normal_()

    weight = layer.weight.numpy().astype(np.float64) + 1.5 * changed.lora_up.numpy() @ changed.lora_down.numpy()
    expected = tokens.numpy() @ weight.T + layer.bias.numpy()
    np.testing.assert_allclose(changed(tokens).numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(changed.merge()(tokens).numpy(), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_merge__no_pixel_flips_and_no_layer_is_left(sam, images):
    names = list(sam.state_dict())
    tune(sam, "none", LORA)
    for name, parameter in sam.named_parameters():
        if name.endswith("lora_up"):
            parameter.normal_(std=0.05)

    def decode():
        points_NP2 = torch.tensor([[[4.0, 9.0], [50.0, 40.0]]]).repeat(6, 1, 1) + torch.arange(6)[:, None, None]
        labels_NP, index_N = torch.tensor([[2.0, 3.0]]).repeat(6, 1), torch.arange(6) % 2
        return sam.decode(
            sam.encode_image(images), index_N, points_NP2, labels_NP, masks=slice(0, 4)
        ).low_res_logits_NKHW

    apart = decode()
    merge_lora(sam)
    merged = decode()

    assert list(sam.state_dict()) == names
    assert apart.numel() >= 6_000
    assert ((apart > 0) != (merged > 0)).sum() == 0
    torch.testing.assert_close(merged, apart, rtol=1e-4, atol=1e-4)


def test_apply__loras_numbers_come_from_the_seed_alone():
    first, second, other = build_sam_debug(SIDE), build_sam_debug(SIDE), build_sam_debug(SIDE)
    for sam, seed, drawn in ((first, 3, 0), (second, 3, 5), (other, 4, 0)):
        torch.manual_seed(drawn)
        apply_tuning(sam, plan_tuning(sam, FROZEN, "last:1", LORA), seed=seed)

    down = [sam.image_encoder.blocks[1].mlp.lin1.lora_down for sam in (first, second, other)]
    assert torch.equal(down[0], down[1])
    assert not torch.equal(down[0], down[2])


def test_group__rates_fall_from_the_neck_back(sam):
    tune(sam, "full")

    groups = group_parameters(sam, lr=1.0, lr_encoder=0.5, layer_decay=0.1)

    names = {id(parameter): name for name, parameter in sam.named_parameters()}
    rates = {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}
    assert rates.keys() == list_learning(sam)
    assert groups[0]["lr"] == 1.0
    assert {rates[name] for name in rates if name.startswith("mask_decoder.")} == {1.0}
    blocks, encoder = sam.image_encoder.list_blocks(), dict(sam.image_encoder.named_parameters())
    for place, block in enumerate(blocks):
        own = {
            f"image_encoder.{name}"
            for name, value in encoder.items()
            if any(value is other for other in block.parameters())
        }
        assert [rates[name] for name in own] == pytest.approx([0.5 * 0.1 ** (len(blocks) - place)] * len(own))
    first = next(name for name in rates if "patch_embed" in name)
    assert rates[first] == pytest.approx(0.5 * 0.1 ** (len(blocks) + 1))


def test_group__one_rate_is_one_group_in_the_models_order(sam):
    tune(sam, "last:1")

    (group,) = group_parameters(sam, lr=2.0, lr_encoder=None, layer_decay=1.0)

    assert [id(value) for value in group["params"]] == [id(value) for value in sam.parameters() if value.requires_grad]


def test_gradient_checkpointing__same_gradients(sam, images):
    tune(sam, "last:2")
    found = []
    for again in (False, True):
        sam.image_encoder.gradient_checkpointing = again
        sam.zero_grad()
        sam.encode_image(images).square().sum().backward()
        found.append({name: value.grad.clone() for name, value in sam.named_parameters() if value.grad is not None})

    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-5, atol=1e-5)
