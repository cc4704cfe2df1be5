"""The whole pipeline as a user runs it, and what is left of it when a step fails or is stopped."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.conftest import DEBUG, RunDebug
from vpexp.config import load_config
from vpexp.errors import CheckpointError, ConfigError, ExportError, StepError
from vpexp.reporting.comparison import ROWS
from vpexp.runfolder import RunFolder, append_metrics, find_latest, read_metrics
from vpexp.runtime import quiet_libraries
from vpexp.stages.shared.context import RunContext, StageResult

PIPELINE = ("stage=pipeline", *DEBUG, "stage.overlays=2", "trainer.threads=1")
RunPipeline = Callable[..., StageResult]


@pytest.fixture(scope="session")
def run_pipeline(run_debug: RunDebug) -> RunPipeline:
    return lambda output_dir, *asked: run_debug(output_dir, *PIPELINE, *asked)


def fail_to_export(context: RunContext) -> StageResult:
    raise ExportError("the IR differs")


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that fails, after the steps that take a second each."""
    monkeypatch.setattr("vpexp.stages.export.run", fail_to_export)


def get_only_pipeline(output_dir: Path) -> RunFolder:
    (path,) = (output_dir / "pipeline").iterdir()
    return RunFolder(path)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def read_statuses(folder: RunFolder) -> dict[str, str]:
    return {name: step["status"] for name, step in folder.read_run_json()["steps"].items()}


# ---------------------------------------------------------------- a step that fails


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory, run_pipeline: RunPipeline) -> tuple[RunFolder, str]:
    """A pipeline whose export failed, and its message; tracked."""
    output_dir = tmp_path_factory.mktemp("my failed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vpexp.stages.export.run", fail_to_export)
        with pytest.raises(StepError) as caught:
            run_pipeline(output_dir)
    return get_only_pipeline(output_dir), str(caught.value)


def test_pipeline__failed_step_is_named_with_how_to_go_on(failed: tuple[RunFolder, str]) -> None:
    folder, message = failed

    assert message == (
        f"step export: the IR differs (what came before is kept; go on with: python -m vpexp \"resume='{folder.path}'\")"
    )
    record = folder.read_run_json()
    assert (record["status"], record["error"]) == ("FAILED", f"StepError: {message}")
    assert read_statuses(folder) == {
        "train": "FINISHED",
        "test_before": "FINISHED",
        "test_torch": "FINISHED",
        "export": "FAILED",
    }
    assert all(step["seconds"] > 0 for step in record["steps"].values())


def test_pipeline__failed_step_leaves_the_report_of_those_before(failed: tuple[RunFolder, str]) -> None:
    folder, _ = failed

    report = read_json(folder.path / "report.json")
    assert list(report) == ["before", "torch"]
    for column, step in (("before", "test_before"), ("torch", "test_torch")):
        measured = read_json(folder.path / step / "metrics.json")["metrics"]
        assert report[column] == {row.name: measured[f"test/{row.name}"] for row in ROWS}
    text = (folder.path / "report.md").read_text()
    assert "torch - before: f1-score " in text
    assert re.search(r"masks (hardly )?depend on the image: wrong-image drop -?\d\.\d\d", text)
    assert "box filled: f1-score 0." in text
    assert "export: failed" in text
    assert (folder.path / "report.html").read_text().count("<figure>") == 2 * 3


def test_pipeline__steps_are_whole_runs_of_their_own(failed: tuple[RunFolder, str]) -> None:
    folder, _ = failed
    train, before, torch = (RunFolder(folder.path / name) for name in ("train", "test_before", "test_torch"))

    for step in (train, before, torch):
        assert step.read_run_json()["status"] == "FINISHED"
        assert step.log.stat().st_size
        assert step.log.read_text().splitlines()[-1] in folder.log.read_text()
    assert not load_config(train.config).stage.test
    assert load_config(before.config).checkpoint is None
    best = train.path / train.read_run_json()["best_checkpoint"]
    assert load_config(torch.config).checkpoint == str(best)
    assert load_config(torch.config).stage.controls
    assert not load_config(before.config).stage.controls
    assert load_config(torch.config).data == load_config(folder.config).data


def test_pipeline__latest_points_to_what_finished(failed: tuple[RunFolder, str]) -> None:
    folder, _ = failed
    output_dir = folder.path.parents[1]

    assert find_latest(output_dir, "train") == RunFolder(folder.path / "train")
    assert find_latest(output_dir, "test") == RunFolder(folder.path / "test_torch")
    assert find_latest(output_dir, "export") is None
    assert find_latest(output_dir, "pipeline") is None
    assert not Path((output_dir / ".latest" / "train").readlink()).is_absolute()


