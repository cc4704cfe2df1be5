"""Two processes that train together take the steps of one with all their images."""

import signal

import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning.strategies import SingleDeviceStrategy

from tests.unit.training.conftest import draw_image
from vpexp.config import compose_config
from vpexp.config.schema import PromptConfig
from vpexp.data.annotations import AnnotatedDataset, Split
from vpexp.data.batch import UnreadableImage
from vpexp.errors import ConfigError, DivergenceError
from vpexp.training import step_loss
from vpexp.training.distributed import FollowedDDPStrategy, LocalSignals, connect_store, join, open_store
from vpexp.training.module import FineTuningData
from vpexp.training.trainer import build_trainer, fit


def build(tmp_path, *overrides, rank=0, **options):
    cfg = compose_config(["experiment=debug", "trainer.accelerator=cpu", "trainer.max_epochs=2", *overrides])
    return build_trainer(
        OmegaConf.to_object(cfg.trainer), [], tensorboard=tmp_path / "tensorboard", rank=rank, **options
    )


def train_rank(rank, port, tmp_path, build_parts, options):
    store = connect_store(port, 2)
    trainer = build(tmp_path, "trainer.devices=2", rank=rank, **options)
    module, data = build_parts(1)
    try:
        with join(store, torch.device("cpu"), rank=rank, world_size=2):
            fit(trainer, module, data, None)
        found = (module.sam.state_dict(), module.compute_epoch_losses(), module.validation_result.metrics)
    except DivergenceError as error:
        found = str(error)
    torch.save(found, tmp_path / f"rank_{rank}")


@pytest.fixture
def train_together(tmp_path):
    """Train in two processes of one image a step each; give what either has found."""

    def train(build_parts, **options):
        store = open_store(2)
        torch.multiprocessing.start_processes(
            train_rank, (store.port, tmp_path, build_parts, options), nprocs=2, start_method="fork"
        )
        return [torch.load(tmp_path / f"rank_{rank}", weights_only=False) for rank in range(2)]

    return train


def train_alone(tmp_path, build_parts):
    module, data = build_parts(2)
    fit(build(tmp_path), module, data, None)
    return module.sam.state_dict(), module.compute_epoch_losses(), module.validation_result.metrics


@pytest.fixture
def four_images(tmp_path):
    """Four images to learn from, with more and fewer objects, so that no process sees one twice; three to validate."""
    splits = {}
    for name, counts in (("train", (1, 2, 3, 5)), ("val", (3, 1, 2))):
        images = tuple(draw_image(tmp_path / f"{name}{i}.png", seed=i, count=count) for i, count in enumerate(counts))
        splits[name] = Split(name, name, images, {}, {})
    dataset = AnnotatedDataset("coco", tmp_path, ("berry", "leaf"), splits, ())

    def build_data(batch_size):
        return FineTuningData(
            dataset,
            PromptConfig(),
            image_size=64,
            resolution="input",
            batch_size=batch_size,
            num_workers=0,
            seed=0,
        )

    return build_data


@pytest.mark.slow
@pytest.mark.parametrize(
    ("freeze", "chunk_pixels"),
    [
        (("image_encoder", "prompt_encoder"), step_loss.CHUNK_PIXELS),
        (("image_encoder", "prompt_encoder"), 64 * 64),
        (("image_encoder",), 64 * 64),
        ((), step_loss.CHUNK_PIXELS),
    ],
    ids=["decoder", "decoder in chunks", "prompts too in chunks", "everything"],
)
def test_fit__two_processes_are_one_with_all_images(  # noqa: PLR0917 (fixtures)
    tmp_path, monkeypatch, four_images, build_module, train_together, freeze, chunk_pixels
):
    monkeypatch.setattr(step_loss, "CHUNK_PIXELS", chunk_pixels)

    def build_parts(batch_size):
        # Adam would take the rounding errors of a gradient that is zero for a direction.
        module = build_module(
            freeze=freeze,
            build_optimizer=lambda sam: torch.optim.SGD([p for p in sam.parameters() if p.requires_grad], lr=0.02),
        )
        return module, four_images(batch_size)

    start = build_parts(2)[0].sam.state_dict()
    weights, losses, metrics = train_alone(tmp_path, build_parts)
    assert max(float((weights[name] - value).abs().max()) for name, value in start.items()) > 1e-3
    for found in train_together(build_parts, find_unused_parameters="prompt_encoder" not in freeze):
        for name, value in weights.items():
            torch.testing.assert_close(found[0][name], value, rtol=1e-4, atol=2e-5, msg=name)
        assert found[1] == pytest.approx(losses, rel=1e-4)
        numbers = {name for name in metrics if not name.endswith("_time")}
        assert {name: found[2][name] for name in numbers} == pytest.approx(
            {name: metrics[name] for name in numbers}, abs=1e-3, nan_ok=True
        )


@pytest.mark.slow
def test_fit__divergence_in_one_process_ends_both(four_images, build_module, train_together):
    def build_parts(batch_size):
        return build_module(lr=1e30), four_images(batch_size)

    found = train_together(build_parts)
    assert found[0] == found[1]
    assert "(images train" in found[0]


def test_build_trainer__several_devices_are_ddp_without_a_launcher(tmp_path):
    for strategy in ("auto", "ddp", "ddp_find_unused_parameters_true"):
        trainer = build(tmp_path, "trainer.devices=2", f"trainer.strategy={strategy}", rank=1)
        assert isinstance(trainer.strategy, FollowedDDPStrategy)
        assert trainer.strategy.launcher is None
        assert (trainer.world_size, trainer.global_rank, trainer.is_global_zero) == (2, 1, False)
        assert isinstance(trainer._signal_connector, LocalSignals)


@pytest.mark.parametrize("override", ["trainer.devices=auto", "trainer.devices=1"])
@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_build_trainer__one_device_is_one_process(tmp_path, override, strategy):
    trainer = build(tmp_path, override, f"trainer.strategy={strategy}")
    assert isinstance(trainer.strategy, SingleDeviceStrategy)
    assert trainer.world_size == 1


def test_build_trainer__other_strategies_for_several_devices_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^trainer\.strategy=ddp_spawn: .* set trainer\.strategy=ddp"):
        build(tmp_path, "trainer.devices=2", "trainer.strategy=ddp_spawn")


def test_build_trainer__variables_of_a_cluster_place_nothing(tmp_path, monkeypatch):
    for name, value in {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "LOCAL_RANK": "3", "RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    trainer = build(tmp_path, "trainer.devices=2")
    assert (trainer.world_size, trainer.global_rank, trainer.node_rank) == (2, 0, 0)


def test_signals__sigterm_is_noted_and_nothing_else(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    leader = build(tmp_path, "trainer.devices=2")
    leader._signal_connector.register_signal_handlers()
    try:
        signal.raise_signal(signal.SIGTERM)
        assert leader.received_sigterm
    finally:
        leader._signal_connector.teardown()
    follower = build(tmp_path, "trainer.devices=2", rank=1)
    follower._signal_connector.register_signal_handlers()
    assert signal.getsignal(signal.SIGTERM) == before


def test_training_step__images_of_nobody_can_be_read(build_module):
    module = build_module()
    loss = module.training_step([UnreadableImage("a.png", "truncated")], 0)
    assert float(loss) == 0
    assert loss.requires_grad
    assert module.compute_epoch_losses() == {}
    assert module.unreadable == {"a.png": "truncated"}
