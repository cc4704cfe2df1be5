"""One job of a sweep, in the sweep's own process or in one that works for it, here or on another machine."""

import gc
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vpexp.console import console, log_line
from vpexp.errors import ConfigError
from vpexp.runfolder import RunFolder
from vpexp.runtime import quiet_libraries
from vpexp.sweeps.plan import refuse_many_devices
from vpexp.sweeps.processes import ParentWatch, SweepStopped, ignore_first_interrupt, is_sweeps_process
from vpexp.sweeps.record import SweepFolder, SweepRecord, hash_job, read_values
from vpexp.tracking.description import Parent, name_values

log = logging.getLogger(__name__)

STARTING = "STARTING"
KNOWN = 20  # names in a message


class JobFailedError(Exception):
    """A job did not finish; it has recorded why."""


def run_sweep_job(cfg: Any) -> float:
    """Run the job that Hydra has composed; Hydra and its launchers call this.

    Returns:
        The number that names the best job; NaN if the job is recorded as FAILED or KILLED.

    Raises:
        JobFailedError: the same, in a search, whose sweeper has to know.
        SweepStopped: nothing more is to start.
    """
    from hydra.core.hydra_config import HydraConfig

    settings = HydraConfig.get()
    sweep = SweepFolder(Path(settings.sweep.dir))
    record = sweep.read()
    overrides = list(settings.overrides.task)
    try:
        if is_sweeps_process(record.process):
            return _run(sweep, record, cfg, overrides, int(settings.job.num))
        with _work_elsewhere(record):
            return _run(sweep, record, cfg, overrides, int(settings.job.num))
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit | SweepStopped)
        if stopped and is_sweeps_process(record.process):  # another process has other jobs to do
            raise
        if record.searches:
            raise JobFailedError(f"{type(error).__name__}: {error}") from error
        log.debug("the job has recorded it", exc_info=error)
        return math.nan


@contextmanager
def _work_elsewhere(record: SweepRecord) -> Iterator[None]:
    """In a process beside the sweep's: the same working folder, and no pictures of progress over one another."""
    quiet_libraries()
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the parent's address is printed once
    folder = Path(record.cwd)
    if Path.cwd() != folder and folder.is_dir():
        os.chdir(folder)
    console.quiet = True
    try:
        with ignore_first_interrupt(), ParentWatch(record.process):
            yield
    finally:
        console.quiet = False


def _run(sweep: SweepFolder, record: SweepRecord, cfg: DictConfig, overrides: list[str], number: int) -> float:
    if sweep.stop_marker.exists():
        raise SweepStopped
    values = read_values(overrides, record.varying)
    name = name_values(values)
    config_hash = hash_job(cfg, values)
    if (config_hash != record.alone) if record.alone else (config_hash in record.left_out):
        raise JobFailedError(f"job {number} ({name}) does not run now")
    folder = _choose_folder(sweep, number, config_hash)
    place = int(folder.path.name) if record.searches else number  # a search that goes on counts its trials anew
    label = f"job {folder.path.name} ({place + 1} of {record.jobs}), {name}"
    if folder.read_run_json().get("status") == "FINISHED":
        log_line(f"{label}: finished before")
        return _read_objective(folder, record)
    _announce(f"{label}: started")
    began = time.perf_counter()
    folder.update_run_json(
        status=STARTING, config_hash=config_hash, job=int(folder.path.name), job_name=name, values=values, error=None
    )
    try:
        _run_stage(sweep, cfg, overrides, folder, name)
        objective = _read_objective(folder, record)
    except BaseException as error:
        ended = folder.read_run_json()
        _announce(f"{label}: {ended.get('status')}, {ended.get('error') or error}", style="red")
        raise
    result = "finished" if math.isnan(objective) else f"{objective:.4f}"
    _announce(f"{label}: {result} in {time.perf_counter() - began:.0f} s")
    gc.collect()  # what the next job of this process needs
    return objective


def _run_stage(sweep: SweepFolder, cfg: DictConfig, overrides: list[str], folder: RunFolder, name: str) -> None:
    """Run the stage, or go on with it; whatever stops it before it has a record of its own is recorded here."""
    from vpexp.run import record_refused, run

    tags = {"sweep": sweep.path.name, "job": folder.path.name}
    parent = Parent(sweep, name, tags, marks_latest=False)
    cfg = cfg.copy()
    if console.quiet and "progress" in cfg.callbacks:
        cfg.callbacks.progress = None  # several bars would write over one another
    if (cfg.stage.name == "train" and folder.last_checkpoint.is_file()) or (
        cfg.stage.name == "pipeline" and folder.config.is_file()
    ):
        cfg.resume, cfg.checkpoint = str(folder.path), None
    try:
        refuse_many_devices(cfg)  # the plan has looked at the first job
        run(cfg, overrides, folder.path, parent)
    except Exception as error:
        if folder.read_run_json().get("status") == STARTING:
            record_refused(cfg, folder.path, parent, error)
        raise


def _choose_folder(sweep: SweepFolder, number: int, config_hash: str) -> RunFolder:
    """Choose the folder of a job that has begun before, known by its hash, or that of its number, or the next one free."""
    for job in sweep.find_jobs():
        if job.read_run_json().get("config_hash") == config_hash and not job.is_held():
            return job
    while True:
        folder = RunFolder(sweep.path / str(number))
        folder.path.mkdir(exist_ok=True)  # Hydra may have made it
        if not folder.run_json.exists():
            return folder
        number += 1


def _read_objective(folder: RunFolder, record: SweepRecord) -> float:
    metrics: dict[str, float | None] = folder.read_metrics_json()["metrics"]
    name = choose_metric(metrics, record.metric)
    value = metrics.get(name)
    if value is None and record.searches:
        raise ConfigError(explain_missing(name, metrics))
    return math.nan if value is None else value


def explain_missing(metric: str, metrics: dict[str, float | None]) -> str:
    """Report that a number is not measured, and which are."""
    known = sorted(name for name, value in metrics.items() if value is not None and not name.startswith("before/"))
    return f"sweep.metric={metric} is not measured; there are {', '.join(known[:KNOWN])}"


def choose_metric(metrics: dict[str, float | None], asked: str) -> str:
    """Choose what names the best job: what was asked for, else f1-score of val, of test, or of whatever there is."""
    usual = ("val/f1-score", "test/f1-score", "int8/f1-score", "torch/f1-score")
    there = [name for name in (*usual, *sorted(metrics)) if name in metrics and name.endswith("f1-score")]
    return asked or (there[0] if there else usual[0])


def _announce(line: str, style: str | None = None) -> None:
    """Tell a line in any process, one that is quiet otherwise too."""
    quiet, console.quiet = console.quiet, False
    log_line(line, style=style)
    console.quiet = quiet
