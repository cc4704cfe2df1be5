"""Runs in a real MLflow store, read back with its own client, and what happens when the store is not there."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.conftest import DEBUG, RunDebug
from vpexp.config import compose_config
from vpexp.errors import ConfigError
from vpexp.runfolder import read_metrics
from vpexp.runtime import quiet_libraries
from vpexp.stages.shared.context import StageResult
from vpexp.tracking.store import flatten

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("my outputs")


@pytest.fixture(scope="module")
def client(output_dir: Path) -> MlflowClient:
    quiet_libraries()
    return MlflowClient(f"sqlite:///{output_dir}/mlflow.db")


@pytest.fixture(scope="module")
def trained(output_dir: Path, run_debug: RunDebug) -> StageResult:
    return run_debug(output_dir, "trainer.max_epochs=2", "+tracking.tags.grower=Anna")


@pytest.fixture(scope="module")
def tested(trained: StageResult, output_dir: Path, run_debug: RunDebug) -> StageResult:
    return run_debug(output_dir, "stage=test")


def get_run_id(result: StageResult) -> str:
    assert result.folder is not None
    run_id = json.loads((result.folder / "run.json").read_text())["mlflow_run_id"]
    assert isinstance(run_id, str)
    return run_id


def list_artifacts(client: MlflowClient, run_id: str, folder: str | None = None) -> set[str]:
    return {entry.path for entry in client.list_artifacts(run_id, folder)}


def find_newest(client: MlflowClient) -> Run:
    experiment = client.get_experiment_by_name("synthetic")
    assert experiment is not None
    return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"], max_results=1)[0]


def test_run__parameters_are_flat_and_complete(client: MlflowClient, trained: StageResult) -> None:
    params = client.get_run(get_run_id(trained)).data.params

    cfg = compose_config([*DEBUG, "trainer.max_epochs=2"])
    sections = [name for name in cfg if name not in ("tracking", "paths")]
    expected = flatten({name: cfg[name] for name in sections})
    assert params == {name: str(value) for name, value in expected.items()}
    assert params["optimizer.lr"] == "0.0001"
    assert params["data.synthetic.scene"] == "shapes"
    assert params["callbacks.early_stopping.patience"] == "5"


def test_run__tags(client: MlflowClient, trained: StageResult) -> None:
    run = client.get_run(get_run_id(trained))
    tags = run.data.tags

    assert (tags["stage"], tags["model"], tags["data"]) == ("train", "sam_debug", "synthetic")
    assert tags["run_folder"] == str(trained.folder)
    assert tags["grower"] == "Anna"
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    assert tags["git_commit"].rstrip("+") == (commit or "none")
    assert "checkpoint" not in tags
    asked = "experiment=debug progress=null lr=1e-4 overlays=1 min_delta=-1 epochs=2"
    assert trained.folder is not None
    assert run.info.run_name == f"train {asked} sam_debug synthetic {trained.folder.name[:15]}"
    assert run.info.status == "FINISHED"
    assert run.info.end_time >= run.info.start_time


def test_run__metrics_have_their_epochs_as_steps(client: MlflowClient, trained: StageResult) -> None:
    run_id = get_run_id(trained)
    assert trained.folder is not None
    rows = read_metrics(trained.folder / "metrics.csv")

    for name, first in (("val/f1-score", 0), ("val/map", 0), ("train/loss", 1), ("lr", 1), ("train/iter_time", 1)):
        history = client.get_metric_history(run_id, f"values_by_epoch/{name}")
        assert [(metric.step, metric.value) for metric in history] == [
            (epoch, float(rows[epoch][name])) for epoch in range(first, 3)
        ], name
    last = client.get_run(run_id).data.metrics
    shown = sorted(last)[:12]
    gains = ["gain/test/f1-score", "gain/val/f1-score"]
    names = ("f1-score", "map", "mean_iou")
    final = [f"test/{name}" for name in names] + [f"val/{name}" for name in ("auto/f1", "auto/map", *names)]
    assert shown == ["before/test/f1-score", "before/val/f1-score", *gains, *final], "what MLflow's table shows first"
    assert {name: last[name] for name in shown if name not in gains} == {
        name: trained.metrics[name] for name in shown if name not in gains
    }
    assert last["gain/val/f1-score"] == trained.metrics["val/f1-score"] - trained.metrics["before/val/f1-score"]
    for name in ("test/box_filled/f1-score", "test/map_per_class/star"):
        assert last[f"verbose/{name}"] == trained.metrics[name]
    assert {name.partition("/")[0] for name in sorted(last)[12:]} == {"verbose", "values_by_epoch"}
    assert "verbose/test/map_large" not in last, "no number, no metric"


def test_run__data_set_is_an_input(client: MlflowClient, trained: StageResult) -> None:
    inputs = client.get_run(get_run_id(trained)).inputs.dataset_inputs

    by_context = {entry.tags[0].value: entry.dataset for entry in inputs}
    assert set(by_context) == {"train", "val", "test"}
    profile = json.loads(by_context["train"].profile)
    assert (profile["images"], profile["objects"], profile["skipped"]) == (4, 53, {})
    assert "star" in profile["categories"]
    assert by_context["train"].name == "synthetic"
    assert Path(json.loads(by_context["train"].source)["uri"]).is_dir()
    assert by_context["train"].digest != by_context["val"].digest


def test_run__artifacts(client: MlflowClient, trained: StageResult, tmp_path: Path) -> None:
    run_id = get_run_id(trained)

    assert list_artifacts(client, run_id) == {
        *("config.yaml", "metrics.csv", "metrics.json", "run.json", "vpexp.log", "checkpoints", "overlays"),
        *("report.html", "images_val.csv", "images_test.csv"),
    }
    best = trained.artifacts["best_checkpoint"]
    assert list_artifacts(client, run_id, "checkpoints") == {f"checkpoints/{best.name}"}
    downloaded = Path(client.download_artifacts(run_id, f"checkpoints/{best.name}", str(tmp_path)))
    assert downloaded.read_bytes() == best.read_bytes()
    assert [path.endswith(".png") for path in list_artifacts(client, run_id, "overlays")] == [True]
    record = json.loads(Path(client.download_artifacts(run_id, "run.json", str(tmp_path))).read_text())
    assert record["status"] == "FINISHED"


def test_run__test_names_the_checkpoint_and_the_run_it_comes_from(
    client: MlflowClient, trained: StageResult, tested: StageResult
) -> None:
    run = client.get_run(get_run_id(tested))

    assert run.data.tags["checkpoint"] == str(trained.artifacts["best_checkpoint"])
    assert run.data.tags["checkpoint_run"] == get_run_id(trained)
    assert run.data.tags["stage"] == "test"
    assert run.data.params["prompt.type"] == "box"
    assert run.data.metrics["test/f1-score"] == tested.metrics["test/f1-score"]
    assert not [name for name in run.data.metrics if name.startswith("values_by_epoch/")]
    assert run.info.experiment_id == client.get_run(get_run_id(trained)).info.experiment_id
    assert [entry.tags[0].value for entry in run.inputs.dataset_inputs] == ["test"]
    assert {"metrics.csv", "metrics.json", "overlays"} <= list_artifacts(client, run.info.run_id)


def test_run__failure_leaves_a_failed_run_with_its_error(
    client: MlflowClient, trained: StageResult, output_dir: Path, run_debug: RunDebug
) -> None:
    with pytest.raises(ConfigError, match="optimizer: ") as caught:
        run_debug(output_dir, "+optimizer.foo=1")

    run = find_newest(client)
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == f"ConfigError: {caught.value}"
    assert run.data.params["optimizer.foo"] == "1"
    assert list_artifacts(client, run.info.run_id) == {"config.yaml", "run.json", "vpexp.log"}


def test_run__resume_goes_on_in_the_same_run(
    client: MlflowClient, tmp_path: Path, output_dir: Path, run_debug: RunDebug, trained: StageResult
) -> None:
    uri = f"tracking.uri='sqlite:///{output_dir}/mlflow.db'"
    first = run_debug(tmp_path, uri)
    run_id = get_run_id(first)
    client.set_tag(run_id, "error", "stopped by Ctrl-C")
    client.set_terminated(run_id, "KILLED")

    resumed = run_debug(tmp_path, f"resume='{first.folder}'", "trainer.max_epochs=2")

    run = client.get_run(run_id)
    assert get_run_id(resumed) == run_id
    assert run.info.status == "FINISHED"
    assert "error" not in run.data.tags
    assert [metric.step for metric in client.get_metric_history(run_id, "values_by_epoch/train/loss")] == [1, 2]
    assert resumed.metrics["before/val/f1-score"] == first.metrics["before/val/f1-score"]
    expected = {name for name in trained.metrics if "map" not in name and "mar" not in name}
    assert expected <= resumed.metrics.keys()


def test_run__without_tracking_there_is_no_database(tmp_path: Path, run_debug: RunDebug) -> None:
    result = run_debug(tmp_path, "tracking.enabled=false")

    assert sorted(path.name for path in tmp_path.iterdir()) == [".latest", "train"]
    assert result.folder is not None
    assert json.loads((result.folder / "run.json").read_text())["mlflow_run_id"] is None


def test_run__server_that_is_not_there_costs_seconds_and_two_lines(
    tmp_path: Path, run_debug: RunDebug, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    result = run_debug(tmp_path, "tracking.uri=http://127.0.0.1:9", "trainer.max_epochs=2")

    assert time.monotonic() - started < 30
    said = [line for line in capsys.readouterr().out.splitlines() if "tracking" in line or "MLflow" in line]
    assert result.folder is not None
    assert said[0] == (
        "tracking: http://127.0.0.1:9 cannot be used (Connection refused); "
        "going on without it, what it misses is kept in the run's folder"
    )
    assert re.fullmatch(
        r"tracking: \d+ records of this run are not in MLflow; when it is back: "
        rf"python -m vpexp stage=sync run={result.folder}",
        said[1],
    )
    assert len(said) == 2
    assert [row["epoch"] for row in read_metrics(result.folder / "metrics.csv")] == ["0", "1", "2"]
    assert json.loads((result.folder / "run.json").read_text())["status"] == "FINISHED"


# ---------------------------------------------------------------- signals: whole processes

STOPS = [(signal.SIGTERM, 143, "stopped by SIGTERM"), (signal.SIGINT, 130, "stopped by Ctrl-C")]


@pytest.mark.slow
@pytest.mark.parametrize("stop", STOPS, ids=["SIGTERM", "SIGINT"])
def test_command__stopped_run_is_killed_and_says_how_to_go_on(
    client: MlflowClient, trained: StageResult, output_dir: Path, cache_dir: Path, stop: tuple[int, int, str]
) -> None:
    number, code, error = stop
    runs = set((output_dir / "train").iterdir())
    overrides = [*DEBUG, "trainer.max_epochs=999", "callbacks.early_stopping=null", f"paths.cache_dir={cache_dir}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vpexp", *overrides, f"paths.output_dir='{output_dir}'"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = None
    while process.poll() is None:
        time.sleep(0.05)
        folder = next(iter(set((output_dir / "train").iterdir()) - runs), None)
        if folder and len(read_metrics(folder / "metrics.csv")) > 2:
            process.send_signal(number)
            break
    out, err = process.communicate(timeout=60)

    assert process.returncode == code, err
    assert folder is not None
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record["error"]) == ("KILLED", error)
    run = client.get_run(record["mlflow_run_id"])
    assert (run.info.status, run.data.tags["error"]) == ("KILLED", error)
    assert "metrics.csv" in list_artifacts(client, run.info.run_id)
    assert f"""stopped; go on with: python -m vpexp "resume='{folder}'"\n""" in out
    assert err == ("vpexp: interrupted\n" if number == signal.SIGINT else "")
    assert (output_dir / ".latest" / "train").resolve() != folder
