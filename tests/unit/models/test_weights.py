import os

import pytest
import safetensors.torch
import torch

from tests.references.official import import_mobile_sam, import_segment_anything, randomize
from vpexp.errors import ConfigError, WeightsError
from vpexp.models.registry import build_sam_debug, build_sam_tiny_vit, build_sam_vit_b, get_model_info, list_models
from vpexp.models.weights import (
    UNUSED_KEYS,
    compute_state_hash,
    identify_model,
    load_weights,
    resolve_weights,
    save_weights,
)


@pytest.fixture
def sam():
    return randomize(build_sam_debug(64))


def assert_same_state(ours, theirs):
    used = theirs.keys() - UNUSED_KEYS
    assert ours.keys() - UNUSED_KEYS == used
    for key in used:
        assert torch.equal(ours[key], theirs[key]), key


def test_load_weights__file_of_mobile_sam_and_back(tmp_path, caplog):
    official = randomize(import_mobile_sam().sam_model_registry["vit_t"]())
    torch.save(official.state_dict(), tmp_path / "mobile_sam.pt")
    ours = build_sam_tiny_vit(1024)
    with caplog.at_level("INFO", logger="vpexp"):
        load_weights(ours, tmp_path / "mobile_sam.pt")
    assert_same_state(ours.state_dict(), official.state_dict())
    assert "image_encoder.head.bias" in caplog.text

    save_weights(randomize(ours, seed=1), tmp_path / "ours.pt")
    official.load_state_dict(torch.load(tmp_path / "ours.pt", weights_only=True), strict=True)
    assert_same_state(ours.state_dict(), official.state_dict())


@pytest.mark.slow
def test_load_weights__file_of_segment_anything_and_back(tmp_path):
    official = randomize(import_segment_anything().sam_model_registry["vit_b"]())
    torch.save(official.state_dict(), tmp_path / "sam_vit_b_01ec64.pth")
    ours = build_sam_vit_b(1024)
    load_weights(ours, tmp_path / "sam_vit_b_01ec64.pth")
    assert_same_state(ours.state_dict(), official.state_dict())

    with torch.no_grad():
        ours.image_encoder.pos_embed.add_(1)
    save_weights(ours, tmp_path / "ours.safetensors")
    official.load_state_dict(safetensors.torch.load_file(tmp_path / "ours.safetensors"), strict=True)
    assert_same_state(ours.state_dict(), official.state_dict())


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.safetensors"])
def test_save_weights__round_trip(sam, tmp_path, name):
    assert save_weights(sam, tmp_path / "folder" / name) == tmp_path / "folder" / name
    loaded = build_sam_debug(64)
    load_weights(loaded, tmp_path / "folder" / name)
    assert_same_state(loaded.state_dict(), sam.state_dict())
    assert [path.name for path in (tmp_path / "folder").iterdir()] == [name]


