"""The Trainer of a configuration, and how a training ends that is interrupted."""

import os
import signal
import threading

import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.profilers import SimpleProfiler

from vpexp.config import compose_config
from vpexp.errors import CheckpointError, ConfigError
from vpexp.training.callbacks import AtomicCheckpointIO, build_checkpoint_callbacks
from vpexp.training.trainer import TERMINATED, build_trainer, fit


def build(tmp_path, *overrides, callbacks=()):
    cfg = compose_config(["experiment=debug", "trainer.accelerator=cpu", *overrides])
    return build_trainer(OmegaConf.to_object(cfg.trainer), list(callbacks), tensorboard=tmp_path / "tensorboard")


def test_build_trainer__follows_the_configuration(tmp_path):
    trainer = build(
        tmp_path,
        "trainer.max_epochs=7",
        "trainer.gradient_clip_val=0.5",
        "trainer.accumulate_grad_batches=3",
        "trainer.limit_train_batches=4",
    )
    assert trainer.max_epochs == 7
    assert trainer.gradient_clip_val == 0.5
    assert trainer.accumulate_grad_batches == 3
    assert trainer.limit_train_batches == 4
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    assert trainer.progress_bar_callback is None


@pytest.mark.parametrize(
    "override",
    ["trainer.accelerator=tpu", "trainer.strategy=nonsense", "trainer.devices=-5", "trainer.accelerator=gpu"],
)
def test_build_trainer__what_cannot_be_had_is_one_line(tmp_path, monkeypatch, override):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ConfigError, match=r"^trainer(\.[a-z]+=.*)?: ") as caught:
        build(tmp_path, override)
    assert "\n" not in str(caught.value)


def test_build_trainer__takes_further_arguments_and_writes_no_tensorboard(tmp_path):
    trainer = build(tmp_path, "trainer.extra.overfit_batches=2", "trainer.logger=false", "debug=profile")
    assert (trainer.overfit_batches, trainer.loggers) == (2, [])
    assert isinstance(trainer.profiler, SimpleProfiler)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.extra.overfit_batch=1", "Trainer takes no overfit_batch; did you mean 'overfit_batches'?"),
        (
            "trainer.extra.max_epochs=1",
            "trainer.extra.max_epochs: vpexp sets this argument itself: write trainer.max_epochs",
        ),
        ("trainer.extra.callbacks=[]", "trainer.extra.callbacks: vpexp sets this argument itself"),
        ("trainer.extra.profiler._target_=nowhere.P", "trainer.extra.profiler: "),
        ("trainer.extra.profiler=nonsense", "trainer: "),
    ],
)
def test_build_trainer__further_arguments_that_it_does_not_take(tmp_path, override, words):
    with pytest.raises(ConfigError) as caught:
        build(tmp_path, override)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


class Strike(Callback):
    """Sends the process a signal in the second step."""

    def __init__(self, number):
        self.number = number

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)], ids=["term", "int"]
)
def test_fit__signal_leaves_a_checkpoint_and_the_usual_exit(tmp_path, build_module, build_data, number, error):
    def handler(*_):
        pass

    previous = signal.signal(signal.SIGTERM, handler)
    try:
        callbacks = [Strike(number), *build_checkpoint_callbacks(tmp_path / "ckpt")]
        trainer = build(tmp_path, "trainer.max_epochs=50", callbacks=callbacks)
        with pytest.raises(error) as caught:
            fit(trainer, build_module(), build_data(batch_size=1), None)
        if error is SystemExit:
            assert caught.value.code == TERMINATED == 143
        assert (tmp_path / "ckpt" / "last.ckpt").is_file()
        assert trainer.current_epoch == 0
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_fit__works_in_a_thread(tmp_path, build_module, build_data):
    trainer = build(tmp_path)
    errors = []

    def work():
        try:
            fit(trainer, build_module(), build_data(), None)
        except BaseException as error:  # noqa: BLE001 to be shown by the main thread
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []
    assert trainer.global_step == 2


def test_fit__goes_on_from_a_checkpoint(tmp_path, build_module, build_data):
    first = build(tmp_path, callbacks=build_checkpoint_callbacks(tmp_path / "ckpt"))
    fit(first, build_module(), build_data(), None)
    second = build(tmp_path, "trainer.max_epochs=3", callbacks=build_checkpoint_callbacks(tmp_path / "ckpt"))
    fit(second, build_module(), build_data(), tmp_path / "ckpt" / "last.ckpt")
    assert second.current_epoch == 3
    assert second.global_step == 6


LOOP = ("loops", "fit_loop")
BEST = ("callbacks", "RelocatableCheckpoint")
MADE_UP = [
    ((*LOOP, "epoch_progress", "current", "started"), "x"),
    ((*LOOP, "epoch_progress", "total", "completed"), {"a": 1}),
    ((*LOOP, "epoch_loop.batch_progress", "current", "completed"), -7),
    (("loops",), [1, 2]),
    ((*BEST, "best_model_path"), "epoch_../x.ckpt"),
    ((*BEST, "best_k_models"), {"epoch_000.ckpt": "x"}),
    (("optimizer_states", 0, "state", 0, "exp_avg"), "x"),
    (("lr_schedulers", 0), {"last_epoch": "x"}),
    (("FineTuningData",), {}),
    (("freeze",), 3),
    (("epoch_sums",), 3),
]


def find_key(part, key):
    return next((name for name in part if str(name).startswith(f"{key}{{")), key) if isinstance(part, dict) else key


@pytest.mark.slow
def test_fit__checkpoint_with_a_made_up_state_is_one_line(tmp_path, build_module, build_data):
    def train(epochs, resume_from):
        trainer = build(tmp_path, f"trainer.max_epochs={epochs}", callbacks=build_checkpoint_callbacks(tmp_path))
        fit(trainer, build_module(), build_data(), resume_from)

    train(1, None)
    path = (tmp_path / "last.ckpt").rename(tmp_path / "saved.ckpt")
    for place, value in MADE_UP:
        content = part = torch.load(path, weights_only=True)
        for key in place[:-1]:
            part = part[find_key(part, key)]
        part[find_key(part, place[-1])] = value
        torch.save(content, tmp_path / "changed.ckpt")
        with pytest.raises(CheckpointError, match=r"changed\.ckpt: training cannot go on from it \(") as caught:
            train(2, tmp_path / "changed.ckpt")
        assert "\n" not in str(caught.value)
    train(2, path)
