"""Early stopping, whole checkpoints, and the record of each epoch."""

import math
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from vpexp.training.callbacks import (
    AtomicCheckpointIO,
    EarlyStoppingAfter,
    EpochRecorder,
    IterationTimer,
    build_checkpoint_callbacks,
)


def script(module, scores):
    """Let the module log a given F1 in each epoch instead of the evaluation's."""

    def log_score():
        module.log("val/f1-score", scores[module.current_epoch], on_step=False, on_epoch=True, batch_size=1)

    module.on_validation_epoch_end = log_score
    return module


@pytest.fixture
def fit_scores(build_module, build_data, build_plain_trainer):
    """Train with an early stop on scripted scores; return how many epochs it took."""

    def fit(scores, **options):
        stopping = EarlyStoppingAfter(monitor="val/f1-score", mode="max", min_delta=1e-3, **options)
        trainer = build_plain_trainer(stopping, max_epochs=len(scores))
        trainer.fit(script(build_module(), scores), datamodule=build_data(batch_size=3))
        return trainer.current_epoch

    return fit


@pytest.mark.parametrize(
    ("options", "scores", "epochs"),
    [
        ({"min_epochs": 0, "patience": 1}, [0.5, 0.5, 0.5, 0.5], 2),  # the second epoch brought nothing
        ({"min_epochs": 3, "patience": 1}, [0.5, 0.5, 0.5, 0.5], 3),  # not before the third is done
        (
            {"min_epochs": 3, "patience": 1},
            [0.5, 0.5, 0.9, 0.9, 0.9],
            4,
        ),  # the third was better: the count starts again
        ({"min_epochs": 3, "patience": 2}, [0.5, 0.5005, 0.5009, 0.6], 3),  # gains below min_delta are none
        ({"min_epochs": 9, "patience": 1}, [0.5, 0.5, 0.5], 3),  # never reached
    ],
)
def test_early_stopping_after(fit_scores, options, scores, epochs):
    assert fit_scores(scores, **options) == epochs


def test_early_stopping_after__another_reason_to_stop_is_kept():
    stopping = EarlyStoppingAfter(monitor="val/f1-score", mode="max", patience=1, min_epochs=5)
    trainer = SimpleNamespace(
        should_stop=True,
        current_epoch=0,
        callback_metrics={"val/f1-score": torch.tensor(0.5)},
        fast_dev_run=False,
        strategy=SimpleNamespace(reduce_boolean_decision=lambda decision, **_: decision),
        world_size=1,
    )
    stopping._run_early_stopping_check(trainer)
    assert trainer.should_stop


class Unwritable:
    """Fails when the file is half written."""

    def __reduce__(self):
        raise OSError(28, "No space left on device")


def test_atomic_checkpoint_io__round_trip(tmp_path):
    path = tmp_path / "new" / "a.ckpt"
    content = {"state_dict": {"w": torch.arange(3)}, "epoch": 2}
    AtomicCheckpointIO().save_checkpoint(content, path)
    assert torch.equal(torch.load(path, weights_only=True)["state_dict"]["w"], content["state_dict"]["w"])
    assert [file.name for file in path.parent.iterdir()] == ["a.ckpt"]


def test_atomic_checkpoint_io__failure_midway_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)
    old = path.read_bytes()
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({"big": torch.zeros(1000), "bad": Unwritable()}, path)
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]  # and no half file takes the room


def test_checkpoint_callbacks__best_weights_and_last_state(tmp_path, build_module, build_data, build_plain_trainer):
    module = script(build_module(), [0.2, 0.7, 0.4])
    callbacks = build_checkpoint_callbacks(tmp_path / "ckpt")
    trainer = build_plain_trainer(*callbacks, max_epochs=3, enable_checkpointing=True, plugins=[AtomicCheckpointIO()])
    trainer.fit(module, datamodule=build_data(batch_size=3))
    assert sorted(file.name for file in (tmp_path / "ckpt").iterdir()) == ["epoch_001.ckpt", "last.ckpt"]
    best, last = (torch.load(tmp_path / "ckpt" / name, weights_only=True) for name in ("epoch_001.ckpt", "last.ckpt"))
    assert best["epoch"] == 1
    assert "optimizer_states" not in best
    assert last["epoch"] == 2
    assert len(last["optimizer_states"]) == 1
    assert best["state_dict"].keys() == last["state_dict"].keys()


class Losses(Callback):
    """Collects the loss of each step."""

    def __init__(self):
        self.by_epoch = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.by_epoch.setdefault(trainer.current_epoch + 1, []).append(float(outputs["loss"]))


def test_epoch_recorder__hands_over_each_epochs_own_metrics(build_module, build_data, build_plain_trainer):
    records, losses = {}, Losses()
    recorder = EpochRecorder(lambda metrics, epoch, **_: records.update({epoch: metrics}))
    module = build_module(lr=1e-2)
    build_plain_trainer(IterationTimer(), recorder, losses, max_epochs=3).fit(module, datamodule=build_data())
    assert sorted(records) == [1, 2, 3]
    for epoch, metrics in records.items():
        assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())
        assert metrics["train/loss"] == pytest.approx(sum(losses.by_epoch[epoch]) / 2, rel=1e-5)
        assert metrics["lr"] == 1e-2
        assert "train/loss_step" not in metrics
        assert {"train/loss_focal", "train/loss_dice", "train/loss_iou", "train/iter_time", "train/data_time"} <= set(
            metrics
        )
        assert {"val/f1-score", "val/map", "val/map_per_class/berry", "val/mar_100_per_class/leaf"} <= set(metrics)
    assert records[3]["val/f1-score"] == pytest.approx(module.validation_result.metrics["f1-score"])
    assert records[1]["train/loss"] != records[3]["train/loss"]


def test_iteration_timer__waits_are_part_of_a_step(monkeypatch):
    clock = iter([0.0, 10.0, 12.0, 15.0, 16.0, 18.0])  # made, epoch, start, end, start, end
    monkeypatch.setattr("vpexp.training.callbacks.time.perf_counter", lambda: next(clock))
    logged = []
    module = SimpleNamespace(log_dict=lambda times, **_: logged.append(times))
    timer = IterationTimer()
    timer.on_train_epoch_start(None, module)
    for _ in range(2):
        timer.on_train_batch_start(None, module)
        timer.on_train_batch_end(None, module)
    assert logged[0] == {"train/iter_time": 5.0, "train/data_time": 2.0}
    assert logged[1] == {"train/iter_time": 4.0, "train/data_time": 1.5}