def test_save_weights__half_precision_loads_as_float32(sam, tmp_path):
    save_weights(sam, tmp_path / "half.safetensors", dtype=torch.float16)
    loaded = build_sam_debug(64)
    load_weights(loaded, tmp_path / "half.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in loaded.state_dict().values())
    torch.testing.assert_close(loaded.state_dict(), sam.state_dict(), atol=1e-2, rtol=1e-3)


def test_save_weights__unknown_suffix(sam, tmp_path):
    with pytest.raises(WeightsError, match=r"weights\.bin: weights are written as one of"):
        save_weights(sam, tmp_path / "weights.bin")


@torch.no_grad()
def test_load_weights__other_image_size_interpolates_positions(sam, tmp_path):
    save_weights(sam, tmp_path / "weights.pth")
    larger = build_sam_debug(128)
    load_weights(larger, tmp_path / "weights.pth")
    assert larger.image_encoder.pos_embed.shape == (1, 8, 8, 32)
    assert larger.encode_image(torch.zeros(1, 3, 128, 128)).shape == (1, 256, 8, 8)
    assert torch.equal(larger.image_encoder.blocks[0].attn.rel_pos_h, sam.image_encoder.blocks[0].attn.rel_pos_h)


def test_load_weights__misfit_names_the_entries(sam, tmp_path):
    state = sam.state_dict()
    del state["mask_decoder.iou_token.weight"]
    state["mask_decoder.surplus"] = torch.zeros(1)
    state["image_encoder.neck.1.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "weights.pth")
    before = compute_state_hash(sam)
    with pytest.raises(WeightsError) as error:
        load_weights(sam, tmp_path / "weights.pth")
    message = str(error.value)
    assert "\n" not in message
    assert str(tmp_path / "weights.pth") in message
    assert "missing: 1 (mask_decoder.iou_token.weight)" in message
    assert "unknown: 1 (mask_decoder.surplus)" in message
    assert "of another shape: 1 (image_encoder.neck.1.weight [3] instead of [256])" in message
    assert compute_state_hash(sam) == before


def test_load_weights__file_of_another_model_says_which(sam, tmp_path):
    save_weights(sam, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"does not fit the model \(it looks like sam_debug\): missing: \d+ "):
        load_weights(build_sam_tiny_vit(256), tmp_path / "weights.pth")


def test_load_weights__classification_head_is_unknown_to_vit(sam, tmp_path):
    torch.save(sam.state_dict() | {"image_encoder.head.bias": torch.zeros(1000)}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"unknown: 1 \(image_encoder.head.bias\)"):
        load_weights(sam, tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_load_weights__damaged_file(sam, tmp_path, name, damage):
    path = save_weights(sam, tmp_path / name)
    content = {"cut": path.read_bytes()[:50_000], "text": b"<html>404</html>", "empty": b""}[damage]
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{name} cannot be read .*: damaged, or not a file of tensors only"):
        load_weights(sam, path)


def test_load_weights__missing_file(sam, tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere\.pth does not exist"):
        load_weights(sam, tmp_path / "nowhere.pth")


@pytest.mark.parametrize("content", [{"state_dict": {}, "epoch": 3}, [1, 2], torch.zeros(3)])
def test_load_weights__not_a_state_dict(sam, tmp_path, content):
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(WeightsError, match=r"checkpoint\.pt holds no flat state dict"):
        load_weights(sam, tmp_path / "checkpoint.pt")


class _Exploit:
    def __reduce__(self):
        return os.mkdir, (os.environ["VPEXP_TEST_EXPLOIT"],)


def test_load_weights__code_in_the_file_is_not_run(sam, tmp_path, monkeypatch):
    monkeypatch.setenv("VPEXP_TEST_EXPLOIT", str(tmp_path / "exploited"))
    torch.save({"weight": _Exploit()}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="not a file of tensors only"):
        load_weights(sam, tmp_path / "weights.pth")
    assert not (tmp_path / "exploited").exists()


@pytest.mark.parametrize("name", list_models())
def test_identify_model__every_model_by_its_own_state(name):
    info = get_model_info(name)
    with torch.device("meta"):
        state = info.build(2 * info.image_size).state_dict()
    assert identify_model(state) == name


def test_identify_model__foreign_layouts():
    assert identify_model({"vision_encoder.pos_embed": torch.zeros(1)}) == "a transformers SamModel"
    assert identify_model({"weight": torch.zeros(1)}) is None


def test_compute_state_hash__depends_on_every_byte_and_name():
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    first = compute_state_hash(module)
    assert first == compute_state_hash(module)
    assert len(first) == 64
    module[1].num_batches_tracked += 1
    second = compute_state_hash(module)
    module[0].weight.data[0] = torch.nextafter(module[0].weight.data[0], torch.tensor(9.0))
    hashes = {first, second, compute_state_hash(module), compute_state_hash(module.half())}
    hashes.add(compute_state_hash(torch.nn.ModuleDict({"a": module})))
    assert len(hashes) == 5


def test_compute_state_hash__layout_in_memory_does_not_matter():
    module = torch.nn.Conv2d(4, 4, 3)
    expected = compute_state_hash(module)
    assert compute_state_hash(module.to(memory_format=torch.channels_last)) == expected


def test_resolve_weights__random_and_path(tmp_path):
    path = tmp_path / "mine.pth"
    path.touch()
    assert resolve_weights("sam_vit_b", "random") is None
    assert resolve_weights("sam_debug", "auto") is None
    assert resolve_weights("sam_vit_b", str(path)) == path
    with pytest.raises(WeightsError, match=r"nowhere\.pth does not exist: model.weights takes auto, random"):
        resolve_weights("sam_vit_b", tmp_path / "nowhere.pth")
    with pytest.raises(ConfigError, match="did you mean 'sam_vit_b'"):
        resolve_weights("sam_vitb", "random")


def test_resolve_weights__file_in_the_cache_is_used(tmp_path, monkeypatch):
    (tmp_path / "mobile_sam.pt").touch()
    assert resolve_weights("sam_tiny_vit", "auto", cache_dir=tmp_path) == tmp_path / "mobile_sam.pt"
    monkeypatch.setenv("VPEXP_CACHE_DIR", str(tmp_path.parent))
    tmp_path.rename(tmp_path.parent / "weights")
    assert resolve_weights("sam_tiny_vit") == tmp_path.parent / "weights" / "mobile_sam.pt"


def test_resolve_weights__offline_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(WeightsError) as error:
        resolve_weights("sam_tiny_vit", "auto", cache_dir=tmp_path)
    message = str(error.value)
    assert "\n" not in message
    assert "not reachable" in message
    assert "fetch https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt" in message
    assert (
        f"put it at {tmp_path / 'mobile_sam.pt'}, or give model.weights=<path>; model=sam_micro comes with vpexp"
        in message
    )
    assert not (tmp_path / "mobile_sam.pt").exists()
