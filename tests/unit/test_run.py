import json
import logging
import shlex
import signal
import threading
from pathlib import Path

import pytest
import torch

from vpexp import run as run_module
from vpexp.config import compose_config, load_config
from vpexp.errors import ConfigError, DataError
from vpexp.run import run
from vpexp.runfolder import RunFolder, find_latest
from vpexp.stages.shared.context import RunContext, StageResult
from vpexp.tracking.mlflow_run import MlflowRun


@pytest.fixture
def stage(monkeypatch):
    """Put a function in the place of the stage; the hall around it is real."""

    def put(work) -> None:
        monkeypatch.setattr(run_module, "_run_stage", work)

    return put


def start(tmp_path: Path, *asked: str, folder: Path | None = None) -> StageResult:
    overrides = ["experiment=debug", "tracking=none", f"paths.output_dir={tmp_path}/out", *asked]
    return run(compose_config(overrides), overrides, folder)


def get_only_run(tmp_path: Path) -> RunFolder:
    (path,) = (tmp_path / "out" / "train").iterdir()
    return RunFolder(path)


def test_run__writes_what_came_out(stage, tmp_path):
    stage(lambda _: StageResult({"val/f1-score": 0.5, "val/map_large": float("nan")}, details={"val": {"images": 2}}))

    start(tmp_path)

    folder = get_only_run(tmp_path)
    assert folder.metrics_json.read_text().split() == (
        [
            "{",
            '"metrics":',
            "{",
            '"val/f1-score":',
            "0.5,",
            '"val/map_large":',
            "null",
            "},",
            '"details":',
            "{",
            '"val":',
            "{",
            '"images":',
            "2",
            "}",
            "}",
            "}",
        ]
    )
    assert folder.metrics_csv.read_text().splitlines() == ["epoch,val/f1-score,val/map_large", "0,0.5,"]
    assert folder.read_run_json()["status"] == "FINISHED"
    assert find_latest(tmp_path / "out", "train") == folder


def test_run__given_folder_is_taken(stage, tmp_path):
    stage(lambda _: StageResult())

    start(tmp_path, folder=tmp_path / "out" / "sweeps" / "0")

    assert (tmp_path / "out" / "sweeps" / "0" / "run.json").is_file()
    assert find_latest(tmp_path / "out", "train") == RunFolder(tmp_path / "out" / "sweeps" / "0")


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (DataError("no images\nat all"), "FAILED", "DataError: no images"),
        (ValueError(), "FAILED", "ValueError"),
        (KeyboardInterrupt(), "KILLED", "stopped by Ctrl-C"),
        (SystemExit(143), "KILLED", "stopped by SIGTERM"),
    ],
)
def test_run__what_stopped_it_is_written_down(stage, tmp_path, error, status, words):
    def fail(context: RunContext) -> StageResult:
        assert context.folder.read_run_json()["status"] == "RUNNING"
        raise error

    stage(fail)
    with pytest.raises(type(error)):
        start(tmp_path)

    record = get_only_run(tmp_path).read_run_json()
    assert (record["status"], record["error"]) == (status, words)
    assert f"{status}: {words}" in get_only_run(tmp_path).log.read_text()
    assert find_latest(tmp_path / "out", "train") is None


def test_run__says_how_to_go_on_only_where_that_is_possible(stage, tmp_path, capsys):
    def stop(context: RunContext) -> StageResult:
        context.folder.checkpoints.mkdir()
        context.folder.last_checkpoint.touch()
        raise KeyboardInterrupt

    stage(stop)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path)

    assert f"stopped; go on with: python -m vpexp resume={get_only_run(tmp_path).path}\n" in capsys.readouterr().out


