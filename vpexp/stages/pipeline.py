"""``stage=pipeline``: train, test, export, quantize and test again, each step a run of its own, and one table of it all."""

import logging
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vpexp.config.compose import format_resume
from vpexp.config.saved import name_data
from vpexp.config.schema import StageConfig
from vpexp.console import console, log_line
from vpexp.errors import ConfigError, StepError, VpexpError
from vpexp.inference.exported import find_exported
from vpexp.inference.torch_model import find_checkpoint
from vpexp.reporting.comparison import build_table, build_text_table
from vpexp.reporting.instances import AUTO
from vpexp.reporting.report import Report, StepRecord, gather_report, write_report
from vpexp.runfolder import RunFolder
from vpexp.stages.shared.context import RunContext, StageResult
from vpexp.stages.shared.evaluate import BLIND_DROP
from vpexp.stages.shared.registry import SCORES, register_exported

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """A stage of the pipeline.

    Attributes:
        name: of its folder.
        stage: which stage runs.
        source: the step whose model it takes; None: what the pipeline started from.
        column: the column of the report that a test fills.
        finds: it is a test without prompts, of a table of its own.
    """

    name: str
    stage: str
    source: str | None = None
    column: str | None = None
    finds: bool = False


# The training comes first: a wrong option of its own is found in seconds. ONNX comes before the IR, so that the last
# export, which a later stage=ptq takes, is the one that can be quantized.
STEPS = (
    Step("train", "train"),
    Step("test_before", "test", column="before"),
    Step("test_torch", "test", source="train", column="torch"),
    Step("export_onnx", "export", source="train"),
    Step("test_onnx", "test", source="export_onnx", column="onnx"),
    Step("export", "export", source="train"),
    Step("test_ir", "test", source="export", column="ir"),
    Step("ptq", "ptq", source="export"),
    Step("test_int8", "test", source="ptq", column="int8"),
    Step("find_before", "test", column="before", finds=True),
    Step("find_torch", "test", source="train", column="torch", finds=True),
    Step("find_onnx", "test", source="export_onnx", column="onnx", finds=True),
    Step("find_ir", "test", source="export", column="ir", finds=True),
    Step("find_int8", "test", source="ptq", column="int8", finds=True),
)
ONNX_STEPS = ("export_onnx", "test_onnx", "find_onnx")
CONTROLLED = ("test_torch", "find_before", "find_torch")
DEPLOYED = "ptq"
EXPORTED = {"export": "ir", "export_onnx": "onnx"}


def run(context: RunContext) -> StageResult:
    """Run all steps that have not finished yet, and report."""
    steps = _list_steps(context.cfg)
    if context.cfg.stage.onnx:
        _check_onnx()
    for place, step in enumerate(steps, 1):
        log_line("")
        log_line(f"step {place} of {len(steps)}: {step.name}", style="bold")
        try:
            _run_step(context, step)
        except VpexpError as error:
            _report_unfinished(context)
            raise StepError(
                f"step {step.name}: {error} (what came before is kept; go on with: {format_resume(context.folder.path)})"
            ) from error
        except BaseException:
            _report_unfinished(context)
            log_line(f"step {step.name} did not finish; go on with: {format_resume(context.folder.path)}")
            raise
    log_line("")
    report = _report(context)
    assert report is not None, "the tests have finished"
    _tell(context, report)
    _register(context, report)
    files = {path.name: path for path in context.folder.path.glob("report*")}
    return StageResult(report.metrics, files, context.folder.path)


def _list_steps(cfg: DictConfig) -> list[Step]:
    """List the steps that are asked for; before the training only a grid finds objects, which is a control."""
    left_out = {step.name for step in STEPS if step.finds and not cfg.prompter.enabled}
    left_out |= set() if cfg.stage.onnx else set(ONNX_STEPS)
    left_out |= set() if cfg.stage.controls else {"find_before"}
    return [step for step in STEPS if step.name not in left_out]


def _check_onnx() -> None:
    for name in ("onnx", "onnxruntime"):
        if find_spec(name) is None:
            raise ConfigError(
                f"stage.onnx=true needs the package {name}: pip install 'vpexp[onnx]', or stage.onnx=false"
            )


