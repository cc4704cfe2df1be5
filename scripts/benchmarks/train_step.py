"""One optimizer step on 2 images with 12 objects each, data included.

Ours: both stored embeddings are read, targets made, decoded, loss, backward, Adam. Plain: both images are read, decoded
and resized, their masks rasterised, encoded, decoded, loss at original size, backward, Adam. One process does it all on
both sides, without workers.
"""

from typing import Any

import torch

from scripts.benchmarks import ours
from scripts.benchmarks.contender import Ready
from scripts.benchmarks.plain_data import PlainImages
from scripts.benchmarks.plain_model import build_plain_sam
from scripts.benchmarks.plain_train import PlainTrainer
from scripts.benchmarks.settings import Settings
from vpexp.data.batch import Batch, collate_training
from vpexp.stages.shared.embeddings import prepare_embeddings

# Ours stores embeddings as float16.
TOLERANCES = {"loss": 2e-3}


class Ours(Ready):
    """Steps of ``stage=train``, after its cache was filled."""

    asked: tuple[str, ...] = ()

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.context = ours.open_context(settings, *self.asked)
        self.sam = ours.build_sam(self.context)
        self.loop = self._open(self.context)
        module = self.loop.module
        self.optimizer = module.build_optimizer(self.sam)
        self.turns = 0

    def check(self) -> dict[str, Any]:
        """Compute the loss at original size, as the plain side does."""
        loop = self._open(ours.open_context(self.settings, "loss.resolution=original", *self.asked))
        loss = loop.module.training_step(self._read(loop, 0), 0)
        return {"loss": float(loss.detach())}

    def turn(self) -> None:
        """Do one step."""
        self.turns += 1
        loss = self.loop.module.training_step(self._read(self.loop, self.turns), 0)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _open(self, context: Any) -> Any:
        loop, dataset = ours.open_training(context, self.sam)
        encoder = prepare_embeddings(context, self.sam, dataset, ["train"])
        loop.module.embedding_cache = encoder.cache
        loop.data.use_embeddings(encoder.stored)
        loop.module.train()
        return loop

    def _read(self, loop: Any, turn: int) -> Batch:
        """Read a batch as a worker does."""
        images = loop.data.training_set
        batch = collate_training([images[turn, index] for index in pick(turn, self.settings.batch_size, len(images))])
        assert isinstance(batch, Batch)
        return batch


class Plain(Ready):
    """Steps of the plain implementation."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        sam = build_plain_sam(settings.model, settings.weights)
        self.images = PlainImages(settings.data, "train", sam.image_size, stretch=sam.stretches)
        self.trainer = PlainTrainer(sam)
        self.turns = 0

    def check(self) -> dict[str, Any]:
        """Compute the loss of the first batch."""
        with torch.no_grad():
            return {"loss": float(self.trainer.compute_loss(self._read(0)))}

    def turn(self) -> None:
        """Do one step."""
        self.turns += 1
        self.trainer.step(self._read(self.turns))

    def _read(self, turn: int) -> list[Any]:
        return [self.images[index] for index in pick(turn, self.settings.batch_size, len(self.images))]


def pick(turn: int, batch_size: int, images: int) -> list[int]:
    """Name the images of a step."""
    return [(turn * batch_size + place) % images for place in range(batch_size)]


SIDES = {"ours": Ours, "plain": Plain}
