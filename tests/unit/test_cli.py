import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from omegaconf import OmegaConf

from vpexp.cli import main
from vpexp.config import compose_config, save_config
from vpexp.config.groups import find_conf_folder
from vpexp.errors import DataError

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "mlflow", "pytorch_lightning", "datumaro", "numpy", "rich", "matplotlib")


def run_command(arguments, cwd, **environment):
    """``python -m vpexp`` as a user's shell would start it."""
    return subprocess.run(
        [sys.executable, "-m", "vpexp", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def list_modules_after(arguments, cwd):
    """The command line in a process of its own, which prints what it has imported."""
    code = f"import sys; from vpexp.cli import main\ntry: main({arguments!r})\nfinally: print(*sys.modules)"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every test starts in an empty folder that is not the checkout."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return folder


def test_stages__that_do_not_train_start_without_lightning():
    code = "import sys, importlib\nfor stage in ('test', 'ptq', 'export'):\n    importlib.import_module(f'vpexp.stages.{stage}')"
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{code}\n    print(stage, {{'pytorch_lightning', 'torchmetrics'}} & sys.modules.keys())",
        ],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == "test set()\nptq set()\nexport set()\n"


@pytest.fixture
def runs(monkeypatch):
    """What reached the stages: a list of (configuration, overrides)."""
    reached = []
    module = ModuleType("vpexp.run")
    module.run = lambda cfg, overrides=(), _folder=None: reached.append((cfg, list(overrides)))
    monkeypatch.setitem(sys.modules, "vpexp.run", module)
    return reached


def set_run(monkeypatch, run):
    module = ModuleType("vpexp.run")
    module.run = run
    monkeypatch.setitem(sys.modules, "vpexp.run", module)


def get_complaint(arguments, capsys, code=2):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    captured = capsys.readouterr()
    assert caught.value.code == code
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("vpexp: ")
    return captured.err


def test_command__wrong_key_is_one_line_and_exit_code_2(elsewhere):
    result = run_command(["data.batch_sise=2"], elsewhere)

    assert result.returncode == 2
    assert result.stderr == "vpexp: unknown key 'data.batch_sise'; did you mean 'data.batch_size'?\n"
    assert result.stdout == ""
    assert list(elsewhere.iterdir()) == []


def test_command__full_error_shows_the_traceback(elsewhere):
    result = run_command(["data.batch_sise=2"], elsewhere, HYDRA_FULL_ERROR="1")

    assert result.returncode == 2
    assert "ConfigCompositionException" in result.stderr
    assert "did you mean 'data.batch_size'" in result.stderr


def test_command__prints_the_configuration_from_any_folder(elsewhere):
    result = run_command(["--cfg", "job", "--resolve", "stage=test"], elsewhere)

    assert result.returncode == 0, result.stderr
    assert yaml.safe_load(result.stdout)["checkpoint"] == "latest"
    assert result.stderr == ""
    assert list(elsewhere.iterdir()) == []


def test_command__broken_value_stops_before_anything_heavy_is_imported(elsewhere):
    result = list_modules_after(["data.batch_size=0"], elsewhere)

    assert result.stderr == "vpexp: data.batch_size=0: must be at least 1\n"
    assert result.returncode == 2
    assert set(HEAVY).isdisjoint(result.stdout.split())


def test_main__hands_configuration_and_overrides_to_the_run(runs, elsewhere):
    main(["model=sam_debug", "data.batch_size=4"])

    [(cfg, overrides)] = runs
    assert overrides == ["model=sam_debug", "data.batch_size=4"]
    assert OmegaConf.to_container(cfg) == OmegaConf.to_container(compose_config(overrides))
    assert list(elsewhere.iterdir()) == []


def test_main__flags_may_stand_between_overrides(runs, elsewhere):
    (elsewhere / "conf" / "data").mkdir(parents=True)
    (elsewhere / "conf" / "data" / "mine.yaml").write_text("format: voc\nroot: grapes\n")

    main(["data=mine", "--config-dir", "conf", "data.batch_size=4"])

    [(cfg, _)] = runs
    assert (cfg.data.name, cfg.data.root, cfg.data.batch_size) == ("voc", "grapes", 4)


def test_main__multirun_checks_all_values_before_the_first_job(capsys, elsewhere):
    line = get_complaint(["-m", "model=sam_debug,sam_vit_c"], capsys)

    assert "model has no option 'sam_vit_c'; did you mean 'sam_vit_b'?" in line
    assert list(elsewhere.iterdir()) == []


def test_command__wrong_key_of_a_sweep_stops_before_anything_heavy_is_imported(elsewhere):
    result = list_modules_after(["-m", "data.batch_sise=1,2"], elsewhere)

    assert result.returncode == 2
    assert result.stderr == "vpexp: unknown key 'data.batch_sise'; did you mean 'data.batch_size'?\n"
    assert (set(HEAVY) - {"rich"}).isdisjoint(result.stdout.split())


@pytest.mark.parametrize("override", ["sweep=lr_batch", "sweep.resume=outputs/sweeps/1"])
def test_main__sweep_options_without_m_are_one_line(capsys, override):
    assert get_complaint([override], capsys) == (
        f"vpexp: {override} is for sweeps: add -m, python -m vpexp -m {override} ...\n"
    )


@pytest.fixture
def saved(elsewhere):
    save_config(compose_config(["model=sam_debug", "optimizer=sgd", "seed=3"]), elsewhere / "config.yaml")
    return elsewhere


@pytest.mark.parametrize("folder", [".", "absolute"])
def test_main__runs_a_saved_configuration_again(runs, saved, folder):
    main(["-cp", str(saved) if folder == "absolute" else folder, "-cn", "config", "data.batch_size=1"])

    [(cfg, overrides)] = runs
    asked = ["model=sam_debug", "optimizer=sgd", "seed=3", "data.batch_size=1"]
    assert OmegaConf.to_container(cfg, resolve=True) == OmegaConf.to_container(compose_config(asked), resolve=True)
    assert overrides == [*cfg, "data.batch_size=1"]
    assert [entry.name for entry in saved.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("group", ["data=voc", "optimizer=adam", "experiment=debug"])
def test_main__saved_configuration_has_no_groups(runs, saved, capsys, group):
    line = get_complaint(["-cp", str(saved), "-cn", "config", group], capsys)

    assert f"{group.partition('=')[0]}=... chooses a group, but a saved configuration has no groups" in line
    assert runs == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint=last.ckpt"], "unknown flag '--checkpoint=last.ckpt': write checkpoint=last.ckpt"),
        (["--fast"], "unknown flag '--fast': python -m vpexp --help lists them"),
        (["--cfg"], "expected one argument"),
        (["--cfg", "everything"], "invalid choice: 'everything'"),
        (["--resolve"], "--resolve"),
        (["--config-dir", "nowhere"], "--config-dir nowhere is no folder"),
        (["-cn", "nothere"], "no configuration 'nothere.yaml' in"),
        (["-cp", "nowhere", "-cn", "config"], "no folder"),
        (["--cfg", "job", "--resolve", "data.root=${nope}"], "Interpolation key 'nope' not found"),
        (["--cfg", "job", "-m"], "Only one of"),
        (["=3"], "must be a string"),
    ],
)
def test_main__wrong_flags_are_one_line(runs, capsys, arguments, message):
    assert message in get_complaint(arguments, capsys)
    assert runs == []


