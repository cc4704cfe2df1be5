"""Files of settings that somebody else made: whatever they name, and through whichever door they come, nothing of it runs."""

import json
import os
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
from omegaconf import OmegaConf

from vpexp import Engine, load_predictor
from vpexp.cli import main
from vpexp.command_line import read_command_line
from vpexp.config import compose_config, save_config, validate
from vpexp.config.trust import CONFIG_DIR, refuse_foreign
from vpexp.errors import VpexpError
from vpexp.resolve import complete
from vpexp.sweeps.command import run_sweep

BASE = ("experiment=debug", "tracking=none", "stage=pipeline")
SHELL = "touch started_here"
MINE = "their_code.start"  # a module whose import alone is seen

TARGETS = [
    MINE,
    "os.system",
    "os.popen",
    "os.execv",
    "posix.system",
    "subprocess.Popen",
    "subprocess.check_output",
    "builtins.exec",
    "builtins.eval",
    "builtins.__import__",
    "builtins.open",
    "pathlib.Path.write_text",
    "pathlib.Path.unlink",
    "shutil.rmtree",
    "torch.load",
    "torch.serialization.load",
    "torch.hub.load",
    "torch.utils.cpp_extension.load_inline",
    "pickle.loads",
    "joblib.load",
    "numpy.load",
    "pandas.read_pickle",
    "pandas.eval",
    "yaml.unsafe_load",
    "runpy.run_path",
    "code.interact",
    "pty.spawn",
    "ctypes.CDLL",
    "importlib.import_module",
    "hydra.utils.instantiate",
    "hydra.utils.call",
    "functools.partial",
    "operator.attrgetter",
    "mlflow.projects.run",
    "pytorch_lightning.Trainer",
    "pytorch_lightning.callbacks.os.system",
    "pytorch_lightning.callbacks.model_checkpoint.shutil.rmtree",
    "pytorch_lightning.callbacks.model_checkpoint.torch.load",
    "pytorch_lightning.callbacks.Callback.__init__.__globals__",
    "pytorch_lightning.callbacks.callback.Any",
    "pytorch_lightning.callbacks_evil.Callback",
    "torch.optim.Adam.__init__.__globals__",
    "torch.optim.optimizer.torch.load",
    "torch.optim.optimizer.defaultdict",
    "torch.optim.lr_scheduler.types.FunctionType",
    "torch.optim.lr_scheduler.partial",
    "torch.optim.swa_utils.AveragedModel",
    "torch.optimizer_of_mine.Adam",
    "torch.optim",
    "torch.optim.",
    "torch.optim..Adam",
    "vpexp.run.os.system",
    "vpexp.cli.sys.exit",
    "vpexp.cli.main",
    "vpexp.__main__.main",
    "vpexp.runfolder.write_json",
    "vpexp.files.write_lines",
    "vpexp.models.download.download_file",
    "vpexp.stages.shared.distributed._start",
    "vpexp.training.callbacks.torch.load",
    "vpexp.training.build.instantiate",
    "vpexp.training.callbacks.Path",
    "vpexp",
    "",
]
DOOR_TARGETS = (MINE, "vpexp.run.os.system", "torch.optim.optimizer.torch.load")
PLACES = {
    "optimizer": lambda target: {"optimizer._target_": target},
    "scheduler": lambda target: {"scheduler._target_": target},
    "callback": lambda target: {"callbacks.mine": {"_target_": target, "_args_": [SHELL], "_partial_": False}},
    "model": lambda target: {"model._target_": target},
    "argument": lambda target: {"optimizer.betas": {"_target_": target, "_args_": [SHELL]}},
    "list": lambda target: {"callbacks.progress.parts": [1, [{"deep": {"_target_": target, "_args_": [SHELL]}}]]},
    "args": lambda target: {"scheduler._args_": [{"_target_": target, "_args_": [SHELL]}]},
}


