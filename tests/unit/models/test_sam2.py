import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.references import official
from tests.references.transformers_sam2 import add_video_parts, build_transformers_sam2, get_official_state
from vpexp.data.prompts import find_unstable
from vpexp.errors import WeightsError
from vpexp.models.mask_decoder import ALL_MASKS
from vpexp.models.registry import get_model_info
from vpexp.models.sam import choose_tokens
from vpexp.models.weights import load_weights, save_weights, write_official

LIMITS = {torch.float32: 1e-5, torch.float64: 1e-10}
SIZE = 128


def build_pair(name, image_size):
    torch.manual_seed(0)
    theirs = build_transformers_sam2(name, image_size, 128 if name == "sam2_debug" else 2048)
    ours = get_model_info(name).build(image_size)
    ours.load_state_dict(ours.adopt_official(get_official_state(theirs)))
    return ours, theirs


@pytest.fixture(scope="module")
def pair():
    return build_pair("sam2_debug", SIZE)


def assert_near(found, expected):
    assert found.shape == expected.shape
    assert expected.abs().max() > 0.01
    assert (found - expected).abs().max() <= LIMITS[found.dtype] * expected.abs().max()


def build_prompts(image_size, dtype):
    """Points, labels and boxes of three prompts, in pixels of the model's input."""
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(3, 2, 2, generator=generator) * image_size
    corners = torch.rand(3, 2, 2, generator=generator).sort(dim=1).values * image_size
    return points.to(dtype), torch.tensor([[1.0, 0.0]]).expand(3, -1), corners.flatten(1).to(dtype)


def ask_transformers(model, maps, *, points=None, labels=None, boxes=None, masks=None, multimask):
    given = {
        "input_points": None if points is None else points[None],
        "input_labels": None if labels is None else labels[None].int(),
        "input_boxes": None if boxes is None else boxes[None],
        "input_masks": masks,
        "multimask_output": multimask,
    }
    output = model(image_embeddings=maps, **given)
    return output.pred_masks[0], output.iou_scores[0], output.object_score_logits[0]


def ask_ours(model, embedding, *, points=None, labels=None, boxes=None, masks=None):
    parts = [] if points is None else [(points, labels)]
    parts += [] if boxes is None else [(boxes.reshape(-1, 2, 2), torch.tensor([[2.0, 3.0]]).expand(len(boxes), -1))]
    coords, given = (torch.cat(values, dim=1) for values in zip(*parts, strict=True))
    index = torch.zeros(len(coords), dtype=torch.int64)
    return model.decode(embedding, index, coords, given, masks, masks=ALL_MASKS)


class DoubleTorch:
    """The module torch whose float32 is float64: both references round a map or positions to float32 on their way."""

    float32 = float = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


TRANSFORMERS = (
    lambda model, images: model.get_image_embeddings(images),  # finest first
    ask_transformers,
    lambda model: model.mask_decoder,
    ("transformers.models.sam2.modeling_sam2",),
)
OFFICIAL = (
    official.encode_official_sam2,
    official.decode_official_sam2,
    lambda model: model.sam_mask_decoder,
    ("sam2.modeling.position_encoding", "sam2.modeling.backbones.image_encoder"),
)
"""A reference: how it encodes, how it decodes, its decoder, and the modules that round."""


