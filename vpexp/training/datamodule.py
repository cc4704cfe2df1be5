"""Loaders of training and validation images."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from vpexp.config.schema import PromptConfig
from vpexp.data.annotations import AnnotatedDataset
from vpexp.data.batch import EvaluationSet, TrainingSet, collate_training
from vpexp.data.loaders import ResumableBatchSampler, build_evaluation_loader, with_objects
from vpexp.embeddings.store import StoredEmbeddings
from vpexp.signals import leave_stops_to_parent


class FineTuningData(pl.LightningDataModule):
    """The train and val splits of a data set.

    Args:
        dataset: with splits ``train`` and ``val``.
        recipe: how prompts are made.
        image_size: S.
        resolution: low, input or original, see ``rasterize_target``.
        batch_size: images a training step, for each process.
        num_workers: processes that read images; 0 reads in the training process.
        seed: fixes order and prompts of every epoch.
    """

    def __init__(
        self,
        dataset: AnnotatedDataset,
        recipe: PromptConfig,
        *,
        image_size: int,
        resolution: str,
        batch_size: int,
        num_workers: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.num_workers = num_workers
        train_images = with_objects(dataset.splits["train"].images)
        self.training_set = TrainingSet(
            train_images, image_size=image_size, recipe=recipe, resolution=resolution, seed=seed
        )
        self.validation_set = EvaluationSet(with_objects(dataset.splits["val"].images), recipe)
        self.sampler = ResumableBatchSampler(len(train_images), batch_size, seed)

    def use_embeddings(self, embeddings: StoredEmbeddings | None) -> None:
        """Read stored embeddings instead of pixels."""
        self.training_set.embeddings = self.validation_set.embeddings = embeddings

    def train_dataloader(self) -> DataLoader[Any]:
        """Build the loader of training batches."""
        return DataLoader(
            self.training_set,
            batch_sampler=self.sampler,
            num_workers=self.num_workers,
            collate_fn=collate_training,
            worker_init_fn=leave_stops_to_parent,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Build the loader of validation images."""
        return build_evaluation_loader(self.validation_set, self.num_workers)

    def state_dict(self) -> dict[str, Any]:
        """Return where the order of images goes on: the epoch, and how many of its batches are done."""
        if self.trainer is None:
            return {"epoch": 0, "batches_done": 0}
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        done = progress.current.completed
        if done >= min(len(self.sampler), self.trainer.num_training_batches):  # limit_train_batches ends it earlier
            return {"epoch": self.trainer.current_epoch + 1, "batches_done": 0}
        return {"epoch": self.trainer.current_epoch, "batches_done": done}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where the checkpoint was; loaders with workers begin to read before Lightning sets the epoch."""
        self.sampler.set_epoch(int(state_dict["epoch"]))
        self.sampler.skip_batches(int(state_dict["batches_done"]))
