"""Exported models and drawn images that tests of several folders share."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vpexp.config.schema import DataConfig, PromptConfig, SyntheticConfig
from vpexp.data.prompts import Prompts, build_evaluation_prompts
from vpexp.inference.exported import ExportedModel

LABELS = ("grape bunch", "a \"quoted\" <b> & 'c'", "Größe 葡萄")
FULL = dict.fromkeys(("image_encoder", "decoder", "prompter", "classifier"), "FP32")


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


def export(
    sam, name, folder, format_, *, precisions=FULL, labels=LABELS, multimask="auto", instances=None
) -> ExportedModel:
    """Write a model as ``stage=export`` does."""
    from vpexp.deploy.graph import ExportInfo
    from vpexp.deploy.onnx_format import write_onnx
    from vpexp.deploy.openvino_format import write_openvino
    from vpexp.models.weights import compute_state_hash

    info = ExportInfo(name, sam.image_size, labels, compute_state_hash(sam), multimask, instances=instances)
    write = write_onnx if format_ == "onnx" else write_openvino
    return write(sam, folder, info, precisions=precisions)


def learn_instances(sam, root: Path, *, labels=LABELS, steps=40):
    """Train a prompter for some seconds on drawn images; the classifier has drawn weights."""
    import torch

    from vpexp.data.geometry import normalize_and_pad, resize_image
    from vpexp.data.images import read_image
    from vpexp.inference.torch_instances import InstanceParts
    from vpexp.inference.torch_predictor import TorchPredictor
    from vpexp.models.mask_classifier import MaskClassifier
    from vpexp.models.prompter import Prompter
    from vpexp.training.prompter_targets import build_targets, compute_loss, list_views

    predictor = TorchPredictor(sam)
    views = list_views(draw_set(root, sam.image_size, 4), None, sam.image_size)
    images = [read_image(view.place.path) for view in views]
    embeddings = torch.cat([predictor.embed(image).features for image in images])
    size = sam.image_size
    pixels = torch.from_numpy(np.stack([normalize_and_pad(resize_image(image, size), size) for image in images]))
    with torch.random.fork_rng():
        torch.manual_seed(7)
        prompter = Prompter(sam.embedding_channels, width=32, depth=1, limit=100)
        classifier = MaskClassifier(len(labels), width=8, statistics=True).eval() if len(labels) > 1 else None
        targets = build_targets(views, size, prompter.cells)
        optimizer = torch.optim.AdamW(prompter.parameters(), 3e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            compute_loss(prompter.compute_maps(embeddings, pixels), targets).backward()
            optimizer.step()
    # Random masks have no score: the lowest keeps them.
    return InstanceParts(prompter.eval(), classifier, tuple(labels), threshold=0.0, max_overlap=0.6)


def draw_set(root: Path, image_size: int, count: int, seed=5):
    """Draw annotated images of bunches of grapes."""
    from vpexp.data.dataset import load_dataset
    from vpexp.synthetic.dataset import write_synthetic_dataset

    root = write_synthetic_dataset(
        root, SyntheticConfig(scene="vineyard", image_size=image_size, train=1, val=1, test=count, seed=seed)
    )
    return load_dataset(DataConfig(format="coco", root=root), splits=("test",)).splits["test"].images


def draw_vineyard(root: Path, *, image_size=256, count=2, seed=5) -> list[DrawnImage]:
    """Draw bunches of grapes."""
    return take_images(draw_set(root, image_size, count, seed))


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