def test_run__sigterm_is_caught_while_it_lasts(stage, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    stage(lambda _: signal.raise_signal(signal.SIGTERM))

    with pytest.raises(SystemExit) as caught:
        start(tmp_path)

    assert caught.value.code == 143
    assert get_only_run(tmp_path).read_run_json()["status"] == "KILLED"
    assert signal.getsignal(signal.SIGTERM) is before


def test_run__works_beside_the_main_thread(stage, tmp_path):
    stage(lambda _: StageResult({"test/iou": 1.0}))
    results = []

    worker = threading.Thread(target=lambda: results.append(start(tmp_path)))
    worker.start()
    worker.join()

    assert results[0].metrics == {"test/iou": 1.0}


def test_run__log_of_libraries_goes_to_its_file_and_nowhere_afterwards(stage, tmp_path):
    root = logging.getLogger()
    before = (list(root.handlers), root.level)

    def work(context: RunContext) -> StageResult:
        logging.getLogger("some.library").info("a note")
        return StageResult()

    stage(work)
    start(tmp_path)

    assert "INFO some.library: a note" in get_only_run(tmp_path).log.read_text()
    assert (list(root.handlers), root.level) == before


def test_run__threads(stage, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    monkeypatch.setattr("vpexp.stages.find_stage", lambda _: lambda _: StageResult())

    start(tmp_path, "trainer.threads=3")
    start(tmp_path)

    assert seen == [3]


def test_run__configuration_given_stays_as_it_was(stage, tmp_path, monkeypatch):
    stage(lambda _: StageResult())
    monkeypatch.setenv("HOME", str(tmp_path))
    overrides = ["experiment=debug", "tracking=none", "paths.output_dir='~/out'"]
    cfg = compose_config(overrides)

    run(cfg, overrides)

    assert cfg == compose_config(overrides)
    saved = load_config(get_only_run(tmp_path).config)
    assert saved.paths.output_dir == f"{tmp_path}/out"
    assert saved.tracking.uri == f"sqlite:///{tmp_path}/out/mlflow.db"


def with_child(work, name: str = "step"):
    """A stage that runs another inside it, whose work is given."""

    def run_both(context: RunContext) -> StageResult:
        if context.folder.path.name == name:
            return work(context)
        cfg = context.cfg.copy()
        cfg.stage.split = "val"
        return context.run_child(cfg, name)

    return run_both


def test_run_child__is_a_whole_run_in_its_parents_folder(stage, tmp_path):
    def work(context: RunContext) -> StageResult:
        logging.getLogger("some.library").info("a note")
        return StageResult({"val/iou": 0.5}, folder=context.folder.path)

    stage(with_child(work))
    result = start(tmp_path)

    parent = get_only_run(tmp_path)
    child = RunFolder(parent.path / "step")
    assert result.folder == child.path
    assert (parent.read_run_json()["status"], child.read_run_json()["status"]) == ("FINISHED", "FINISHED")
    assert (load_config(parent.config).stage.split, load_config(child.config).stage.split) == ("test", "val")
    assert child.metrics_json.is_file()
    for folder in (parent, child):
        assert folder.log.read_text().count("INFO some.library: a note") == 1
    assert f"run folder: {parent.path}\n" not in child.log.read_text()
    assert find_latest(tmp_path / "out", "train") == parent, "the parent ended last"


def test_run_child__sigterm_kills_both_and_the_child_does_not_say_how_to_go_on(stage, tmp_path, capsys):
    def work(context: RunContext) -> StageResult:
        context.folder.checkpoints.mkdir()
        context.folder.last_checkpoint.touch()
        signal.raise_signal(signal.SIGTERM)
        return StageResult()

    before = signal.getsignal(signal.SIGTERM)
    stage(with_child(work))
    with pytest.raises(SystemExit) as caught:
        start(tmp_path)

    parent = get_only_run(tmp_path)
    assert caught.value.code == 143
    for folder in (parent, RunFolder(parent.path / "step")):
        assert (folder.read_run_json()["status"], folder.read_run_json()["error"]) == ("KILLED", "stopped by SIGTERM")
    assert "go on with" not in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before


def test_run_child__keeps_its_parents_sections_whatever_its_checkpoint_says(stage, tmp_path, run_debug):
    trained = run_debug(tmp_path / "trained", "tracking=none", "prompt=point").folder

    def run_both(context: RunContext) -> StageResult:
        if context.folder.path.name == "step":
            return StageResult()
        cfg = context.cfg.copy()
        cfg.stage.name, cfg.checkpoint = "test", str(trained)
        return context.run_child(cfg, "step")

    stage(run_both)
    start(tmp_path, "prompt=loose_box")

    child = load_config(get_only_run(tmp_path).path / "step" / "config.yaml")
    assert (child.prompt.type, child.prompt.jitter) == ("box", 0.4)
    assert child.checkpoint.endswith(".ckpt")


def test_run__mistake_opens_no_run(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown key 'data\.foo'"):
        start(tmp_path, "+data.foo=1")

    assert not list(tmp_path.iterdir())


def start_tracked(tmp_path: Path, uri: str, *asked: str, folder: Path | None = None) -> StageResult:
    return start(tmp_path, "tracking=default", f"tracking.uri='{uri}'", *asked, folder=folder)


@pytest.fixture
def nowhere(tmp_path):
    """A store that cannot be used: its folder would be in a file."""
    (tmp_path / "file").write_text("")
    return f"sqlite:///{tmp_path}/file/mlflow.db"


def list_kinds(folder: RunFolder) -> list[str]:
    return [json.loads(line)["kind"] for line in (folder.path / "tracking.jsonl").read_text().splitlines()]


def test_run__store_that_is_away_costs_no_run(stage, tmp_path, nowhere, capsys):
    stage(lambda _: StageResult({"test/iou": 1.0}))

    assert start_tracked(tmp_path, nowhere).metrics == {"test/iou": 1.0}

    folder = get_only_run(tmp_path)
    assert (folder.read_run_json()["status"], folder.read_run_json()["mlflow_run_id"]) == ("FINISHED", None)
    assert list_kinds(folder) == ["create", "params", "metrics", *["artifact"] * 5, "close"]
    assert find_latest(tmp_path / "out", "train") == folder
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tracking")]
    assert len(said) == 2
    assert said[1].endswith(f"MLflow; when it is back: python -m vpexp stage=sync run={folder.path}")


def test_run__store_that_is_away_hides_no_error(stage, tmp_path, nowhere):
    def fail(_: RunContext) -> StageResult:
        raise DataError("no images")

    stage(fail)
    with pytest.raises(DataError):
        start_tracked(tmp_path, nowhere)

    folder = get_only_run(tmp_path)
    assert folder.read_run_json()["status"] == "FAILED"
    assert list_kinds(folder)[:4] == ["create", "params", "tags", "close"]


def test_run__ctrl_c_while_the_store_is_waited_for_is_recorded(stage, tmp_path, nowhere, monkeypatch):
    def interrupt(_: MlflowRun) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MlflowRun, "start", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start_tracked(tmp_path, nowhere)

    folder = get_only_run(tmp_path)
    assert folder.read_run_json()["status"] == "KILLED"
    assert "close" in list_kinds(folder), "what uploads it later knows how it ended"


def test_run__goes_on_in_its_folder(stage, tmp_path, nowhere):
    stage(lambda _: StageResult({"test/iou": 1.0}))
    folder = RunFolder(tmp_path / "out" / "train" / "a")

    start_tracked(tmp_path, nowhere, folder=folder.path)
    start_tracked(tmp_path, nowhere, folder=folder.path)

    kinds = list_kinds(folder)
    assert (kinds.count("create"), kinds.count("reopen"), kinds.count("close")) == (1, 1, 2)


def test_run_child__says_nothing_of_the_store_that_its_parent_has_not_said(stage, tmp_path, nowhere, capsys):
    stage(with_child(lambda _: StageResult({"val/iou": 0.5})))

    start_tracked(tmp_path, nowhere)

    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tracking")]
    assert len(said) == 2
    parent = get_only_run(tmp_path)
    create = json.loads((parent.path / "step" / "tracking.jsonl").read_text().splitlines()[0])
    assert create["content"]["parent"] == ".."
    assert not RunFolder(parent.path / "step").is_held()


def test_run__ends_with_commands_that_can_be_typed(stage, tmp_path, capsys):
    stage(lambda _: StageResult())
    start(tmp_path, "stage=ptq", "checkpoint=null")
    lines = [line for line in capsys.readouterr().out.splitlines() if "python -m vpexp stage" in line]
    assert [line[:6] for line in lines] == ["next: ", "      "]
    words = shlex.split(lines[0].removeprefix("next:").split("  ")[0])
    cfg = compose_config(words[3:])
    assert (cfg.stage.name, cfg.paths.output_dir) == ("test", f"{tmp_path}/out")
    assert Path(cfg.checkpoint).parent == tmp_path / "out" / "ptq"
