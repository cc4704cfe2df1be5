"""The first epoch over images that were never seen, validation left out.

Ours: the cache is filled, then a Trainer of ``stage=train`` runs one epoch and writes its checkpoint. Plain: an epoch of
its loop. Both read images in the training process, without workers.
"""

import shutil
from typing import Any

import torch
from torch.utils.data import DataLoader

from scripts.benchmarks import ours
from scripts.benchmarks.contender import Ready
from scripts.benchmarks.plain_data import PlainImages, collate
from scripts.benchmarks.plain_model import build_plain_sam
from scripts.benchmarks.plain_train import PlainTrainer
from scripts.benchmarks.settings import Settings
from vpexp.stages.shared.embeddings import prepare_embeddings
from vpexp.training.trainer import fit

EPOCH = ("trainer.max_epochs=1", "trainer.limit_val_batches=0")
# The order of images is drawn by each side, and ours rounds its embeddings: the mean loss of an epoch differs a little.
TOLERANCES = {"images": 0.0}


class Ours:
    """An epoch of ``stage=train``."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.prepare()

    def prepare(self) -> None:
        """Forget all embeddings, and build a model and its trainer anew."""
        self.context = ours.open_context(self.settings, *EPOCH)
        shutil.rmtree(self.context.cache_dir / "embeddings", ignore_errors=True)
        self.sam = ours.build_sam(self.context)
        self.loop, self.dataset = ours.open_training(self.context, self.sam)

    def turn(self) -> None:
        """Fill the cache and train."""
        encoder = prepare_embeddings(self.context, self.sam, self.dataset, ["train"])
        self.loop.module.embedding_cache = encoder.cache
        self.loop.data.use_embeddings(encoder.stored)
        fit(self.loop.trainer, self.loop.module, self.loop.data, None)

    def check(self) -> dict[str, Any]:
        """Count the images."""
        return {"images": len(self.loop.data.training_set)}


class Plain(Ready):
    """An epoch of the plain loop."""

    def __init__(self, settings: Settings) -> None:
        sam = build_plain_sam(settings.model, settings.weights)
        self.images = PlainImages(settings.data, "train", sam.image_size, stretch=sam.stretches)
        self.trainer = PlainTrainer(sam)
        self.batch_size = settings.batch_size

    def turn(self) -> None:
        """Train."""
        torch.manual_seed(0)
        for samples in DataLoader(self.images, self.batch_size, shuffle=True, collate_fn=collate):
            self.trainer.step(samples)

    def check(self) -> dict[str, Any]:
        """Count the images."""
        return {"images": len(self.images)}


SIDES = {"ours": Ours, "plain": Plain}
