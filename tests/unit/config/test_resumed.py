"""What a run that goes on takes from the command line, and what it refuses."""

import pytest
from omegaconf import OmegaConf

from vpexp.config import compose_config, load_config, save_config, validate
from vpexp.config.saved import lay_over_saved
from vpexp.errors import ConfigError

BEGUN = ("model=sam_debug", "data=coco", "data.root=x", "optimizer.lr=1e-3", "trainer.max_epochs=4", "prompt=point")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "config.yaml"
    save_config(compose_config([*BEGUN, "tracking.tags.project=x"]), path)
    return load_config(path)


def go_on(saved, *overrides, settled=()):
    merged = lay_over_saved(saved, compose_config(overrides), overrides, settled)
    validate(merged)
    return merged


@pytest.mark.parametrize(
    ("override", "kept"),
    [
        ("optimizer=sgd", "optimizer._target_=torch.optim.Adam"),
        ("optimizer.lr=1", "optimizer.lr=0.001"),
        ("++optimizer.amsgrad=true", "optimizer.amsgrad=not set"),
        ("~optimizer.betas", "optimizer.betas="),
        ("scheduler=cosine", "scheduler._target_=vpexp.training.schedulers.build_constant"),
        ("scheduler.warmup_steps=3", "scheduler.warmup_steps=0"),
        ("model=sam_micro", "model.name=sam_debug"),
        ("model.freeze=[]", "model.freeze="),
        ("data=voc", "data.name=coco"),
        ("prompt=box", "prompt.type=point"),
        ("trainer=gpu", "trainer.max_epochs=4"),
        ("experiment=debug", "data.name=coco"),
        ("experiment=quickstart", "model.name=sam_debug"),
    ],
)
def test_lay_over_saved__what_would_not_be_heeded_is_refused(saved, override, kept):
    with pytest.raises(ConfigError) as caught:
        go_on(saved, override)

    assert str(caught.value).startswith(f"{override}: the run that goes on has {kept}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "changes"),
    [
        (["trainer.max_epochs=9", "data.num_workers=0"], {"trainer.max_epochs": 9, "data.num_workers": 0}),
        (["data.root=moved", "seed=3"], {"data.root": "moved", "seed": 3}),
        (["tracking=none"], {"tracking.enabled": False, "tracking.tags": {}}),
        (["tracking.tags.team=y", "+tracking.tags.k=z"], {"tracking.tags": {"project": "x", "team": "y", "k": "z"}}),
        (["callbacks=none"], {"callbacks": {}}),
        (["~callbacks.early_stopping"], {"callbacks.early_stopping": None}),
        (["callbacks.early_stopping.patience=9"], {"callbacks.early_stopping.patience": 9}),
        (["cache=none"], {"cache.enabled": False}),
        (["trainer.accelerator=cpu", "+trainer.threads=2"], {"trainer.accelerator": "cpu", "trainer.threads": 2}),
        ([*BEGUN, "trainer.max_epochs=9"], {"trainer.max_epochs": 9}),  # the command it was begun by, again
    ],
)
def test_lay_over_saved__what_is_typed_is_heeded(saved, overrides, changes):
    merged = go_on(saved, *overrides)

    assert {key: OmegaConf.select(merged, key) for key in changes} == changes
    assert (merged.optimizer.lr, merged.prompt.type, merged.model.name) == (1e-3, "point", "sam_debug")


def test_lay_over_saved__finished_steps_keep_what_they_used(saved):
    used = ("data", "trainer", "stage")
    assert go_on(saved, "ptq.subset_size=3", "stage.onnx=true", "data.root=moved", settled=used).ptq.subset_size == 3
    for override in ("trainer.max_epochs=9", "data.batch_size=9", "stage.split=val"):
        with pytest.raises(ConfigError, match=override):
            go_on(saved, override, settled=used)


def test_lay_over_saved__another_stage_is_refused(saved):
    with pytest.raises(ConfigError, match="stage=pipeline: the run that goes on is of stage=train"):
        go_on(saved, "stage=pipeline")