@torch.no_grad()
def check_equal(monkeypatch, ours, theirs, image_size, dtype, *, reference=TRANSFORMERS):
    """Compare maps, masks and scores; the three prompts differ, and both ways of choosing a mask are taken."""
    encode, ask, get_decoder, rounding = reference
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    if dtype == torch.float64:
        for module in rounding:
            monkeypatch.setattr(f"{module}.torch", DoubleTorch())
    images = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(2)).to(dtype)
    expected = encode(theirs, images)
    maps = dict(zip(ours.interface.names, ours.encode_maps(images), strict=True))
    for name, theirs_map in zip(("high_res_feats_0", "high_res_feats_1", "image_embed"), expected, strict=True):
        assert_near(maps[name], theirs_map)
    embedding = ours.encode_image(images)
    points, labels, boxes = build_prompts(image_size, dtype)
    mask = torch.randn(1, 1, image_size // 4, image_size // 4, generator=torch.Generator().manual_seed(3)).to(dtype)
    cases = (
        {"boxes": boxes},
        {"boxes": boxes[:1]},
        {"points": points, "labels": labels},
        {"points": points[:1, :1], "labels": labels[:1, :1]},
        {"points": points, "labels": labels, "boxes": boxes},
        {"boxes": boxes, "masks": mask},
        {"points": points, "labels": labels, "masks": mask},
    )
    for case in cases:
        decoded = ask_ours(ours, embedding, **case)
        logits, ious, _ = ask(theirs, expected, **case, multimask=True)
        assert_near(decoded.low_res_logits_NKHW[:, 1:], logits)
        assert_near(decoded.iou_NK[:, 1:], ious)
        logits, ious, _ = ask(theirs, expected, **case, multimask=False)
        chosen = decoded.pick(choose_tokens(decoded.iou_NK, find_unstable(decoded.low_res_logits_NKHW[:, 0])))
        assert_near(chosen.low_res_logits_NKHW, logits)
        assert_near(chosen.iou_NK, ious)
        get_decoder(theirs).dynamic_multimask_via_stability = False
        logits, ious, _ = ask(theirs, expected, **case, multimask=False)
        get_decoder(theirs).dynamic_multimask_via_stability = True
        assert_near(decoded.low_res_logits_NKHW[:, :1], logits)
        assert_near(decoded.iou_NK[:, :1], ious)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sam2__equals_transformers(monkeypatch, pair, dtype):
    check_equal(monkeypatch, *pair, SIZE, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("sam2_tiny", "sam2.1_hiera_t"),
        ("sam2_small", "sam2.1_hiera_s"),
        ("sam2_base_plus", "sam2.1_hiera_b+"),
        ("sam2_large", "sam2.1_hiera_l"),
    ],
)
def test_sam2__equals_the_official_package(monkeypatch, tmp_path, name, config):
    theirs = official.randomize(official.build_official_sam2(config, 256))
    state = {key: value.clone() for key, value in theirs.state_dict().items()}
    torch.save({"model": state}, tmp_path / "sam2.pt")
    ours = get_model_info(name).build(256).eval()
    load_weights(ours, tmp_path / "sam2.pt")
    for dtype in LIMITS:
        check_equal(monkeypatch, ours, theirs, 256, dtype, reference=OFFICIAL)
    # What is written is what the package asks for, also of what images need not.
    written = torch.load(save_weights(ours.float(), tmp_path / "written.pt"), weights_only=True)["model"]
    theirs.float().load_state_dict(written, strict=True)
    assert all(torch.equal(value, state[key]) for key, value in theirs.state_dict().items())


def test_find_unstable__equals_transformers(pair):
    generator = torch.Generator().manual_seed(4)
    scales = torch.logspace(-3, 1, 40)[:, None, None]
    logits = torch.randn(40, 32, 32, generator=generator) * scales
    logits[0] = -5.0  # an empty mask
    logits[1] = -5.0
    logits[1].view(-1)[:49], logits[1].view(-1)[49] = 1.0, 0.0  # at the limit: 49 of 50
    expected = pair[1].mask_decoder._get_stability_scores(logits) < 0.98
    assert 5 < expected.sum() < 35
    assert torch.equal(find_unstable(logits), expected)
    assert np.array_equal(find_unstable(logits.numpy()), expected.numpy())