@pytest.fixture(autouse=True)
def traps(tmp_path, monkeypatch):
    """A working folder in which a shell command would leave a file, and a module whose import would be seen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "their_code.py").write_text(
        "import pathlib\npathlib.Path('imported').touch()\ndef start(*_, **__): raise SystemExit('started')\n"
    )
    yield
    assert not (tmp_path / "started_here").exists()
    assert "their_code" not in sys.modules
    assert not (tmp_path / "imported").exists()


compose = lru_cache(compose_config)


def build_config(changes):
    cfg = compose(BASE).copy()
    OmegaConf.set_struct(cfg, value=False)
    for key, value in changes.items():
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    return cfg


def write_folder(folder, changes):
    """A run folder of a pipeline, as somebody hands it on."""
    folder.mkdir(exist_ok=True)
    save_config(build_config(changes), folder / "config.yaml")
    (folder / "run.json").write_text(json.dumps({"stage": "pipeline", "status": "KILLED"}))
    return folder


def write_checkpoint(folder, changes):
    folder.mkdir(exist_ok=True)
    identity = {"config": OmegaConf.to_yaml(build_config(changes), resolve=True), "frozen": {}, "categories": ["a"]}
    torch.save({"vpexp": identity, "state_dict": {}}, folder / "last.ckpt")
    return folder / "last.ckpt"


def write_export(folder, changes):
    write_folder(folder, changes)
    for part in ("image_encoder", "decoder"):
        info = {"model_type": f"sam_{part}", "image_size": 64, "label_names": "[]", "model_name": "sam_debug"}
        info |= {"precision": "FP32", "source_hash": "0"}
        entries = "".join(f"<{name} value='{value}'/>" for name, value in info.items())
        (folder / f"exported_model_{part}.xml").write_text(
            f"<net><rt_info><model_info>{entries}</model_info></rt_info></net>"
        )
        (folder / f"exported_model_{part}.bin").touch()
    return folder


def write_sweep(folder, overrides, flags=()):
    """The folder of a sweep; what it was asked stands in its record."""
    folder.mkdir(exist_ok=True)
    record = {"overrides": [*BASE[:2], "stage=test", "checkpoint=null", "optimizer.lr=1e-4,1e-5", *overrides]}
    record |= {"flags": ["-m", *flags], "varying": ["optimizer.lr"], "jobs": 2, "stage": "test", "metric": ""}
    record |= {"direction": "maximize", "cwd": "/", "output_dir": "out", "process": 1, "workers": 1, "searches": False}
    (folder / "run.json").write_text(json.dumps({"stage": "sweep", "status": "KILLED", "sweep": record}))
    return folder


def resume(folder, *typed):
    asked = ["stage=pipeline", f"resume={folder}", *typed]
    overrides = [*BASE, *asked]
    return complete(compose(tuple(word for word in overrides if not word.startswith("--"))), asked)


def use_checkpoint(path, *typed):
    overrides = ["stage=test", f"checkpoint={path}", *typed]
    return complete(compose(tuple(overrides)), overrides)


def run_main(monkeypatch, *arguments):
    """``python -m vpexp <arguments>``; return the configurations that reach the hall."""
    reached = []
    hall = ModuleType("vpexp.run")
    hall.run = lambda cfg, overrides: reached.append((cfg, overrides))
    monkeypatch.setitem(sys.modules, "vpexp.run", hall)
    main([str(argument) for argument in arguments])
    return reached


def assert_refused(words, function, *arguments):
    with pytest.raises(VpexpError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("place", PLACES)
def test_refuse_foreign__every_target_at_every_place(place):
    for target in TARGETS:
        message = assert_refused(
            f"_target_={target} is no part of vpexp", refuse_foreign, PLACES[place](target), (), "their.yaml"
        )
        assert message.startswith("their.yaml: ")
        assert "--config-dir" in message


@pytest.mark.parametrize("place", PLACES)
def test_every_door__starts_nothing_of_others(tmp_path, monkeypatch, place):
    """A run that goes on, an earlier run's configuration in a notebook."""
    monkeypatch.setattr("vpexp.engine.run", lambda *_: pytest.fail("it runs"))
    for target in DOOR_TARGETS if place == "optimizer" else (MINE,):
        folder = write_folder(tmp_path / "theirs", PLACES[place](target))
        assert_refused(f"_target_={target} is no part of vpexp", resume, folder)
        assert_refused(f"_target_={target} is no part", Engine.from_config(folder / "config.yaml").train)


def test_complete__the_model_of_a_checkpoint_or_export_is_vpexps(tmp_path):
    for target in DOOR_TARGETS:
        changes = {"model._target_": target}
        words = f"model._target_={target} is no part of vpexp"
        checkpoint = write_checkpoint(tmp_path / "theirs", changes)
        assert_refused(words, use_checkpoint, checkpoint)
        assert_refused(words, load_predictor, checkpoint)
        assert_refused(words, use_checkpoint, write_export(tmp_path / "ir", changes))


@pytest.mark.parametrize("place", PLACES)
def test_main__another_main_configuration_starts_nothing_of_others(tmp_path, monkeypatch, capsys, place):
    for target in DOOR_TARGETS[:2] if place == "optimizer" else (MINE,):
        folder = write_folder(tmp_path / "theirs", PLACES[place](target))
        with pytest.raises(SystemExit) as caught:
            run_main(monkeypatch, "-cp", folder, "-cn", "config")
        assert caught.value.code == 2
        assert f"_target_={target} is no part of vpexp" in capsys.readouterr().err


