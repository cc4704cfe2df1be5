"""Loaders: every image with objects, in an order that can be taken up again."""

from dataclasses import replace

import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from vpexp.config.schema import PromptConfig
from vpexp.data.annotations import with_objects
from vpexp.data.batch import EvaluationSample


class Seen(Callback):
    """Notes what each training step was given."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append((trainer.current_epoch, batch.image_ids, batch.coords_NP2.clone()))


def assert_same_batches(found, expected):
    assert [entry[:2] for entry in found] == [entry[:2] for entry in expected]
    assert all(torch.equal(one[2], other[2]) for one, other in zip(found, expected, strict=True))


def test_loaders__give_each_image_once(build_data):
    data = build_data(batch_size=2)
    batches = list(data.train_dataloader())
    assert [len(batch.image_ids) for batch in batches] == [2, 1]
    assert sorted(name for batch in batches for name in batch.image_ids) == ["train0.png", "train1.png", "train2.png"]
    samples = list(data.val_dataloader())
    assert all(isinstance(sample, EvaluationSample) for sample in samples)
    assert [sample.annotations.image_id for sample in samples] == ["val0.png", "val1.png"]


def test_loaders__workers_change_nothing(build_data):
    alone, helped = build_data(recipe=PromptConfig(jitter=0.3)), build_data(recipe=PromptConfig(jitter=0.3))
    helped.num_workers = 1
    for one, other in zip(alone.train_dataloader(), helped.train_dataloader(), strict=True):
        assert one.image_ids == other.image_ids
        assert torch.equal(one.coords_NP2, other.coords_NP2)


def test_with_objects__leaves_out_images_without_any(dataset):
    image = dataset.splits["train"].images[0]
    empty = replace(image, masks=(), boxes_N4=image.boxes_N4[:0], labels_N=image.labels_N[:0], object_ids=())
    assert with_objects((empty, image)) == [image]


def test_fit__each_epoch_is_shuffled_and_drawn_anew(build_data, build_module, build_plain_trainer):
    seen = Seen()
    data = build_data(batch_size=1, recipe=PromptConfig(jitter=0.3))
    build_plain_trainer(seen, max_epochs=4).fit(build_module(), datamodule=data)
    orders = [[ids[0] for epoch, ids, _ in seen.batches if epoch == e] for e in range(4)]
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    boxes = [coords for _, ids, coords in seen.batches if ids == ["train0.png"]]
    assert not any(torch.equal(boxes[0], other) for other in boxes[1:])


@pytest.mark.parametrize("limit", [1.0, 2])
def test_fit__resumed_run_goes_on_with_the_same_batches(tmp_path, build_data, build_module, build_plain_trainer, limit):
    """Also where ``limit_train_batches`` ends an epoch before all images were seen."""
    recipe = PromptConfig(jitter=0.3)

    def fit(epochs, *callbacks, resume=None, **options):
        trainer = build_plain_trainer(*callbacks, max_epochs=epochs, limit_train_batches=limit, **options)
        data = build_data(batch_size=1, recipe=recipe)
        trainer.fit(build_module(), datamodule=data, ckpt_path=resume, weights_only=True if resume else None)

    whole, resumed = Seen(), Seen()
    fit(3, whole)
    fit(1, ModelCheckpoint(dirpath=tmp_path, filename="last"), enable_checkpointing=True)
    fit(3, resumed, resume=tmp_path / "last.ckpt")
    assert len(whole.batches) == (9 if limit == 1.0 else 6)
    assert_same_batches(resumed.batches, [entry for entry in whole.batches if entry[0] > 0])
