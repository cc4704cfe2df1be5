"""The check that refuses an exported model which answers otherwise."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from vpexp.data.prompts import Prompts
from vpexp.deploy.parity import FEW_PIXELS, Parity, check_parity, measure_parity
from vpexp.errors import ExportError
from vpexp.inference.torch_predictor import TorchPredictor

NONE_DIFFERS = Parity(0.0, 0.0, 0.0, 0.0, 6, 0)


class ChangedPredictor(TorchPredictor):
    """Answers as the model does, but for what ``change`` does to it."""

    def __init__(self, sam, change):
        super().__init__(sam)
        self.change = change

    def decode_prompts(self, embedding, prompts):
        return self.change(super().decode_prompts(embedding, prompts))


def change_weights(sam, change):
    changed = copy.deepcopy(sam)
    with torch.no_grad():
        change(changed)
    return TorchPredictor(changed)


@pytest.fixture(scope="module")
def measure(micro_sam, vineyard):
    drawn = vineyard[0]
    return lambda other: measure_parity(TorchPredictor(micro_sam), other, drawn.image_HW3, [drawn.boxes, drawn.points])


def test_measure_parity__a_copy_is_the_same(measure, micro_sam, vineyard):
    parity = measure(TorchPredictor(copy.deepcopy(micro_sam)))
    assert parity == replace(NONE_DIFFERS, prompts=2 * len(vineyard[0].boxes))
    check_parity(parity, "FP32", "model")


def test_measure_parity__counts(measure, micro_sam):
    def flip_corner(prediction):
        masks = prediction.masks.copy()
        masks[:, 0, :5] ^= True
        return replace(prediction, masks=masks)

    parity = measure(ChangedPredictor(micro_sam, flip_corner))
    assert parity.flipped_pixels == 5 * parity.prompts
    assert parity.flipped_of_all == pytest.approx(5 / 256**2)
    assert parity.flipped > parity.flipped_of_all
    assert parity.logits == parity.iou == 0


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            lambda sam: sam.mask_decoder.mask_tokens.weight.copy_(sam.mask_decoder.mask_tokens.weight.roll(1, 0)),
            id="swapped-token",
        ),
        pytest.param(lambda sam: sam.mask_decoder.output_upscaling[0].weight.mul_(1.02), id="decoder-weights"),
        pytest.param(lambda sam: sam.image_encoder.neck[-1].weight.mul_(1.05), id="encoder-weights"),
        pytest.param(lambda sam: sam.prompt_encoder.not_a_point_embed.weight.add_(0.1), id="padding-token"),
        pytest.param(lambda sam: sam.mask_decoder.iou_prediction_head.layers[-1].bias.add_(0.1), id="iou-only"),
        pytest.param(lambda sam: sam.image_encoder.neck[0].weight.fill_(float("nan")), id="nan"),
    ],
)
def test_check_parity__refuses_changed_weights_and_says_how_far(measure, micro_sam, change):
    parity = measure(change_weights(micro_sam, change))
    with pytest.raises(
        ExportError, match=r"the IR differs .* was not written: of 10,000 mask pixels \d+\.\d flip"
    ) as error:
        check_parity(parity, "FP32", "IR")
    assert "\n" not in str(error.value)


def test_check_parity__nan_where_masks_are_empty_does_not_pass(measure, micro_sam, vineyard):
    """A mask of NaN is an empty mask: only the logits tell."""
    broken = change_weights(micro_sam, lambda sam: sam.image_encoder.neck[0].weight.fill_(float("nan")))
    drawn = vineyard[0]

    parity = measure_parity(broken, broken, drawn.image_HW3, [drawn.boxes])

    assert np.isnan(parity.logits)
    with pytest.raises(ExportError, match="of a logit is nan"):
        check_parity(parity, "FP32", "model")
    later = measure_parity(
        TorchPredictor(micro_sam),
        ChangedPredictor(
            micro_sam, lambda p: replace(p, low_res=np.where(p.low_res > p.low_res.mean(), p.low_res, np.nan))
        ),
        drawn.image_HW3,
        [drawn.boxes, drawn.points],
    )
    with pytest.raises(ExportError, match="of a logit is nan"):
        check_parity(later, "FP32", "model")


@pytest.mark.parametrize(
    ("change", "precision", "passes"),
    [
        ({"flipped": 0.9e-4, "flipped_pixels": 90}, "FP32", True),
        ({"flipped": 1.1e-4, "flipped_pixels": 110}, "FP32", False),
        ({"flipped": 1.1e-4, "flipped_pixels": 110}, "FP16", True),
        ({"flipped": 1.1e-2, "flipped_pixels": 11000}, "FP16", False),
        ({"flipped": 1e-2, "flipped_pixels": FEW_PIXELS}, "FP32", True),  # small objects: a pixel is a large share
        ({"flipped": 1e-2, "flipped_pixels": FEW_PIXELS, "logits": 1e-2}, "FP32", False),
        ({"logits": 0.9e-3}, "FP32", True),
        ({"logits": 1.1e-3}, "FP32", False),
        ({"logits": 1.1e-1}, "FP16", False),
        ({"iou": 2e-3}, "FP32", False),
        ({"iou": float("nan")}, "FP16", False),
        ({"flipped": float("nan"), "flipped_pixels": 100}, "FP16", False),
    ],
)
def test_check_parity__limits(change, precision, passes):
    parity = replace(NONE_DIFFERS, **change)
    if passes:
        check_parity(parity, precision, "model")
        return
    with pytest.raises(ExportError):
        check_parity(parity, precision, "model")


def test_measure_parity__small_objects(micro_sam, vineyard):
    """One prompt of some pixels: still a number, not a division by nothing."""
    tiny = Prompts(np.array([[[10, 10], [12, 12]]], np.float32), np.array([[2, 3]], np.float32))
    parity = measure_parity(TorchPredictor(micro_sam), TorchPredictor(micro_sam), vineyard[0].image_HW3, [tiny])
    assert (parity.flipped, parity.prompts) == (0.0, 1)