HYDRA_ATTACKS = [
    "hydra: {launcher: {_target_: their_code.start}}",
    "hydra: {sweeper: {_target_: their_code.start}}",
    "hydra: {callbacks: {mine: {_target_: their_code.start}}}",
    "hydra: {searchpath: ['pkg://their_code']}",
    "hydra: {searchpath: ['file:///']}",
    "hydra: {job: {env_set: {LD_PRELOAD: theirs.so}}}",
    "hydra: {job_logging: {version: 1, handlers: {x: {'()': their_code.start}}, root: {handlers: [x]}}}",
    "hydra: {hydra_logging: {version: 1, handlers: {x: {class: their_code.start}}, root: {handlers: [x]}}}",
    "hydra: {job_logging: {version: 1, formatters: {x: {'()': 'ext://os.system', cmd: touch started_here}}}}",
    "hydra: {mode: MULTIRUN, sweeper: {_target_: their_code.start}}",
    "hydra: {output_subdir: ../../elsewhere}",
    "tracking: {run_name: '${oc.env:HOME}'}",
    "tracking: {tags: {secret: '${oc.decode:${oc.env:HOME}}'}}",
    "optimizer: {_target_: '${tracking.experiment}'}\ntracking: {experiment: their_code.start}",
    "optimizer: '${oc.create:{_target_:their_code.start,lr:1}}'",
    "optimizer: '${tracking.tags}'\ntracking: {tags: {_target_: their_code.start}}",
    "model: {_target_: !!python/object/apply:pathlib.PosixPath [their_code.start]}",
    "model: {_target_: !!python/object/apply:os.system [touch started_here]}",
]


@lru_cache
def write_without(sections):
    """The text of a saved configuration that lacks these sections, and Hydra's."""
    with tempfile.TemporaryDirectory() as place:
        saved = OmegaConf.load(write_folder(Path(place), {}) / "config.yaml")
    head = OmegaConf.to_yaml(OmegaConf.create({"defaults": saved.pop("defaults")}))
    for name in ("hydra", *sections):
        saved.pop(name)
    return head + OmegaConf.to_yaml(saved)


@pytest.mark.parametrize("text", HYDRA_ATTACKS)
def test_main__another_main_configuration_sets_nothing_that_starts_code(tmp_path, monkeypatch, capsys, text):
    folder = tmp_path / "theirs"
    folder.mkdir()
    replaced = tuple(name for name in ("tracking", "optimizer", "model") if f"{name}:" in text)
    (folder / "config.yaml").write_text(write_without(replaced) + text + "\n")

    with pytest.raises(SystemExit) as caught:
        run_main(monkeypatch, "-cp", folder, "-cn", "config")

    assert caught.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert str(folder / "config.yaml") in line


@pytest.mark.parametrize("group", ["optimizer", "callbacks", "hydra/launcher", "hydra/sweeper", "hydra/job_logging"])
def test_main__groups_beside_another_main_configuration_are_its_own(tmp_path, monkeypatch, capsys, group):
    folder = write_folder(tmp_path / "theirs", {})
    (folder / group).mkdir(parents=True)
    (folder / group / "mine.yaml").write_text("_target_: their_code.start\nlr: 1\n")
    text = (folder / "config.yaml").read_text()
    word = f"override {group}" if group.startswith("hydra") else group
    if group == "hydra/job_logging":
        text = text.replace("- override hydra/job_logging: none\n", "")
    (folder / "config.yaml").write_text(text.replace("- _self_\n", f"- _self_\n- {word}: mine\n", 1))

    with pytest.raises(SystemExit) as caught:
        run_main(monkeypatch, "-cp", folder, "-cn", "config")

    assert caught.value.code == 2
    assert str(folder / "config.yaml") in capsys.readouterr().err