def test_pipeline__steps_are_children_in_mlflow(failed: tuple[RunFolder, str]) -> None:
    folder, message = failed
    quiet_libraries()
    client = MlflowClient(f"sqlite:///{folder.path.parents[1]}/mlflow.db")

    parent = client.get_run(folder.read_run_json()["mlflow_run_id"])
    assert (parent.info.status, parent.data.tags["error"]) == ("FAILED", f"StepError: {message}")
    assert "mlflow.parentRunId" not in parent.data.tags
    uploaded = {entry.path for entry in client.list_artifacts(parent.info.run_id)}
    assert {"report.md", "report.json", "report.html", "report_details.json", "vpexp.log"} <= uploaded
    runs = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert {run.info.run_name: run.info.status for run in runs} == {
        "train sam_debug synthetic": "FINISHED",
        "test_before sam_debug synthetic": "FINISHED",
        "test_torch sam_debug synthetic": "FINISHED",
        "export sam_debug synthetic": "FAILED",
    }
    steps = {run.data.tags["step"]: run for run in runs}
    assert steps["export"].data.tags["stage"] == "export"
    assert steps["train"].info.run_id == read_json(folder.path / "train" / "run.json")["mlflow_run_id"]
    assert steps["test_torch"].data.tags["checkpoint_run"] == steps["train"].info.run_id


