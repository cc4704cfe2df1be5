"""Checkpoints as a training writes them."""

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

from vpexp.config import compose_config
from vpexp.config.schema import LossConfig
from vpexp.inference.torch_model import build_identity, load_sam
from vpexp.models.tuning import apply_tuning, plan_tuning
from vpexp.training.callbacks import AtomicCheckpointIO
from vpexp.training.losses import MaskLoss
from vpexp.training.module import SamFineTuner
from vpexp.training.step_loss import StepLoss


@pytest.fixture
def cfg():
    return compose_config(["experiment=debug", "seed=7"])


@pytest.fixture
def write_checkpoint(cfg, tmp_path):
    """Write a checkpoint of a model whose unfrozen parts have moved; return its path and the model."""

    def write(
        path=tmp_path / "some.ckpt",
        *,
        freeze=("image_encoder", "prompt_encoder"),
        left_out=None,
        shift=0.01,
        tune="none",
        lora=None,
    ):
        sam = load_sam(OmegaConf.to_object(cfg.model), seed=cfg.seed)
        tuning = plan_tuning(sam, freeze, tune, lora)
        apply_tuning(sam, tuning)
        module = SamFineTuner(
            sam,
            tuning=tuning,
            step_loss=StepLoss(MaskLoss(LossConfig()), "input"),
            categories=("berry", "leaf"),
            build_optimizer=lambda sam: torch.optim.Adam(sam.parameters()),
            build_scheduler=lambda *_: None,
            identity=build_identity(sam, cfg, tuning, freeze if left_out is None else left_out, ("berry", "leaf")),
        )
        with torch.no_grad():
            for parameter in sam.parameters():
                if parameter.requires_grad:
                    parameter.add_(shift)
        trainer = pl.Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[AtomicCheckpointIO()],
            default_root_dir=tmp_path,
        )
        trainer.strategy.connect(module)
        trainer.save_checkpoint(path, weights_only=True)
        return path, sam

    return write