@torch.no_grad()
def test_decode__prompts_of_several_images_equal_those_of_one(pair):
    ours = pair[0].float()
    embeddings = ours.encode_image(torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5)))
    points, labels, boxes = build_prompts(SIZE, torch.float32)
    coords = torch.cat([points, boxes.reshape(-1, 2, 2)], dim=1)
    given = torch.cat([labels, torch.tensor([[2.0, 3.0]]).expand(3, -1)], dim=1)
    given[1, :2] = -1  # a box alone among others
    mask = torch.randn(3, 1, SIZE // 4, SIZE // 4, generator=torch.Generator().manual_seed(6))
    index = torch.tensor([1, 0, 1])
    for masks in (None, mask):
        together = ours.decode(embeddings, index, coords, given, masks)
        for place, image in enumerate(index.tolist()):
            alone = slice(place, place + 1)
            used = given[place] != -1
            own = None if masks is None else masks[alone]
            first = torch.zeros(1, dtype=torch.int64)
            single = ours.decode(embeddings[image, None], first, coords[alone][:, used], given[alone][:, used], own)
            torch.testing.assert_close(
                together.low_res_logits_NKHW[alone], single.low_res_logits_NKHW, atol=1e-5, rtol=1e-4
            )
            torch.testing.assert_close(together.iou_NK[alone], single.iou_NK, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_score_objects__equals_transformers(pair):
    ours, theirs = (model.float() for model in pair)
    images = torch.randn(1, 3, SIZE, SIZE)
    _, _, boxes = build_prompts(SIZE, torch.float32)
    expected = ask_transformers(theirs, theirs.get_image_embeddings(images), boxes=boxes, multimask=True)[2]
    features, _ = ours.split(ours.encode_image(images))
    encoder = ours.prompt_encoder
    coords, labels = F.pad(boxes.reshape(-1, 2, 2), (0, 0, 0, 1)), torch.tensor([[2.0, 3.0, -1.0]]).expand(3, -1)
    tokens, _ = ours.mask_decoder.attend(
        features + encoder.embed_masks(None),
        encoder.compute_image_positions(),
        encoder.embed_points(coords, labels),
        None,
    )
    assert_near(ours.mask_decoder.score_objects(tokens), expected)


@pytest.fixture
def official_file(pair, tmp_path):
    """A file as the official package lays it out, and what it holds."""
    state = add_video_parts(get_official_state(pair[1].float()))
    path = tmp_path / "sam2.1_hiera_debug.pt"
    torch.save({"model": state}, path)
    return path, state


def test_load_weights__official_file(official_file, caplog):
    path, state = official_file
    sam = get_model_info("sam2_debug").build(SIZE)
    with caplog.at_level("INFO"):
        load_weights(sam, path)
    assert "left out mask_downsample, maskmem_tpos_enc, memory_attention, memory_encoder" in caplog.text
    assert torch.equal(sam.image_encoder.no_mem_embed, state["no_mem_embed"])
    assert torch.equal(sam.image_encoder.conv_s1.weight, state["sam_mask_decoder.conv_s1.weight"])


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_save_weights__writes_the_official_names_and_what_was_left_out(official_file, tmp_path, suffix):
    path, state = official_file
    sam = get_model_info("sam2_debug").build(SIZE)
    load_weights(sam, path)
    with torch.no_grad():
        sam.mask_decoder.iou_token.weight.add_(1)
    written = save_weights(sam, tmp_path / f"written{suffix}")
    found = load_file(written) if suffix == ".safetensors" else torch.load(written, weights_only=True)["model"]
    assert found.keys() == state.keys()
    changed = [name for name in state if not torch.equal(found[name], state[name])]
    assert changed == ["sam_mask_decoder.iou_token.weight"]
    load_weights(get_model_info("sam2_debug").build(SIZE), written)


def test_write_official__keeps_what_was_left_out(official_file, tmp_path):
    path, state = official_file
    sam = get_model_info("sam2_debug").build(SIZE)
    load_weights(sam, path)
    content = torch.load(write_official(sam, tmp_path, halve=True), weights_only=True)["model"]
    assert content.keys() == state.keys()
    assert {tensor.dtype for tensor in content.values()} == {torch.float16}
    assert torch.equal(sam.left_out["no_obj_ptr"], state["no_obj_ptr"])


def test_load_weights__what_does_not_fit_is_named(official_file, tmp_path):
    _, state = official_file
    sam = get_model_info("sam2_debug").build(SIZE)
    torch.save({"model": state | {"something": torch.zeros(1)}}, tmp_path / "more.pt")
    with pytest.raises(WeightsError, match=r"unknown: 1 \(something\)"):
        load_weights(sam, tmp_path / "more.pt")
    torch.save({"model": state, "optimizer": {}}, tmp_path / "run.pt")
    with pytest.raises(WeightsError, match="no flat state dict of weights but model, optimizer"):
        load_weights(sam, tmp_path / "run.pt")
    with pytest.raises(WeightsError, match="it looks like sam2_debug"):
        load_weights(get_model_info("sam_debug").build(64), save_weights(sam, tmp_path / "sam2.pt"))
