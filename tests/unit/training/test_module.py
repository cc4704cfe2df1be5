"""The fine-tuner: what is frozen stays, what learns learns, and checkpoints hold just that."""

import copy

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from vpexp.config.schema import PARTS
from vpexp.data.batch import UnreadableImage, collate_training
from vpexp.embeddings.cache import EmbeddingCache, EncoderPasses
from vpexp.embeddings.store import EmbeddingStore, StoredEmbeddings, compute_image_key
from vpexp.errors import CheckpointError, ConfigError, DivergenceError
from vpexp.models.registry import build_sam_debug, build_sam_micro
from vpexp.models.tuning import Lora
from vpexp.training import module as module_file
from vpexp.training.module import StepRecord

FROZEN = ("image_encoder", "prompt_encoder")


def snapshot(part):
    return {name: value.clone() for name, value in part.state_dict().items()}


def is_unchanged(part, before):
    now = part.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def get_batch(data, count=3):
    return collate_training([data.training_set[0, index] for index in range(count)])


class Modes(Callback):
    """Notes the mode of the parts in each training step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, *_):
        sam = pl_module.sam
        parts = (sam.image_encoder, sam.prompt_encoder, sam.mask_decoder)
        self.seen.append([{module.training for module in part.modules()} for part in parts])


def test_fit__frozen_parts_stay_to_the_bit_batch_norm_included(build_module, build_data, build_plain_trainer):
    torch.manual_seed(0)
    sam = build_sam_micro(64)
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in sam.image_encoder.modules())
    module, modes = build_module(sam), Modes()
    before = {part: snapshot(getattr(sam, part)) for part in PARTS}
    build_plain_trainer(modes, max_epochs=2).fit(module, datamodule=build_data(batch_size=1))
    assert is_unchanged(sam.image_encoder, before["image_encoder"])
    assert is_unchanged(sam.prompt_encoder, before["prompt_encoder"])
    changed = {n for n, v in sam.mask_decoder.state_dict().items() if not torch.equal(v, before["mask_decoder"][n])}
    still = set(before["mask_decoder"]) - changed
    # Only the hypernetworks of masks that are never used stay (and a bias that softmax cancels gets rounding only).
    assert {name.split(".")[1] for name in still if name.startswith("output_hyper")} == {"1", "2", "3"}
    assert all(name.startswith("output_hyper") or name.endswith("k_proj.bias") for name in still)
    assert len(modes.seen) == 6
    assert all(seen == [{False}, {False}, {True}] for seen in modes.seen)
    assert not sam.mask_decoder.training  # left as it is used


def test_fit__unfrozen_encoder_learns_in_training_mode(build_module, build_data, build_plain_trainer):
    torch.manual_seed(0)
    sam = build_sam_micro(64)
    module, modes = build_module(sam, freeze=("prompt_encoder",)), Modes()
    before = {part: snapshot(getattr(sam, part)) for part in PARTS}
    build_plain_trainer(modes).fit(module, datamodule=build_data())
    after = sam.image_encoder.state_dict()
    assert is_unchanged(sam.prompt_encoder, before["prompt_encoder"])
    unchanged = [name for name, value in after.items() if torch.equal(value, before["image_encoder"][name])]
    assert not [name for name in unchanged if name.endswith("weight")]
    assert any("running_mean" in name for name in after)
    # BatchNorm keeps its statistics, and learns scale and shift.
    assert {name for name in after if "running_" in name} <= set(unchanged)
    assert all(seen == [{True, False}, {False}, {True}] for seen in modes.seen)
    assert not any(part.training for part in sam.modules())


def test_train__leaves_frozen_parts_in_eval_mode(build_module):
    module = build_module()
    for mode in (True, False, True):
        module.train(mode)
        assert module.training is mode
        assert {m.training for m in module.sam.mask_decoder.modules()} == {mode}
        assert {m.training for m in module.sam.image_encoder.modules()} == {False}
        assert {m.training for m in module.sam.prompt_encoder.modules()} == {False}


def test_freeze__decides_what_has_a_gradient(build_module):
    module = build_module()
    assert not any(p.requires_grad for p in module.sam.image_encoder.parameters())
    assert not any(p.requires_grad for p in module.sam.prompt_encoder.parameters())
    still = {n for n, p in module.sam.mask_decoder.named_parameters() if not p.requires_grad}
    assert {".".join(name.split(".")[:2]) for name in still} == {f"output_hypernetworks_mlps.{i}" for i in (1, 2, 3)}
    encoder_only = build_module(module.sam, freeze=("prompt_encoder", "mask_decoder"))  # the same model, used again
    assert all(p.requires_grad for p in encoder_only.sam.image_encoder.parameters())
    assert not any(p.requires_grad for p in encoder_only.sam.mask_decoder.parameters())


@pytest.mark.parametrize(
    ("freeze", "words"),
    [(("image_encodr",), "'image_encodr' is no part"), (PARTS, "leaves nothing to train")],
)
def test_freeze__wrong_names_are_told(build_module, freeze, words):
    with pytest.raises(ConfigError, match=words):
        build_module(freeze=freeze)


def test_training_step__loss_falls(build_module, build_data):
    module, batch = build_module().train(), get_batch(build_data())
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(12):
        loss = module.step_loss.compute(module.sam, module.sam.encode_image(batch.images_B3SS), batch).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_training_step__nothing_readable_is_zero_and_keeps_every_parameter_in_the_graph(build_module):
    module = build_module()
    loss = module.training_step([UnreadableImage("a.png", "damaged")], 0)
    assert loss.item() == 0
    loss.backward()
    trained = [p for p in module.parameters() if p.requires_grad]
    assert all(p.grad is not None and not p.grad.any() for p in trained)
    assert module.unreadable == {"a.png": "damaged"}
    assert module.compute_epoch_losses() == {}


def test_read_losses__of_several_steps_at_once(build_module):
    module, expected = build_module(), [[4.0, 1.0, 2.0, 3.0], [0.1, 0.7, 0.3, 0.2]]
    module._unread = [StepRecord(torch.tensor([*values, 6.0]), ["a.png"]) for values in expected]
    module._unread.append(StepRecord(torch.zeros(5), []))  # nothing to learn from, in no process
    assert module.compute_epoch_losses() == pytest.approx(
        dict(zip(module_file.LOSS_NAMES, np.mean(expected, axis=0).tolist(), strict=True))
    )
    assert module.epoch_sums["steps"] == 2
    assert module.last_loss == pytest.approx(0.1)
    module._unread = [StepRecord(torch.ones(5), ["a.png"]), StepRecord(torch.tensor([np.nan, 1, 1, 1, 6]), ["b.png"])]
    with pytest.raises(DivergenceError, match=r"the loss is no longer a number in epoch 1 \(images b\.png\)"):
        module.on_save_checkpoint({"state_dict": {}})  # weights that are no numbers are never kept


def test_fit__goes_past_damaged_images(dataset, build_module, build_data, build_plain_trainer):
    for name in ("train", "val"):
        path = dataset.splits[name].images[0].path
        path.write_bytes(path.read_bytes()[:50])
    module = build_module()
    build_plain_trainer(max_epochs=2).fit(module, datamodule=build_data(batch_size=1))
    assert set(module.unreadable) == {"train0.png"}
    assert [item.image_id for item in module.validation_result.unreadable] == ["val0.png"]
    assert module.validation_result.images == 1
    assert module.epoch_sums["steps"] == 2  # the step without an image is no part of the mean


def test_fit__logs_validation_metrics_and_epoch_losses(build_module, build_data, build_plain_trainer):
    module = build_module()
    trainer = build_plain_trainer()
    trainer.fit(module, datamodule=build_data())
    metrics = trainer.callback_metrics
    result = module.validation_result
    assert result.images == 2
    assert result.objects == 6
    assert {"val/f1-score", "val/dice", "val/iou", "val/map", "val/mar_100", "val/iter_time"} <= set(metrics)
    assert float(metrics["val/f1-score"]) == pytest.approx(result.metrics["f1-score"])
    losses = module.compute_epoch_losses()
    assert set(losses) == {"train/loss", "train/loss_focal", "train/loss_dice", "train/loss_iou"}
    weighted = 20 * losses["train/loss_focal"] + losses["train/loss_dice"] + losses["train/loss_iou"]
    assert losses["train/loss"] == pytest.approx(weighted, rel=1e-5)


def save_checkpoint(module, data, build_plain_trainer, folder):
    saver = ModelCheckpoint(dirpath=folder, filename="last")
    trainer = build_plain_trainer(saver, enable_checkpointing=True)
    trainer.fit(module, datamodule=data)
    return folder / "last.ckpt"


def test_checkpoint__holds_only_what_was_trained(tmp_path, build_module, build_data, build_plain_trainer):
    module = build_module()
    path = save_checkpoint(module, build_data(), build_plain_trainer, tmp_path / "ckpt")
    content = torch.load(path, weights_only=True)
    assert content["state_dict"].keys() == {f"sam.mask_decoder.{name}" for name in module.sam.mask_decoder.state_dict()}
    assert content["vpexp"] == module.identity
    assert set(content["vpexp"]["frozen"]) == set(FROZEN)
    assert content["epoch_sums"]["steps"] == 2


def test_checkpoint__keeps_a_frozen_part_that_came_from_a_start_checkpoint(
    tmp_path, build_module, build_data, build_plain_trainer
):
    """Its hash is not the model's own weights': without it nothing could put the model together again."""
    module = build_module(left_out=("prompt_encoder",))
    path = save_checkpoint(module, build_data(), build_plain_trainer, tmp_path / "ckpt")
    names = {name.split(".")[1] for name in torch.load(path, weights_only=True)["state_dict"]}
    assert names == {"image_encoder", "mask_decoder"}
    # The run that goes on builds its encoder anew, and takes the one in the checkpoint.
    torch.manual_seed(0)
    resumed = build_module()
    other_encoder = copy.deepcopy(resumed.sam.image_encoder)
    with torch.no_grad():
        for parameter in resumed.sam.image_encoder.parameters():
            parameter.add_(1.0)
    build_plain_trainer(max_epochs=2).fit(resumed, datamodule=build_data(), ckpt_path=path, weights_only=True)
    assert is_unchanged(resumed.sam.image_encoder, snapshot(other_encoder))
    assert set(resumed.identity["frozen"]) == {"prompt_encoder"}


def test_checkpoint__resumed_on_another_frozen_part_is_refused(tmp_path, build_module, build_data, build_plain_trainer):
    path = save_checkpoint(build_module(), build_data(), build_plain_trainer, tmp_path / "ckpt")
    other = build_module()
    with torch.no_grad():
        next(other.sam.image_encoder.parameters()).add_(1e-3)
    other = build_module(other.sam)
    with pytest.raises(CheckpointError, match="another image_encoder"):
        build_plain_trainer(max_epochs=2).fit(other, datamodule=build_data(), ckpt_path=path, weights_only=True)


@pytest.mark.parametrize("freeze", [("prompt_encoder",), ("image_encoder",), ("image_encoder", "mask_decoder")])
def test_checkpoint__resumed_with_another_freeze_is_refused(
    tmp_path, build_module, build_data, build_plain_trainer, freeze
):
    path = save_checkpoint(build_module(), build_data(), build_plain_trainer, tmp_path / "ckpt")
    with pytest.raises(CheckpointError, match=r"model\.freeze"):
        build_plain_trainer(max_epochs=2).fit(
            build_module(freeze=freeze), datamodule=build_data(), ckpt_path=path, weights_only=True
        )


def test_checkpoint__resumed_module_equals_the_saved_one(tmp_path, build_module, build_data, build_plain_trainer):
    module = build_module()
    path = save_checkpoint(module, build_data(), build_plain_trainer, tmp_path / "ckpt")
    resumed = build_module()
    assert not is_unchanged(resumed.sam.mask_decoder, snapshot(module.sam.mask_decoder))
    trainer = build_plain_trainer(max_epochs=1)  # nothing left to do: load only
    trainer.fit(resumed, datamodule=build_data(), ckpt_path=path, weights_only=True)
    assert is_unchanged(resumed.sam, snapshot(module.sam))


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4.0, targets=("attention", "mlp"))])
def test_fit__from_what_is_kept_before_the_last_block_as_from_pixels(
    tmp_path, build_data, build_module, build_plain_trainer, lora
):
    """Each image goes through the first half once; what is learnt is what is learnt without a cache."""
    found = []
    for cached in (False, True):
        torch.manual_seed(0)
        module, data = build_module(sam=build_sam_debug(64), tune="last:1", lora=lora), build_data(batch_size=2)
        counter = EncoderPasses(module.sam)
        if cached:
            use_store(module, data, tmp_path)
        build_plain_trainer(max_epochs=2).fit(module, datamodule=data)
        found.append((module.compute_epoch_losses()["train/loss"], snapshot(module.sam), counter.images))
    (plain_loss, plain, plain_passes), (loss, state, passes) = found
    assert loss == pytest.approx(plain_loss, rel=1e-4)
    torch.manual_seed(0)
    before = snapshot(build_module(sam=build_sam_debug(64), tune="last:1", lora=lora).sam)
    moved = [name for name in plain if name.startswith("image_encoder.") and not torch.equal(plain[name], before[name])]
    assert moved
    assert all(name.startswith(("image_encoder.blocks.1.", "image_encoder.neck.")) for name in moved)
    for name, value in plain.items():
        torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-4)
    # Twice each training image and twice each of val; with the cache val's, which this test does not fill it with, go through whole.
    assert passes < plain_passes


def test_checkpoint__of_an_encoder_that_learns_in_part_holds_that_part(
    tmp_path, build_module, build_data, build_plain_trainer
):
    module = build_module(tune="last:1")
    path = save_checkpoint(module, build_data(), build_plain_trainer, tmp_path / "ckpt")
    names = torch.load(path, weights_only=True)["state_dict"].keys()
    kept = ("sam.mask_decoder.", "sam.image_encoder.blocks.1.", "sam.image_encoder.neck.")
    assert names == {f"sam.{name}" for name in module.sam.state_dict() if f"sam.{name}".startswith(kept)}
    resumed = build_module(tune="last:1")
    build_plain_trainer(max_epochs=1).fit(resumed, datamodule=build_data(), ckpt_path=path, weights_only=True)
    assert is_unchanged(resumed.sam, snapshot(module.sam))


def use_store(module, data, folder):
    """Fill a store with what is kept of the training images, and use it."""
    sam = module.sam
    images = data.training_set.images
    store = EmbeddingStore(folder / "embeddings", "ab" * 16, sam.kept_shape, "float32")
    keys = {(image.path, False): compute_image_key(image.path.read_bytes(), exif_transpose=False) for image in images}
    module.embedding_cache = EmbeddingCache(sam, StoredEmbeddings(store, keys))
    data.use_embeddings(module.embedding_cache.stored)


def test_fit__with_stored_embeddings_the_encoder_rests(tmp_path, build_data, build_module, build_plain_trainer):
    """In training steps and in validation, after each image was encoded once; losses stay what they were."""
    losses, passes = [], []
    for epochs in (1, 1, 2):
        torch.manual_seed(0)
        module, data = build_module(sam=build_sam_debug(64)), build_data(batch_size=2)
        sam = module.sam
        shape = (sam.embedding_channels, sam.embedding_size, sam.embedding_size)
        images = [*data.training_set.images, *data.validation_set.images]
        store = EmbeddingStore(tmp_path / "embeddings", "ab" * 16, shape, "float32")
        keys = {
            (image.path, False): compute_image_key(image.path.read_bytes(), exif_transpose=False) for image in images
        }
        module.embedding_cache = EmbeddingCache(sam, StoredEmbeddings(store, keys))
        data.use_embeddings(module.embedding_cache.stored)
        counter = EncoderPasses(sam)
        build_plain_trainer(max_epochs=epochs).fit(module, datamodule=data)
        losses.append(module.compute_epoch_losses()["train/loss"])
        passes.append(counter.images)
    different = len(set(keys.values()))  # the first images of both splits are equal
    assert passes[1:] == [0, 0]
    assert different <= passes[0] <= len(images)
    assert losses[1] == losses[0]
    assert losses[2] < losses[0]