def _run_step(context: RunContext, step: Step) -> None:
    """Run a step, unless an earlier start of this pipeline finished it, and record how long it took."""
    folder = _get_folder(context, step.name)
    if context.cfg.resume and _has_finished(folder):
        log_line(f"finished before: {folder.path}")
        return
    spent = _read_steps(context).get(step.name, {}).get("seconds", 0.0) if context.cfg.resume else 0.0
    started = time.perf_counter()
    try:
        context.run_child(_build_config(context, step), step.name)
    finally:
        status = folder.read_run_json().get("status", "FAILED")
        record = {"status": status, "seconds": spent + time.perf_counter() - started}
        context.folder.update_run_json(steps={**_read_steps(context), step.name: record})


def _build_config(context: RunContext, step: Step) -> DictConfig:
    """Build a step's configuration: the pipeline's own, with the stage and the checkpoint of the step."""
    pipeline, folder = context.cfg, _get_folder(context, step.name)
    cfg = pipeline.copy()
    # Not composed anew: the groups on disk may be others by now than when the pipeline began, hours ago.
    cfg.stage = OmegaConf.structured(
        StageConfig(
            name=step.stage,
            split=pipeline.stage.split,
            overlays=pipeline.stage.overlays,
            controls=pipeline.stage.controls and step.name in CONTROLLED,  # they cost as much as the test itself
        )
    )
    if step.finds:
        cfg.prompt.type = AUTO
        cfg.prompter.enabled = step.column != "before"
    cfg.export.format = "onnx" if step.name in ONNX_STEPS else "openvino"
    cfg.checkpoint = str(_find_model(context, step.source)) if step.source else pipeline.checkpoint
    cfg.resume = None
    cfg.tracking.register = None  # at the end, when the tests have measured it
    if pipeline.resume and step.stage == "train" and folder.last_checkpoint.is_file():
        cfg.checkpoint, cfg.resume = None, str(folder.path)
    return cfg


def _find_model(context: RunContext, step: str) -> Path:
    folder = _get_folder(context, step)
    if step == "train":
        return find_checkpoint(str(folder.path), context.output_dir)
    return find_exported(folder.path).decoder


def _get_folder(context: RunContext, step: str) -> RunFolder:
    return RunFolder(context.folder.path / step)


def _has_finished(folder: RunFolder) -> bool:
    return folder.read_run_json().get("status") == "FINISHED"


def _read_steps(context: RunContext) -> dict[str, dict[str, Any]]:
    steps: dict[str, dict[str, Any]] = context.folder.read_run_json().get("steps") or {}
    return steps


def _report(context: RunContext) -> Report | None:
    """Write the report of the steps that have finished; None where there is nothing to tell yet."""
    records = {}
    for step in STEPS:
        folder = _get_folder(context, step.name)
        if _has_finished(folder):
            exported = EXPORTED.get(step.name)
            column = {"found" if step.finds else "tested": step.column}
            records[step.name] = StepRecord(folder, **column, exported=exported)
    cfg: Any = OmegaConf.to_container(context.cfg, resolve=True)
    report = gather_report(cfg, name_data(context.cfg), records, _read_steps(context), blind_drop=BLIND_DROP)
    if report is not None:
        for path in write_report(report, context.folder.path).values():
            context.tracker.log_artifact(path)
    return report


def _register(context: RunContext, report: Report) -> None:
    """Register what the pipeline is for, the model in INT8, if a name is given for it."""
    maker = _get_folder(context, DEPLOYED)
    scores = {name: value for name, value in report.metrics.items() if name.rpartition("/")[2] in SCORES}
    register_exported(context, find_exported(maker.path), scores, maker)


def _report_unfinished(context: RunContext) -> None:
    """Keep what came before; whatever goes wrong with it must not hide why the pipeline ends."""
    try:
        if report := _report(context):
            _tell(context, report)
    except Exception as error:  # the step's own error is the one to tell
        log.warning("no report of the steps before", exc_info=error)


def _tell(context: RunContext, report: Report) -> None:
    console.print(build_table(report.comparison))
    for table in report.comparison.tables:
        console.print(build_text_table(table))
    for line in [line for section in report.comparison.sections if section.finding for line in section.lines]:
        log_line(line)
    log_line(f"report: {context.folder.path / 'report.html'}")
