"""No training step waits for a GPU: run on torch's meta device, whose tensors have no content and refuse to be looked at."""

import pytest
import torch
from torch import Tensor

from vpexp.config.schema import LossConfig
from vpexp.data.batch import Batch, MaskTargets
from vpexp.models.registry import build_sam_debug
from vpexp.training.build import build_loss
from vpexp.training.step_loss import StepLoss

GPU = "meta"
SIDE, OBJECTS = 64, 3


def build_batch(labels_NP, resolution):
    objects, side = len(labels_NP), SIDE // 4 if resolution == "low" else SIDE
    bits_NX = torch.zeros(OBJECTS, side * side // 8, dtype=torch.uint8, device=GPU)
    return Batch(
        images_B3SS=torch.zeros(0, 3, 0, 0, device=GPU),
        image_index_N=torch.zeros(objects, dtype=torch.int64, device=GPU),
        coords_NP2=torch.zeros(objects, labels_NP.shape[1], 2, device=GPU),
        labels_NP=labels_NP,
        targets=[MaskTargets(bits_NX, (side, side)) for _ in range(objects // OBJECTS)],
        resized_B2=RESIZED,
        click_draws_NR=torch.zeros(objects, 0),
        image_ids=["a"] * (objects // OBJECTS),
        unreadable=[],
    )


RESIZED = torch.tensor([[SIDE, SIDE]] * 2)
POINTS, BOXES = torch.ones(2 * OBJECTS, 1), torch.tensor([[2.0, 3.0]] * 2 * OBJECTS)
MIXED = torch.tensor([[2.0, 3.0], [1.0, -1.0], [1.0, 0.0]] * 2)


@pytest.mark.parametrize("labels_NP", [POINTS, BOXES, MIXED], ids=["points", "boxes", "both"])
@pytest.mark.parametrize("resolution", ["low", "input", "original"])
def test_step_loss__never_waits_for_a_gpu(labels_NP, resolution):
    with torch.device(GPU):
        sam = build_sam_debug(SIDE)
    embeddings_BCHW = torch.zeros(2, sam.embedding_channels, SIDE // 16, SIDE // 16, device=GPU)
    step_loss = StepLoss(build_loss(LossConfig()), resolution, multimask="auto")
    terms = step_loss.compute(sam, embeddings_BCHW, build_batch(labels_NP, resolution))
    terms.total.backward()
    assert terms.total.device.type == GPU
    assert sam.mask_decoder.iou_token.weight.grad is not None


@pytest.mark.parametrize(
    "look", [lambda found: bool(found.any()), lambda found: found.tolist(), lambda found: found[found > 0], Tensor.cpu]
)
def test_gpu__refuses_to_be_looked_at(look):
    with pytest.raises((RuntimeError, NotImplementedError)):
        look(torch.zeros(3, device=GPU))