SWEEP_ATTACKS = [
    (["optimizer._target_=their_code.start"], []),
    (["optimizer._target_=torch.optim.Adam,their_code.start"], []),
    (["+callbacks.mine={_target_:their_code.start}"], []),
    (["+callbacks.mine={_target_:their_code.start},{_target_:their_code.begin}"], []),
    (["hydra.launcher._target_=their_code.start"], []),
    (["hydra.sweeper._target_=their_code.start"], []),
    (["+hydra.callbacks.mine._target_=their_code.start"], []),
    (["sweep=optuna", "hydra.sweeper.custom_search_space=their_code.start"], []),
    (["sweep=optuna", "hydra.sweeper.sampler._target_=their_code.start"], []),
    (["hydra.searchpath=[pkg://their_code]"], []),
    (["+hydra.job.env_set.LD_PRELOAD=theirs.so"], []),
    (["hydra/job_logging=default", "+hydra.job_logging.handlers.x.class=their_code.start"], []),
    (["hydra/launcher=joblib", "hydra.launcher.temp_folder=/"], []),
    (["hydra/launcher=submitit_local", "+hydra.launcher.setup=['touch started_here']"], []),
    (["tracking.run_name='${oc.env:HOME}'"], []),
    ([], ["--experimental-rerun", "theirs.pickle"]),
    ([], ["--experimental-rerun=theirs.pickle"]),
    ([], ["--hydra-help"]),
    (["optimizer=mine"], ["--config-dir", "THEIRS"]),
    ([], ["-cp", "THEIRS", "-cn", "main"]),
]


@pytest.mark.parametrize(("overrides", "flags"), SWEEP_ATTACKS)
def test_run_sweep__the_record_of_a_sweep_starts_nothing_of_others(tmp_path, overrides, flags):
    theirs = tmp_path / "theirs"
    (theirs / "optimizer").mkdir(parents=True)
    (theirs / "optimizer" / "mine.yaml").write_text("_target_: their_code.start\nlr: 1\n")
    if "-cp" in flags:
        write_folder(theirs, {"callbacks.mine._target_": MINE})
        (theirs / "config.yaml").rename(theirs / "main.yaml")
        overrides = ["experiment"]  # a complete configuration has no groups
    folder = write_sweep(tmp_path / "sweep", overrides, [flag.replace("THEIRS", str(theirs)) for flag in flags])
    if "-cp" in flags:
        record = json.loads((folder / "run.json").read_text())
        record["sweep"]["overrides"] = ["optimizer.lr=1e-4,1e-5"]
        (folder / "run.json").write_text(json.dumps(record))

    message = assert_refused(str(tmp_path), run_sweep, read_command_line(["-m", f"sweep.resume={folder}"]))

    assert not message.startswith("cannot read")
    assert not (folder / "0").exists()


@pytest.mark.parametrize("key", ["optimizer._target_", "hydra.launcher._target_", "+callbacks.mine._target_"])
def test_run_sweep__values_in_another_main_configuration_start_nothing_of_others(tmp_path, key):
    folder = write_folder(tmp_path / "theirs", {"stage.name": "data"})
    text = (folder / "config.yaml").read_text()
    params = f"hydra:\n  sweeper:\n    params:\n      {key}: torch.optim.SGD,{MINE}\n"
    (folder / "config.yaml").write_text(text.replace("hydra:\n", params, 1))

    message = assert_refused(
        f"{key.lstrip(chr(43))}=", run_sweep, read_command_line(["-m", "-cp", str(folder), "-cn", "config"])
    )

    assert message.startswith(str(folder / "config.yaml"))


def test_run_sweep__a_record_that_cannot_be_composed_is_one_line(tmp_path):
    folder = write_sweep(tmp_path / "sweep", ["hydra.sweeper.params={a:b}"])
    assert_refused("hydra.sweeper.params", run_sweep, read_command_line(["-m", f"sweep.resume={folder}"]))


def test_run_sweep__what_the_record_names_is_repeated(tmp_path, monkeypatch):
    started = []

    def make_folder(plan):
        started.append(plan)
        raise ZeroDivisionError

    monkeypatch.setattr("vpexp.sweeps.command._make_folder", make_folder)
    own = tmp_path / "own" / "optimizer"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("_target_: my_code.Lion\nlr: 1\n")
    folder = write_sweep(tmp_path / "sweep", ["optimizer=mine"], ["--config-dir", str(tmp_path / "own")])
    plain = write_sweep(tmp_path / "plain", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=1"])
    search = write_sweep(tmp_path / "search", ["sweep=optuna", "hydra.sweeper.n_trials=3"])

    for arguments in (
        [f"sweep.resume={folder}", "--config-dir", "own"],
        [f"sweep.resume={folder}", "optimizer._target_=my_code.Lion"],
        [f"sweep.resume={plain}"],
        [f"sweep.resume={search}"],
    ):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ZeroDivisionError):
            run_sweep(read_command_line(["-m", *arguments]))

    assert [plan.cfg.optimizer._target_ for plan in started[:2]] == ["my_code.Lion"] * 2


