"""OpenVINO's Model API runs the exported files from their metadata alone, and gives vpexp's masks."""

import logging

import numpy as np
import pytest
import torch

from tests.references.exports import LABELS, crop, draw_vineyard
from vpexp.config.schema import ExportConfig
from vpexp.deploy.graph import ExportInfo
from vpexp.deploy.targets.write import write_target
from vpexp.inference.graph_predictor import get_core
from vpexp.inference.load import load_predictor
from vpexp.inference.torch_predictor import TorchPredictor
from vpexp.models.mask_decoder import THREE_MASKS
from vpexp.models.sam import upscale_logits

pytest.importorskip("model_api", reason="openvino-model-api is not installed")

from model_api.adapters import OpenvinoAdapter
from model_api.models import Prompt, SAMDecoder, SAMImageEncoder
from model_api.models.visual_prompting import SAMVisualPrompter

SIZES = {
    "model's own": (256, 256, 256),
    "landscape": (256, 190, 256),
    "larger": (700, 500, 700),
    "larger portrait": (420, 420, 300),
    "smaller": (160, 160, 120),
}
"""Size of the drawn image, height and width of what is cut out of it."""


@pytest.fixture(scope="module")
def prompter(micro_ir):
    return open_prompter(micro_ir.encoder, micro_ir.decoder)


def open_prompter(encoder, decoder):
    """In float32: Model API's own default takes bfloat16 on processors that have it, which moves outlines."""
    core = get_core()

    def adapt(file):
        return OpenvinoAdapter(core, str(file), plugin_config={"INFERENCE_PRECISION_HINT": "f32"})

    logging.getLogger().setLevel(logging.WARNING)
    return SAMVisualPrompter(SAMImageEncoder.create_model(adapt(encoder)), SAMDecoder.create_model(adapt(decoder)))


@pytest.fixture(scope="module")
def predictor(micro_ir):
    return load_predictor(micro_ir, threads=1)


def compute_ious(expected_NHW, got_NHW):
    both, either = (expected_NHW & got_NHW).sum((1, 2)), (expected_NHW | got_NHW).sum((1, 2))
    return np.where(either == 0, 1.0, both / np.maximum(either, 1))


def test_model_api__knows_the_model_from_its_metadata(prompter):
    assert type(prompter.encoder) is SAMImageEncoder
    assert type(prompter.decoder) is SAMDecoder
    assert prompter.encoder.params.image_size == prompter.decoder.params.image_size == 256
    assert prompter.decoder.params.labels == ["_".join(label.split()) for label in LABELS]


@pytest.mark.parametrize("kind", ["boxes", "points"])
@pytest.mark.parametrize("size", list(SIZES))
def test_model_api__masks_are_vpexps(prompter, predictor, tmp_path, kind, size):
    side, height, width = SIZES[size]
    drawn = crop(draw_vineyard(tmp_path, image_size=side, count=1)[0], height, width)
    embedding = predictor.embed(drawn.image_HW3)
    if kind == "boxes":
        expected = predictor.decode_prompts(embedding, drawn.boxes)
        result = prompter(drawn.image_HW3, boxes=[Prompt(box, 0) for box in drawn.boxes_N4])
    else:
        expected = predictor.decode_prompts(embedding, drawn.points)
        result = prompter(drawn.image_HW3, points=[Prompt(point, 0) for point in drawn.points_N2])

    got_NHW = np.stack([mask[0] for mask in result.hard_predictions])

    assert len(got_NHW) == len(drawn.boxes) > 1
    assert expected.masks.any(axis=(1, 2)).all()
    ious = compute_ious(expected.masks, got_NHW)
    assert ious.mean() >= 0.999, ious
    assert ious.min() >= 0.99, ious
    scores = np.concatenate([np.ravel(scores) for scores in result.iou_predictions])
    np.testing.assert_allclose(scores, expected.iou, atol=5e-3)


def test_model_api__boxes_and_points_in_one_call(prompter, predictor, vineyard):
    drawn = vineyard[0]
    result = prompter(drawn.image_HW3, boxes=[Prompt(drawn.boxes_N4[0], 2)], points=[Prompt(drawn.points_N2[1], 1)])
    assert result.labels == [2, 1]
    assert [mask.shape for mask in result.hard_predictions] == [(1, 256, 256)] * 2


@pytest.mark.parametrize("format_", ["openvino", "onnx"])
def test_model_api_target__processed_mask_is_vpexps(micro_sam, predictor, tmp_path, vineyard, format_):
    info = ExportInfo("sam_micro", 256, LABELS, "0123456789abcdef", "auto")
    written = write_target(micro_sam, tmp_path, info, ExportConfig(target="model_api", format=format_))
    prompter = open_prompter(written.encoder, written.decoder)
    drawn = vineyard[0]
    embedding = predictor.embed(drawn.image_HW3)
    expected = predictor.decode_prompts(embedding, drawn.boxes)
    result = prompter(drawn.image_HW3, boxes=[Prompt(box, 0) for box in drawn.boxes_N4])
    assert len(result.processed_mask) == len(drawn.boxes) > 1
    assert np.count_nonzero(np.stack(result.processed_mask) != expected.masks) == 0
    np.testing.assert_allclose(result.best_iou, np.clip(expected.iou, 0, 1), atol=5e-3)

    sam = TorchPredictor(micro_sam)
    features, points = sam.embed(drawn.image_HW3).features, torch.from_numpy(drawn.points_N2[:, None])
    result = prompter(drawn.image_HW3, points=[Prompt(point, 0) for point in drawn.points_N2])
    with torch.no_grad():
        first, labels = torch.zeros(len(points), dtype=torch.int64), torch.ones(len(points), 1)
        decoded = micro_sam.decode(features, first, points, labels, masks=THREE_MASKS)
    low_res, iou = decoded.low_res_logits_NKHW, decoded.iou_NK
    best = low_res[torch.arange(len(points)), iou.argmax(dim=1)][:, None]
    logits = upscale_logits(best, image_size=256, resized_hw=(256, 256), original_hw=(256, 256)).numpy()
    sure = np.abs(logits) > 1e-5  # these masks were never trained: logits are small, and some are zero up to rounding
    assert sure.mean() > 0.999
    assert np.count_nonzero((np.stack(result.processed_mask) != (logits > 0)) & sure) == 0
