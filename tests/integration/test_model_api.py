"""OpenVINO's Model API runs the exported files from their metadata alone, and gives vpexp's masks."""

import logging

import numpy as np
import pytest

from tests.references.exports import LABELS, crop, draw_vineyard
from vpexp.inference.graph_predictor import get_core
from vpexp.inference.load import load_predictor

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
    """In float32: Model API's own default takes bfloat16 on processors that have it, which moves outlines."""
    core = get_core()

    def adapt(file):
        return OpenvinoAdapter(core, str(file), plugin_config={"INFERENCE_PRECISION_HINT": "f32"})

    logging.getLogger().setLevel(logging.WARNING)
    return SAMVisualPrompter(
        SAMImageEncoder.create_model(adapt(micro_ir.encoder)), SAMDecoder.create_model(adapt(micro_ir.decoder))
    )


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
