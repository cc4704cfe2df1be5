"""Exported models and drawn images that tests of several folders share."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vpexp.config.schema import DataConfig, PromptConfig, SyntheticConfig
from vpexp.data.prompts import Prompts, build_evaluation_prompts
from vpexp.inference.exported import ExportedModel

LABELS = ("grape bunch", "a \"quoted\" <b> & 'c'", "Größe 葡萄")
FULL = {"image_encoder": "FP32", "decoder": "FP32"}


@dataclass(frozen=True)
class DrawnImage:
    """An image with prompts on it, pixels of the image."""

    image_HW3: NDArray[np.uint8]
    boxes: Prompts
    points: Prompts

    @property
    def boxes_N4(self) -> NDArray[np.float32]:
        return self.boxes.coords_NP2.reshape(-1, 4)

    @property
    def points_N2(self) -> NDArray[np.float32]:
        return self.points.coords_NP2[:, 0]


def build_debug_sam():
    """sam_debug with drawn weights whose logits are no smaller than a trained model's."""
    from tests.references.official import randomize
    from vpexp.models.registry import build_sam_debug

    return randomize(build_sam_debug(64), seed=3)


def export(sam, name, folder, format_, *, precisions=FULL, labels=LABELS, multimask="auto") -> ExportedModel:
    """Write a model as ``stage=export`` does."""
    from vpexp.deploy.graph import ExportInfo
    from vpexp.deploy.onnx_format import write_onnx
    from vpexp.deploy.openvino_format import write_openvino
    from vpexp.models.weights import compute_state_hash

    info = ExportInfo(name, sam.image_size, labels, compute_state_hash(sam), multimask)
    write = write_onnx if format_ == "onnx" else write_openvino
    return write(sam, folder, info, precisions=precisions)


def draw_vineyard(root: Path, *, image_size=256, count=2, seed=5) -> list[DrawnImage]:
    """Draw bunches of grapes."""
    from vpexp.data.dataset import load_dataset
    from vpexp.synthetic.dataset import write_synthetic_dataset

    root = write_synthetic_dataset(
        root, SyntheticConfig(scene="vineyard", image_size=image_size, train=1, val=1, test=count, seed=seed)
    )
    return take_images(load_dataset(DataConfig(format="coco", root=root), splits=("test",)).splits["test"].images)


def take_images(images) -> list[DrawnImage]:
    """Read annotated images, and build a box and a point for each object."""
    from vpexp.data.batch import EvaluationSet

    read = EvaluationSet(images, PromptConfig())
    return [
        DrawnImage(
            read[index].image_HW3, *(build_evaluation_prompts(image, PromptConfig(kind)) for kind in ("box", "point"))
        )
        for index, image in enumerate(images)
    ]


def crop(drawn: DrawnImage, height: int, width: int) -> DrawnImage:
    """Cut the top left corner out, with the prompts that lie inside whole."""
    inside = (drawn.boxes_N4[:, 2] <= width) & (drawn.boxes_N4[:, 3] <= height)
    kept = np.nonzero(inside)[0]
    image_HW3 = np.ascontiguousarray(drawn.image_HW3[:height, :width])
    return DrawnImage(image_HW3, drawn.boxes.select(kept), drawn.points.select(kept))


def assert_same_predictions(expected, got, *, most_flipped=1e-4) -> None:
    """Masks of two backends: pixels differ only where the logit is zero up to rounding, and hardly anywhere."""
    assert got.masks.shape == expected.masks.shape
    assert (got.masks.dtype, got.iou.dtype, got.low_res.dtype) == (np.bool_, np.float32, np.float32)
    spread = expected.low_res.std() + 1e-12
    assert np.abs(expected.low_res - got.low_res).max() < 1e-3 * spread
    np.testing.assert_allclose(got.iou, expected.iou, atol=1e-4)
    flipped = np.count_nonzero(expected.masks != got.masks)
    assert flipped <= max(1, most_flipped * np.count_nonzero(expected.masks | got.masks))
