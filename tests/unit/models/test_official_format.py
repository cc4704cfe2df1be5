"""One file of weights that the original packages load strictly."""

import numpy as np
import pytest
import torch

from tests.references.official import decode_official, import_mobile_sam, import_segment_anything, randomize
from vpexp.errors import ExportError
from vpexp.inference.load import load_model
from vpexp.models import weights
from vpexp.models.registry import build_sam_tiny_vit, build_sam_vit_b
from vpexp.models.weights import FILE_NAME, compute_state_hash, write_official


def decode_ours(sam, embedding, boxes):
    decoded = sam.decode(
        embedding,
        torch.zeros(len(boxes), dtype=torch.int64),
        boxes.view(-1, 2, 2),
        torch.tensor([[2.0, 3.0]]).expand(len(boxes), 2),
    )
    return decoded.low_res_logits_NKHW, decoded.iou_NK


def assert_official_answers_the_same(sam, official):
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(1, 256, 64, 64, generator=generator)
    boxes = torch.tensor([[100.0, 100, 500, 700], [3, 5, 1000, 40]])
    with torch.no_grad():
        for ours, theirs in zip(
            decode_ours(sam, embedding, boxes), decode_official(official, embedding, boxes=boxes), strict=True
        ):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_write_official__mobile_sam_loads_it_strictly(tmp_path):
    sam = randomize(build_sam_tiny_vit(1024), seed=1)
    path = write_official(sam, tmp_path, halve=False)
    official = import_mobile_sam().sam_model_registry["vit_t"](checkpoint=str(path)).eval()  # load_state_dict, strict
    assert_official_answers_the_same(sam, official)
    image = torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sam.encode_image(image), official.image_encoder(image), atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_write_official__segment_anything_loads_it_strictly(tmp_path):
    with torch.device("cpu"):
        sam = randomize(build_sam_vit_b(1024), seed=1)
    path = write_official(sam, tmp_path, halve=True)
    assert path.stat().st_size < 200e6
    official = import_segment_anything().sam_model_registry["vit_b"](checkpoint=str(path)).eval()
    sam.load_state_dict({name: tensor.half().float() for name, tensor in sam.state_dict().items()})
    assert_official_answers_the_same(sam, official)
    ours, theirs = sam.image_encoder.blocks[3].state_dict(), official.image_encoder.blocks[3].state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("halve", [False, True])
def test_write_official__reads_back_and_leaves_the_model_alone(debug_sam, tmp_path, halve):
    before = compute_state_hash(debug_sam)

    path = write_official(debug_sam, tmp_path, halve=halve)

    assert path == tmp_path / FILE_NAME
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]
    assert compute_state_hash(debug_sam) == before
    loaded = load_model("sam_debug", weights=path)
    assert (compute_state_hash(loaded) == before) is not halve
    types = {tensor.dtype for tensor in torch.load(path, weights_only=True).values() if tensor.is_floating_point()}
    assert types == {torch.float16 if halve else torch.float32}
    for ours, theirs in zip(loaded.parameters(), debug_sam.parameters(), strict=True):
        np.testing.assert_allclose(ours.detach(), theirs.detach(), rtol=1e-3, atol=1e-4)


def test_write_official__what_does_not_read_back_is_refused(debug_sam, tmp_path, monkeypatch):
    before = compute_state_hash(debug_sam)
    save = weights.save_weights

    def save_damaged(sam, path, dtype):
        state = {name: tensor.clone() for name, tensor in sam.state_dict().items()}
        state["mask_decoder.mask_tokens.weight"] += 1
        torch.save(state, save(sam, path, dtype))
        return path

    monkeypatch.setattr(weights, "save_weights", save_damaged)
    with pytest.raises(ExportError, match="does not read back"):
        write_official(debug_sam, tmp_path, halve=False)
    assert compute_state_hash(debug_sam) == before