def test_pipeline__resumed_does_not_repeat_what_finished(
    failed: tuple[RunFolder, str], run_pipeline: RunPipeline, no_export: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, message = failed
    before = {name: (folder.path / name / "run.json").stat().st_mtime_ns for name in ("train", "test_torch")}

    with pytest.raises(StepError) as caught:
        run_pipeline(folder.path.parents[1], "resume=latest")

    assert str(caught.value) == message
    assert get_only_pipeline(folder.path.parents[1]) == folder
    assert {name: (folder.path / name / "run.json").stat().st_mtime_ns for name in before} == before
    assert capsys.readouterr().out.count("finished before: ") == 3
    assert load_config(folder.config).resume is None


def test_pipeline__failed_training_leaves_no_report(tmp_path: Path, run_pipeline: RunPipeline) -> None:
    with pytest.raises(StepError, match=r"^step train: .*monitor=val/foo"):
        run_pipeline(tmp_path, "callbacks.early_stopping.monitor=val/foo", "tracking=none")

    folder = get_only_pipeline(tmp_path)
    assert not list(folder.path.glob("report*"))
    assert read_statuses(folder) == {"train": "FAILED"}


# ---------------------------------------------------------------- a pipeline that is stopped


def test_pipeline__stopped_training_goes_on_where_it_was(
    tmp_path: Path,
    run_pipeline: RunPipeline,
    no_export: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ("trainer.max_epochs=4", "callbacks.early_stopping=null", "tracking=none")
    with pytest.raises(StepError):
        run_pipeline(tmp_path / "whole", *asked)

    def stop_in_epoch_2(path: Path, epoch: int, metrics: dict[str, float]) -> None:
        append_metrics(path, epoch, metrics)
        if epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vpexp.stages.shared.training_loop.append_metrics", stop_in_epoch_2)
        capsys.readouterr()
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(tmp_path / "stopped", *asked)
    folder = get_only_pipeline(tmp_path / "stopped")
    out = capsys.readouterr().out
    assert out.count("go on with") == 1
    assert f"step train did not finish; go on with: python -m vpexp resume={folder.path}\n" in out
    assert (folder.read_run_json()["status"], read_statuses(folder)) == ("KILLED", {"train": "KILLED"})

    with pytest.raises(StepError, match="step export"):
        run_pipeline(tmp_path / "stopped", f"resume={folder.path}", *asked)

    whole = get_only_pipeline(tmp_path / "whole")
    rows = [
        [{key: value for key, value in row.items() if not key.endswith("_time")} for row in read_metrics(csv)]
        for csv in (whole.path / "train" / "metrics.csv", folder.path / "train" / "metrics.csv")
    ]
    assert len(rows[0]) == 5
    assert rows[0] == rows[1]
    numbers = [read_json(run.path / "report.json")["torch"] for run in (whole, folder)]
    assert numbers[0]["f1-score"] == numbers[1]["f1-score"]


# ---------------------------------------------------------------- mistakes


def test_pipeline__start_checkpoint_is_what_before_means(
    failed: tuple[RunFolder, str], tmp_path: Path, run_pipeline: RunPipeline, no_export: None
) -> None:
    trained = failed[0].path / "train"

    with pytest.raises(StepError, match="step export"):
        run_pipeline(tmp_path, f"checkpoint='{trained}'", "tracking=none")

    report = read_json(get_only_pipeline(tmp_path).path / "report.json")
    earlier = read_json(failed[0].path / "report.json")
    assert report["before"]["f1-score"] == earlier["torch"]["f1-score"]


def test_pipeline__onnx_without_its_packages_is_said_before_anything_runs(
    tmp_path: Path, run_pipeline: RunPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vpexp.stages.pipeline.find_spec", lambda _: None)

    with pytest.raises(ConfigError, match=r"stage\.onnx=true needs the package onnx: pip install"):
        run_pipeline(tmp_path, "stage.onnx=true", "tracking=none")

    assert not (get_only_pipeline(tmp_path).path / "train").exists()


def test_pipeline__nothing_to_resume(tmp_path: Path, run_pipeline: RunPipeline) -> None:
    with pytest.raises(CheckpointError, match=r"no run under .*pipeline can go on"):
        run_pipeline(tmp_path, "resume=latest")


def test_pipeline__store_that_is_down_is_asked_once(
    tmp_path: Path, run_pipeline: RunPipeline, no_export: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StepError):
        run_pipeline(tmp_path, "tracking.uri=http://127.0.0.1:9")

    assert capsys.readouterr().out.count("going on without it") == 1
    assert read_statuses(get_only_pipeline(tmp_path))["test_torch"] == "FINISHED"


# ---------------------------------------------------------------- the whole of it


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, run_pipeline: RunPipeline) -> StageResult:
    return run_pipeline(tmp_path_factory.mktemp("whole"), "stage.onnx=true")


@pytest.mark.slow
def test_pipeline__report_has_all_columns(whole: StageResult) -> None:
    assert whole.folder is not None
    report = read_json(whole.folder / "report.json")
    found = report.pop("without_prompts")

    assert list(report) == list(found) == ["before", "torch", "ir", "onnx", "int8"]
    for column in report.values():
        assert list(column) == [row.name for row in ROWS]
        assert all(column[name] is not None for name in ("f1-score", "map", "size_mb", "load_time", "encoder_time"))
    assert report["ir"]["f1-score"] == pytest.approx(report["torch"]["f1-score"], abs=1e-3)
    assert report["onnx"]["f1-score"] == pytest.approx(report["torch"]["f1-score"], abs=1e-3)
    assert report["int8"]["size_mb"] < report["ir"]["size_mb"]
    assert whole.metrics["int8/f1-score"] == report["int8"]["f1-score"]
    in_turns = read_json(whole.folder / "ptq" / "metrics.json")["metrics"]
    assert report["ir"]["encoder_time"] == pytest.approx(in_turns["fp32/encoder_ms"] / 1000)
    assert report["int8"]["decoder_time"] == pytest.approx(in_turns["int8/decoder_ms"] / 1000)
    for column, way in (("before", "grid"), ("torch", "auto"), ("int8", "auto")):
        measured = read_json(whole.folder / f"find_{column}" / "metrics.json")["metrics"]
        assert found[column] == {name: measured.get(f"test/{way}/{name}") for name in found[column]}
        assert found[column]["seconds_per_image"] == whole.metrics[f"{column}/{way}/seconds_per_image"] > 0
    text = (whole.folder / "report.md").read_text()
    assert "## Objects found without prompts" in text
    assert "int8 - ir: f1-score " in text
    assert "ir against torch on a trial image: of 10,000 mask pixels 0.00 flip" in text
    page = (whole.folder / "report.html").read_text()
    assert page.count("<figure>") == 2 * 6
    details = read_json(whole.folder / "report_details.json")
    change = details["changes"]["int8 - ir"]["f1-score"]
    assert math.isclose(change, report["int8"]["f1-score"] - report["ir"]["f1-score"])


@pytest.mark.slow
def test_pipeline__latest_are_what_can_be_used_next(whole: StageResult, run_debug: RunDebug) -> None:
    assert whole.folder is not None
    output_dir = whole.folder.parents[1]

    assert find_latest(output_dir, "pipeline") == RunFolder(whole.folder)
    assert (output_dir / ".latest" / "export" / "exported_model_decoder.xml").is_file(), "not the ONNX export"
    int8 = output_dir / ".latest" / "ptq" / "optimized_model_decoder.xml"
    tested = run_debug(output_dir, "stage=test", f"checkpoint={int8}", "stage.overlays=0")
    assert tested.metrics["test/f1-score"] == whole.metrics["int8/f1-score"]


@pytest.mark.slow
def test_pipeline__parent_in_mlflow_has_the_numbers_and_the_report(whole: StageResult) -> None:
    assert whole.folder is not None
    quiet_libraries()
    client = MlflowClient(f"sqlite:///{whole.folder.parents[1]}/mlflow.db")
    parent = client.get_run(RunFolder(whole.folder).read_run_json()["mlflow_run_id"])

    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["ir/f1-score"] == whole.metrics["ir/f1-score"]
    children = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert len(children) == 14
    assert {run.info.status for run in children} == {"FINISHED"}


@pytest.mark.slow
def test_pipeline__goes_on_with_its_last_step_alone(
    whole: StageResult, tmp_path: Path, run_pipeline: RunPipeline
) -> None:
    assert whole.folder is not None
    folder = RunFolder(shutil.copytree(whole.folder, tmp_path / "pipeline" / whole.folder.name))
    RunFolder(folder.path / "test_int8").update_run_json(status="RUNNING")
    written = (folder.path / "ptq" / "run.json").stat().st_mtime_ns

    result = run_pipeline(tmp_path, f"resume={folder.path}", "tracking=none")

    assert (folder.path / "ptq" / "run.json").stat().st_mtime_ns == written
    assert read_statuses(folder)["test_int8"] == "FINISHED"
    assert result.metrics["int8/f1-score"] == whole.metrics["int8/f1-score"]
    assert find_latest(tmp_path, "test") == RunFolder(folder.path / "test_int8")
