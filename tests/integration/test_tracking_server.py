"""A real MLflow server that is slow, stopped and started again: no run is lost, and no record of it."""

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.conftest import DEBUG, RunDebug
from tests.references.mlflow_server import BadWay, MlflowServer
from vpexp.cli import main
from vpexp.errors import ExportError, StepError
from vpexp.runfolder import RunFolder, append_metrics, read_metrics
from vpexp.stages.shared.context import RunContext, StageResult
from vpexp.tracking import mlflow_run
from vpexp.tracking.journal import ERROR

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
EPOCHS = ("trainer.max_epochs=4", "callbacks.early_stopping=null")
OWN_TAGS = (
    "run_folder",
    "git_commit",
    "mlflow.runName",
)  # somebody may commit while the tests run; names end with the time
# What two runs of the same configuration share; times differ.
SAME = (
    *(f"values_by_epoch/{name}" for name in ("train/loss", "lr", "val/f1-score", "val/map")),
    *("val/f1-score", "test/f1-score", "before/val/f1-score"),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    there = MlflowServer(tmp_path_factory.mktemp("server"))
    there.start()
    yield there
    there.stop()


@pytest.fixture(scope="module")
def client(server: MlflowServer) -> MlflowClient:
    """Reads the server's database, whether the server is up or not."""
    return MlflowClient(f"sqlite:///{server.folder}/mlflow.db")


@pytest.fixture
def way(server: MlflowServer) -> Iterator[BadWay]:
    server.start()
    bad = BadWay(server)
    yield bad
    bad.close()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("my outputs")


@pytest.fixture(scope="module")
def undisturbed(server: MlflowServer, outputs: Path, run_debug: RunDebug) -> RunFolder:
    """A run whose server was there all the time."""
    return get_folder(run_debug(outputs, f"tracking.uri={server.uri}", *EPOCHS))


def get_folder(result: StageResult) -> RunFolder:
    assert result.folder is not None
    return RunFolder(result.folder)


def find_run(client: MlflowClient, folder: RunFolder) -> Run:
    """Find the one run that a folder has in the store."""
    experiment = client.get_experiment_by_name("synthetic")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], f"tags.run_folder = '{folder.path}'")
    assert [run.info.run_id for run in found] == [folder.read_run_json()["mlflow_run_id"]]
    return found[0]


def describe(client: MlflowClient, folder: RunFolder) -> dict[str, Any]:
    """All that a store holds of a run and that does not depend on when and where it ran."""
    run = find_run(client, folder)
    run_id = run.info.run_id
    curves = {name: client.get_metric_history(run_id, name) for name in run.data.metrics}
    return {
        "name": run.info.run_name.rpartition(" ")[0],  # behind it the time
        "status": run.info.status,
        "params": run.data.params,
        "tags": {name: value for name, value in run.data.tags.items() if name not in OWN_TAGS},
        "steps": {name: [point.step for point in curve] for name, curve in curves.items()},
        "values": {name: [point.value for point in curves[name]] for name in SAME},
        "artifacts": sorted(list_files(client, run)),
        "data": sorted((entry.tags[0].value, entry.dataset.digest) for entry in run.inputs.dataset_inputs),
    }


def list_files(client: MlflowClient, run: Run) -> Iterator[str]:
    """List a run's artifacts where the server keeps them."""
    server = Path(client.tracking_uri.removeprefix("sqlite:///")).parent
    folder = server / "artifacts" / run.info.artifact_uri.removeprefix("mlflow-artifacts:/")
    return (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def check_times(client: MlflowClient, folder: RunFolder, began: float, ended: float) -> None:
    """The records have the times of the run, not of their upload."""
    run = find_run(client, folder)
    moments = [run.info.start_time, run.info.end_time]
    for name in ("values_by_epoch/train/loss", "test/f1-score"):
        moments += [point.timestamp for point in client.get_metric_history(run.info.run_id, name)]
    assert began * 1000 - 1 <= min(moments) == run.info.start_time
    assert ended * 1000 >= max(moments) == run.info.end_time


def at_epoch(monkeypatch: pytest.MonkeyPatch, actions: dict[int, Any]) -> None:
    """Do something when an epoch of the training has ended."""

    def act(path: Path, epoch: int, metrics: dict[str, float]) -> None:
        append_metrics(path, epoch, metrics)
        if epoch in actions:
            actions[epoch]()

    monkeypatch.setattr("vpexp.stages.shared.training_loop.append_metrics", act)


def list_said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("tracking")]