ALLOWED = {
    "optimizer._target_": "torch.optim.RMSprop",
    "scheduler._target_": "torch.optim.lr_scheduler.StepLR",
    "callbacks.mine": {"_target_": "pytorch_lightning.callbacks.Timer", "duration": {"days": 1}},
    "callbacks.other._target_": "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "callbacks.early_stopping._target_": "vpexp.training.callbacks.EarlyStoppingAfter",
    "model._target_": "vpexp.models.registry.build_sam_micro",
}


def test_complete__what_vpexp_and_its_libraries_offer_goes_on(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "mine", ALLOWED)
    cfg, _ = resume(folder)
    assert cfg.optimizer._target_ == "torch.optim.RMSprop"
    reached = []
    monkeypatch.setattr("vpexp.engine.run", lambda cfg, _: reached.append(cfg))
    Engine.from_config(folder / "config.yaml").train()
    (again, _), *_ = run_main(monkeypatch, "-cp", folder, "-cn", "config")
    for cfg in (*reached, again):
        assert cfg.callbacks.mine._target_ == "pytorch_lightning.callbacks.Timer"


def test_complete__what_the_user_repeats_goes_on(tmp_path, monkeypatch):
    """On the command line, in a group of a --config-dir, chosen or not; elsewhere it is still refused."""
    own = tmp_path / "own" / "optimizer"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("_target_: my_code.Lion\nlr: 1\n")
    folder = write_folder(tmp_path / "mine", {"optimizer._target_": "my_code.Lion"})
    words = "optimizer._target_=my_code.Lion is no part of vpexp"
    assert_refused(words, resume, folder)

    for typed in ("optimizer._target_=my_code.Lion", f"{CONFIG_DIR}{tmp_path / 'own'}"):
        cfg, _ = resume(folder, typed)
        assert cfg.optimizer._target_ == "my_code.Lion"

    reached = []
    monkeypatch.setattr("vpexp.engine.run", lambda cfg, _: reached.append(cfg))
    engine = Engine.from_config(folder / "config.yaml")
    assert_refused(words, engine.train)
    engine.train(overrides={"optimizer._target_": "my_code.Lion"})
    assert reached[0].optimizer._target_ == "my_code.Lion"

    for typed in (["optimizer._target_=my_code.Lion"], ["--config-dir", "own"]):
        ((cfg, overrides),) = run_main(monkeypatch, "-cp", folder, "-cn", "config", *typed)
        assert cfg.optimizer._target_ == "my_code.Lion"
        assert (f"{CONFIG_DIR}{tmp_path / 'own'}" in overrides) == ("own" in typed)
    with pytest.raises(SystemExit):
        run_main(monkeypatch, "-cp", folder, "-cn", "config", "+optimizer.note=my_code.Lio")

    checkpoint = write_checkpoint(
        tmp_path / "made", {"model._target_": "my_code.build", "optimizer._target_": "my.Own"}
    )
    assert_refused("model._target_=my_code.build is no part of vpexp", use_checkpoint, checkpoint)
    cfg, _ = use_checkpoint(checkpoint, "model._target_=my_code.build")
    assert cfg.model._target_ == "my_code.build"


def test_main__own_hydra_settings_and_interpolations_are_typed(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "mine", {})
    typed = ["+hydra.job.env_set.MINE=1", "tracking.run_name='${oc.env:HOME}'", "+tracking.tags.seed='${seed}'"]

    ((cfg, _),) = run_main(monkeypatch, "-cp", folder, "-cn", "config.yaml", *typed)

    validate(cfg)
    assert cfg.tracking.run_name == str(os.environ["HOME"])


@pytest.mark.parametrize("key", ["tracking.run_name", "data.root", "callbacks.early_stopping.monitor"])
def test_load__an_interpolation_is_none_of_vpexps(tmp_path, key):
    """The environment may hold what must not get into a record that is sent to a server."""
    folder = write_folder(tmp_path / "theirs", {key: "${oc.env:HOME}"})
    text = (folder / "config.yaml").read_text().replace(str(os.environ["HOME"]), "${oc.env:HOME}")
    (folder / "config.yaml").write_text(text)
    assert_refused("${oc.env:HOME} is no plain value", resume, folder)
    assert_refused("${oc.env:HOME} is no plain value", Engine.from_config, folder / "config.yaml")
    body = f"stage:{text.partition(chr(10) + 'stage:')[2]}"
    identity = {"config": body, "frozen": {}, "categories": []}
    torch.save({"vpexp": identity, "state_dict": {}}, tmp_path / "a.ckpt")
    assert_refused("${oc.env:HOME} is no plain value", load_predictor, tmp_path / "a.ckpt")
