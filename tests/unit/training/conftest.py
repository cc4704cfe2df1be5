"""A data set of a few drawn rectangles, and a fine-tuner of the smallest model."""

from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from vpexp.config.schema import LossConfig, PromptConfig
from vpexp.data.annotations import AnnotatedDataset, AnnotatedImage, Split
from vpexp.data.masks import compute_box, encode_mask
from vpexp.models.registry import build_sam_debug
from vpexp.models.tuning import apply_tuning, plan_tuning
from vpexp.models.weights import compute_state_hash
from vpexp.training.losses import MaskLoss
from vpexp.training.module import FineTuningData, SamFineTuner
from vpexp.training.schedulers import build_constant
from vpexp.training.step_loss import StepLoss

FROZEN = ("image_encoder", "prompt_encoder")


def draw_image(path: Path, seed: int, size: tuple[int, int] = (48, 64), count: int = 3) -> AnnotatedImage:
    height, width = size
    rng = np.random.default_rng(seed)
    image_HW3 = rng.integers(0, 80, (height, width, 3), dtype=np.uint8)
    masks = []
    for _ in range(count):
        top, left = rng.integers(0, height - 16), rng.integers(0, width - 16)
        mask_HW = np.zeros(size, dtype=bool)
        mask_HW[top : top + rng.integers(8, 16), left : left + rng.integers(8, 16)] = True
        image_HW3[mask_HW] = rng.integers(120, 255, 3, dtype=np.uint8)
        masks.append(encode_mask(mask_HW))
    Image.fromarray(image_HW3).save(path)
    return AnnotatedImage(
        image_id=path.name,
        path=path,
        height=height,
        width=width,
        masks=tuple(masks),
        boxes_N4=np.array([compute_box(rle) for rle in masks], dtype=np.float32).reshape(-1, 4),
        labels_N=np.arange(count) % 2,
        object_ids=tuple(str(i) for i in range(count)),
    )


@pytest.fixture
def dataset(tmp_path):
    splits = {}
    for name, count in (("train", 3), ("val", 2)):
        images = tuple(draw_image(tmp_path / f"{name}{i}.png", seed=i) for i in range(count))
        splits[name] = Split(name, name, images, {}, {})
    return AnnotatedDataset("coco", tmp_path, ("berry", "leaf"), splits, ())


@pytest.fixture
def build_data(dataset):
    def build(image_size=64, resolution="input", batch_size=2, recipe=None):
        return FineTuningData(
            dataset,
            recipe or PromptConfig(),
            image_size=image_size,
            resolution=resolution,
            batch_size=batch_size,
            num_workers=0,
            seed=0,
        )

    return build


@pytest.fixture
def build_module():
    def build(
        sam=None, freeze=FROZEN, *, resolution="input", lr=1e-3, left_out=None, tune="none", lora=None, **options
    ):
        if sam is None:
            torch.manual_seed(0)
            sam = build_sam_debug(64)
        left_out = freeze if left_out is None else left_out
        identity = {
            "config": "model: {name: sam_debug}",
            "frozen": {part: compute_state_hash(getattr(sam, part)) for part in left_out if hasattr(sam, part)},
            "categories": ["berry", "leaf"],
        }
        defaults = {
            "step_loss": StepLoss(MaskLoss(LossConfig()), resolution),
            "categories": ("berry", "leaf"),
            "build_optimizer": lambda sam: torch.optim.Adam([p for p in sam.parameters() if p.requires_grad], lr=lr),
            "build_scheduler": lambda optimizer, total_steps: {
                "scheduler": build_constant(optimizer, total_steps=total_steps),
                "interval": "step",
            },
            "identity": identity,
        }
        tuning = plan_tuning(sam, freeze, tune, lora)
        apply_tuning(sam, tuning)
        return SamFineTuner(sam, tuning=tuning, **{**defaults, **options})

    return build


@pytest.fixture
def build_plain_trainer(tmp_path):
    def build(*callbacks, max_epochs=1, **options):
        return pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=max_epochs,
            callbacks=list(callbacks),
            default_root_dir=tmp_path,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            **{"logger": False, "enable_checkpointing": False, "use_distributed_sampler": False, **options},
        )

    return build