def test_main__help_names_the_groups_of_the_user_too(elsewhere, capsys):
    (elsewhere / "data").mkdir()
    (elsewhere / "data" / "mine.yaml").write_text("# My grapes: python -m vpexp data=mine\nformat: coco\n")

    main(["--help", "--config-dir", "."])

    text = capsys.readouterr().out
    assert "My grapes" in text
    assert "sam_vit_b" in text


def test_main__error_of_a_run_is_one_line(monkeypatch, capsys):
    def run(cfg, overrides=(), folder=None):
        raise DataError("my/coco: no images")

    set_run(monkeypatch, run)

    assert get_complaint(["seed=1"], capsys) == "vpexp: my/coco: no images\n"


def test_main__defect_of_a_run_is_raised_as_it_is(monkeypatch, capsys):
    def run(cfg, overrides=(), folder=None):
        raise ValueError("a defect, no user's error")

    set_run(monkeypatch, run)

    with pytest.raises(ValueError, match="a defect"):
        main(["seed=1"])
    assert capsys.readouterr().err == ""


def test_main__ctrl_c_exits_with_130(monkeypatch, capsys):
    def run(cfg, overrides=(), folder=None):
        raise KeyboardInterrupt

    set_run(monkeypatch, run)

    assert get_complaint(["seed=1"], capsys, code=130) == "vpexp: interrupted\n"


@pytest.mark.parametrize("value", [None, "0"])
def test_main__a_run_sees_the_environment_of_the_user(monkeypatch, value):
    seen = []
    set_run(monkeypatch, lambda *_: seen.append((os.environ.get("HYDRA_FULL_ERROR"), sys.argv[1:])))
    if value is not None:
        monkeypatch.setenv("HYDRA_FULL_ERROR", value)
    arguments = list(sys.argv)

    main(["seed=1"])

    assert seen == [(value, ["seed=1"])]
    assert os.environ.get("HYDRA_FULL_ERROR") == value
    assert sys.argv == arguments


def test_command__folder_that_is_gone_is_one_line(tmp_path):
    (tmp_path / "gone").mkdir()
    script = "import os; os.rmdir(os.getcwd()); from vpexp.cli import main; main(['stage=models'])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path / "gone", capture_output=True, text=True, check=False
    )

    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "does not exist any more" in done.stderr


def test_main__version(capsys):
    from importlib.metadata import PackageNotFoundError, version

    try:
        expected = version("vpexp")
    except PackageNotFoundError:
        pytest.skip("vpexp is not installed here")
    main(["--version"])

    assert capsys.readouterr().out == f"vpexp {expected}\n"


def test_conf__is_packed_into_the_wheel():
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())

    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"] == {"conf": "vpexp/conf"}
    assert find_conf_folder().name == "conf"


def test_main__nothing_typed_shows_what_to_type_and_runs_nothing(monkeypatch, capsys):
    set_run(monkeypatch, lambda *_: pytest.fail("it ran"))
    main([])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("  python -m vpexp ") for line in lines) == 11
    assert len(lines) <= 28
    assert max(map(len, lines)) < 80