def test_server_that_comes_back_in_mid_run__everything_arrives_by_the_end(
    *,
    server: MlflowServer,
    client: MlflowClient,
    undisturbed: RunFolder,
    outputs: Path,
    run_debug: RunDebug,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_epoch(monkeypatch, {1: server.stop, 3: server.start})
    began = time.time()

    # With processes that read images, which are made while the thread that sends is at work.
    result = run_debug(outputs, f"tracking.uri={server.uri}", *EPOCHS, "data.num_workers=2")

    ended = time.time()
    folder = get_folder(result)
    expected = describe(client, undisturbed)
    expected["params"] = {**expected["params"], "data.num_workers": "2"}
    assert describe(client, folder) == expected
    check_times(client, folder, began, ended)
    said = list_said(capsys)
    assert len(said) == 2
    assert said[0].startswith(f"tracking: {server.uri} cannot be used (")
    assert said[1] == f"tracking: {server.uri} is back"


@dataclass(frozen=True)
class Unheard:
    """A run whose server was away when it ended."""

    folder: RunFolder
    began: float
    ended: float
    said: list[str]


@pytest.fixture(scope="module")
def begun(server: MlflowServer, undisturbed: RunFolder, outputs: Path, cache_dir: Path) -> Unheard:
    """A command whose server went away in mid-run."""
    server.start()
    before = set((outputs / "train").iterdir())
    began = time.time()
    command = [sys.executable, "-m", "vpexp", *DEBUG, *EPOCHS, f"tracking.uri={server.uri}"]
    process = subprocess.Popen(
        [*command, f"paths.output_dir='{outputs}'", f"paths.cache_dir='{cache_dir}'"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = wait_for_epochs(outputs, before, process, 1)
    server.stop()
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    return Unheard(folder, began, time.time(), [line for line in out.splitlines() if line.startswith("tracking")])


@pytest.fixture(scope="module")
def never(server: MlflowServer, begun: Unheard, outputs: Path, run_debug: RunDebug) -> Unheard:
    """A run whose server was away from the start."""
    server.stop()
    began, out = time.time(), io.StringIO()
    with redirect_stdout(out):
        result = run_debug(outputs, f"tracking.uri={server.uri}", *EPOCHS)
    said = [line for line in out.getvalue().splitlines() if line.startswith("tracking")]
    return Unheard(get_folder(result), began, time.time(), said)


@pytest.fixture(scope="module")
def pipeline(server: MlflowServer, never: Unheard, outputs: Path, run_debug: RunDebug) -> Unheard:
    """A pipeline, its last step failed, whose server was away from the start."""
    server.stop()

    def fail(context: RunContext) -> StageResult:
        raise ExportError("the IR differs")

    began, out, patch = time.time(), io.StringIO(), pytest.MonkeyPatch()
    patch.setattr("vpexp.stages.export.run", fail)
    with redirect_stdout(out), pytest.raises(StepError):
        run_debug(outputs, "stage=pipeline", "experiment=debug", "stage=pipeline", f"tracking.uri={server.uri}")
    patch.undo()
    (folder,) = (outputs / "pipeline").iterdir()
    said = [line for line in out.getvalue().splitlines() if line.startswith("tracking")]
    return Unheard(RunFolder(folder), began, time.time(), said)


def wait_for_epochs(outputs: Path, before: set[Path], process: subprocess.Popen[Any], epochs: int) -> RunFolder:
    """Wait until a command has trained some epochs, in a new folder."""
    while process.poll() is None:
        folder = next(iter(set((outputs / "train").iterdir()) - before), None)
        if folder and len(read_metrics(folder / "metrics.csv")) > epochs:
            return RunFolder(folder)
        time.sleep(0.02)
    pytest.fail("the command has ended")


@pytest.mark.parametrize("name", ["begun", "never", "pipeline"])
def test_server_that_stays_away__run_ends_well_and_says_how_to_upload(
    server: MlflowServer, begun: Unheard, never: Unheard, pipeline: Unheard, name: str
) -> None:
    unheard = {"begun": begun, "never": never, "pipeline": pipeline}[name]

    first, last = unheard.said
    assert first.startswith(f"tracking: {server.uri} cannot be used (")
    assert last.split(" records")[1] == (
        f" of this run are not in MLflow; when it is back: python -m vpexp stage=sync \"run='{unheard.folder.path}'\""
    )
    record = unheard.folder.read_run_json()
    assert record["status"] == ("FAILED" if name == "pipeline" else "FINISHED")
    assert (record["mlflow_run_id"] is None) == (name != "begun")
    if name != "pipeline":
        assert [row["epoch"] for row in read_metrics(unheard.folder.metrics_csv)] == ["0", "1", "2", "3", "4"]


def test_sync__server_that_is_away_is_one_line(
    server: MlflowServer, never: Unheard, pipeline: Unheard, capsys: pytest.CaptureFixture[str]
) -> None:
    server.stop()

    with pytest.raises(SystemExit) as caught:
        main(["stage=sync", f"run='{never.folder.path}'"])

    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "vpexp: MLflow cannot be used (Connection refused): uploaded until now: 0 runs, nothing is lost"
    )


def test_sync__uploads_what_a_run_without_disturbance_has(
    *,
    server: MlflowServer,
    client: MlflowClient,
    undisturbed: RunFolder,
    begun: Unheard,
    never: Unheard,
    pipeline: Unheard,
) -> None:
    server.start()
    command = [sys.executable, "-m", "vpexp", "stage=sync", f"run='{never.folder.path.parent}'"]

    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert lines[-1].endswith(" runs, 2 had something to upload")
    expected = describe(client, undisturbed)
    for unheard in (begun, never):
        assert f"{unheard.folder.path}: " in done.stdout
        assert describe(client, unheard.folder) == expected
        check_times(client, unheard.folder, unheard.began, unheard.ended)


def test_sync__twice_changes_nothing(
    server: MlflowServer, client: MlflowClient, never: Unheard, pipeline: Unheard, capsys: pytest.CaptureFixture[str]
) -> None:
    server.start()
    folder = never.folder
    main(["stage=sync", f"run='{folder.path}'"])
    before = describe(client, folder)
    capsys.readouterr()

    main(["stage=sync", f"run='{folder.path}'"])

    assert capsys.readouterr().out.splitlines()[-1] == "1 run, 0 had something to upload"
    assert describe(client, folder) == before


def test_sync__pipeline_is_uploaded_with_its_steps_below_it(
    server: MlflowServer, client: MlflowClient, pipeline: Unheard
) -> None:
    server.start()
    folder = pipeline.folder.path

    main(["stage=sync", f"run='{folder / 'train'}'"])  # with a part the whole, without which it has no place
    main(["stage=sync", f"run='{folder}'"])

    parent = find_run(client, RunFolder(folder))
    assert parent.info.status == "FAILED"
    assert "the IR differs" in parent.data.tags["error"]
    for step in ("train", "test_before", "test_torch", "export"):
        run = find_run(client, RunFolder(folder / step))
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == ("FAILED" if step == "export" else "FINISHED")
    assert "test/f1-score" in find_run(client, RunFolder(folder / "test_torch")).data.metrics


def test_slow_server__training_does_not_wait_and_sync_uploads_the_rest(
    *,
    server: MlflowServer,
    client: MlflowClient,
    way: BadWay,
    tmp_path: Path,
    run_debug: RunDebug,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mlflow_run, "OPEN_SECONDS", 0.5)
    monkeypatch.setattr(mlflow_run, "CLOSE_SECONDS", 3.0)
    way.delay = 3.0  # the whole of the records would take a minute
    epochs: list[float] = []
    at_epoch(monkeypatch, dict.fromkeys(range(5), lambda: epochs.append(time.monotonic())))

    folder = get_folder(run_debug(tmp_path, f"tracking.uri={way.uri}", *EPOCHS))

    assert time.monotonic() - epochs[-1] < 15
    assert epochs[-1] - epochs[0] < 4 * way.delay, "no epoch waits for a request"
    (said,) = list_said(capsys)
    assert "records of this run are not in MLflow" in said
    way.delay = 0.0
    main(["stage=sync", f"run='{folder.path}'"])
    assert find_run(client, folder).info.status == "FINISHED"
    assert [
        point.step
        for point in client.get_metric_history(find_run(client, folder).info.run_id, "values_by_epoch/train/loss")
    ] == [*(1, 2, 3, 4)]


def test_server_that_refuses_one_record__takes_the_others(
    *,
    server: MlflowServer,
    client: MlflowClient,
    way: BadWay,
    tmp_path: Path,
    run_debug: RunDebug,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    way.refuses = lambda body: b'"values_by_epoch/train/loss"' in body and b'"step": 1' in body

    folder = get_folder(run_debug(tmp_path, f"tracking.uri={way.uri}", *EPOCHS))

    run = find_run(client, folder)
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "values_by_epoch/train/loss")] == [
        2,
        3,
        4,
    ]
    said = list_said(capsys)
    assert len(said) == 2
    assert said[0].startswith("tracking: the store does not take metrics (")
    assert said[1].startswith("tracking: 1 records of this run are not in MLflow; when it is back: ")
    way.refuses = lambda _: False
    main(["stage=sync", f"run='{folder.path}'"])
    assert [point.step for point in client.get_metric_history(run.info.run_id, "values_by_epoch/train/loss")] == [
        1,
        2,
        3,
        4,
    ]


def test_killed_process__is_closed_by_the_next_run_of_any_stage(
    *,
    server: MlflowServer,
    client: MlflowClient,
    undisturbed: RunFolder,
    outputs: Path,
    cache_dir: Path,
    run_debug: RunDebug,
) -> None:
    server.start()
    before = set((outputs / "train").iterdir())
    overrides = [*DEBUG, "trainer.max_epochs=999", "callbacks.early_stopping=null", f"tracking.uri={server.uri}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vpexp", *overrides, f"paths.output_dir='{outputs}'", f"paths.cache_dir='{cache_dir}'"],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
    )
    lost = wait_for_epochs(outputs, before, process, 2)
    process.kill()
    process.wait()
    killed = time.time()
    assert (lost.read_run_json()["status"], find_run(client, lost).info.status) == ("RUNNING", "RUNNING")

    run_debug(outputs, "stage=test", f"tracking.uri={server.uri}", f"checkpoint='{undisturbed.path}'")

    run = find_run(client, lost)
    assert (run.info.status, run.data.tags["error"]) == ("KILLED", ERROR)
    assert run.info.start_time < run.info.end_time <= killed * 1000
    record = lost.read_run_json()
    assert (record["status"], record["error"]) == ("KILLED", ERROR)
    main(["stage=sync", f"run='{lost.path}'"])
    assert find_run(client, lost).info.status == "KILLED"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "values_by_epoch/train/loss")]
    assert steps == [int(row["epoch"]) for row in read_metrics(lost.metrics_csv)[1:]]


def test_sync__run_folder_that_was_copied_goes_to_another_store(
    server: MlflowServer, undisturbed: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(undisturbed.path, tmp_path / "copy")
    (tmp_path / "copy" / "run.json").write_text(json.dumps({**undisturbed.read_run_json(), "mlflow_run_id": None}))

    main(["stage=sync", f"run='{tmp_path}/copy'", f"tracking.uri='sqlite:///{tmp_path}/mlflow.db'"])

    other = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run = other.get_run(RunFolder(tmp_path / "copy").read_run_json()["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert [point.step for point in other.get_metric_history(run.info.run_id, "values_by_epoch/train/loss")] == [
        1,
        2,
        3,
        4,
    ]
    assert "not taken" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ([], "run is not given: write run=..."),
        (["run=nowhere"], "run=nowhere: there is no such folder"),
        (["run={tmp}"], "run={tmp}: no run in it was tracked; runs lie in outputs/<stage>/<time>"),
    ],
)
def test_sync__wrong_folder_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["stage=sync", *(word.format(tmp=tmp_path) for word in asked)])

    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"vpexp: {words.format(tmp=tmp_path)}")
