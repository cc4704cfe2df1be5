"""``python -m vpexp -m``: order the jobs, keep the record of the whole, also in MLflow, and report what came of it."""

import logging
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vpexp.command_line import CommandLine, explain_error, read_command_line, start_hydra
from vpexp.config.compose import format_sync, quote_value, quote_word
from vpexp.config.saved import name_data
from vpexp.console import console, format_count, log_line
from vpexp.errors import CheckpointError, ConfigError, WorkerError
from vpexp.runfolder import TIME_FORMAT, RunFolder, mark_latest
from vpexp.runtime import quiet_libraries
from vpexp.signals import describe_stop, is_sigterm
from vpexp.sweeps.job import JobFailedError, explain_missing, run_sweep_job
from vpexp.sweeps.plan import SweepPlan, plan_sweep
from vpexp.sweeps.processes import (
    SweepStopped,
    can_start_again,
    end_ray_workers,
    find_lost_jobs,
    is_lost_worker,
    stop_in_two_steps,
    wait_for_jobs,
)
from vpexp.sweeps.record import STAGE, SweepFolder, SweepRecord
from vpexp.sweeps.search import Search
from vpexp.sweeps.summary import SweepSummary, build_sweep_table, draw_pictures, summarize_sweep, write_results
from vpexp.tracking.description import get_git_commit, list_common_tags, name_experiment
from vpexp.tracking.journal import get_host, mark_killed
from vpexp.tracking.mlflow_run import MlflowRun, RunDescription, open_mlflow_run

RESUME = "sweep.resume="
CONFIG_FLAGS = ("-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir")
FAILED, INTERRUPTED = 1, 130
ENDING_SECONDS = 30.0  # that workers of a lost process are waited for
IDLE_LOSSES = 3  # workers lost one after another while no job ran in them; then the machine is to blame

log = logging.getLogger("vpexp")


def run_sweep(command_line: CommandLine) -> int:
    """Run a sweep, or go on with one.

    Returns:
        The exit code: 0, 1 if a job did not finish, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        ConfigError: the command line is wrong; nothing was started.
    """
    command_line, resumed = _find_resumed(command_line)
    plan = plan_sweep(command_line, resumed.path if resumed else None)
    quiet_libraries()
    if resumed:
        _wait_for_running_jobs(resumed)
    sweep = _make_folder(plan)
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs")  # for a fresh one, says loky
    with sweep.hold():
        _write_record(plan, sweep, going_on=resumed is not None)
        _close_lost_jobs(sweep)
        tracker = open_sweep_run(plan, sweep)
        log_line(f"sweep of {format_count(plan.jobs, 'job')} over {', '.join(plan.varying)}: {sweep.path}")
        search = Search(plan, sweep) if plan.search else None
        error = _run_jobs(plan, sweep, search)
        return _conclude(plan, sweep, tracker, error, search)


def _find_resumed(command_line: CommandLine) -> tuple[CommandLine, SweepFolder | None]:
    """Read the command of a sweep that goes on; what is typed now comes on top, as another launcher or more values.

    The record is data that somebody else may have written: what it asks for is checked before anything is started.
    """
    asked = [override for override in command_line.overrides if override.startswith(RESUME)]
    if not asked:
        return command_line, None
    place = Path(asked[-1].removeprefix(RESUME).strip("'\"")).expanduser().absolute()
    if not place.is_dir():
        raise CheckpointError(f"{RESUME}{place}: there is no such folder")
    sweep = SweepFolder(place.resolve())
    record = sweep.read()
    typed = [override for override in command_line.overrides if override not in asked]
    keys = {_get_key(override) for override in typed}
    # Another launcher or sweeper has other settings than the one that the sweep was started with.
    sections = tuple(f"{key.replace('/', '.')}." for key in keys if key.startswith("hydra/"))
    kept = [word for word in record.overrides if _get_key(word) not in keys and not _get_key(word).startswith(sections)]
    own_folder = (
        [] if command_line.config_dir is None else ["--config-dir", str(Path(command_line.config_dir).absolute())]
    )
    if Path(record.cwd).is_dir():
        os.chdir(record.cwd)  # folders on the command line were meant from there
    read = read_command_line(["-m", *_take_flags(record.flags, sweep), *own_folder, *kept, *typed])
    read.typed, read.is_foreign, read.source = read_command_line(["-m", *own_folder, *typed]), True, sweep.run_json
    for override in kept:
        if "searchpath" in override:  # composing would import what it names
            raise ConfigError(f"{sweep.run_json}: {override}: folders of groups are given as --config-dir")
    return read, sweep


def _get_key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _take_flags(flags: tuple[str, ...], sweep: SweepFolder) -> list[str]:
    """Take what names the main configuration and the folder of groups from a record."""
    words = iter(flag for flag in flags if flag not in ("-m", "--multirun"))
    taken = []
    for word in words:
        name, equals, _ = word.partition("=")
        if name not in CONFIG_FLAGS:
            raise ConfigError(f"{sweep.run_json}: the flag {word} is not taken from the record of a sweep")
        taken += [word] if equals else [word, next(words, "")]
    return taken


def _make_folder(plan: SweepPlan) -> SweepFolder:
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"hydra.sweep.dir={plan.folder} cannot be written: {error.strerror}") from error
    return SweepFolder(plan.folder.resolve())


def _write_record(plan: SweepPlan, sweep: SweepFolder, *, going_on: bool) -> None:
    if not going_on and sweep.run_json.exists():
        raise ConfigError(
            f"hydra.sweep.dir={plan.folder} holds a sweep already; go on with it: -m {RESUME}{plan.folder}"
        )
    sweep.write(
        SweepRecord(
            overrides=plan.overrides,
            flags=plan.flags,
            varying=plan.varying,
            jobs=plan.jobs,
            stage=plan.cfg.stage.name,
            metric=plan.cfg.sweep.metric or "",
            direction=plan.cfg.sweep.direction,
            cwd=str(Path.cwd()),
            output_dir=str(Path(plan.cfg.paths.output_dir).expanduser().absolute()),
            process=os.getpid(),
            workers=plan.workers,
            searches=plan.searches,
        )
    )
    sweep.update_run_json(
        status="RUNNING",
        error=None,
        host=get_host(),
        process=os.getpid(),
        started=time.strftime(TIME_FORMAT),
        ended=None,
    )


def _wait_for_running_jobs(sweep: SweepFolder) -> None:
    """Let the workers of a process that was killed end: they stop when they see that it is gone.

    Raises:
        CheckpointError: a job is still at work, in a queue or on another machine; it would be run twice.
    """
    held = wait_for_jobs(sweep, ENDING_SECONDS)
    if held:
        names = ", ".join(job.path.name for job in held)
        raise CheckpointError(
            f"{sweep.path}: still at work: job {names}; wait for its end, or end it (if no process of this sweep is left "
            f"anywhere, delete .lock in {held[0].path})"
        )


def _close_lost_jobs(sweep: SweepFolder) -> None:
    """A job whose process is gone is not running, whatever it wrote last."""
    for job in sweep.find_jobs():
        if not job.is_held() and mark_killed(job):
            log.info("%s: its process is gone", job.path)


def _run_jobs(plan: SweepPlan, sweep: SweepFolder, search: Search | None) -> BaseException | None:
    """Run all jobs; return what ended the sweep before its time.

    Jobs that went with a lost worker run a second time when the others have ended, each by itself: so the one that takes its
    worker with it costs no other, and one that was unlucky gets its result.
    """
    overrides = [*plan.overrides, f"hydra.sweep.dir={quote_value(sweep.path)}"]
    turns: list[RunFolder | None] = [None]  # all jobs, or one by itself
    idle_losses = 0
    try:
        with stop_in_two_steps(sweep):
            while turns:
                alone = turns.pop(0)
                sweep.write(replace(sweep.read(), alone=_get_hash(alone) if alone else ""))
                added = search.prepare(alone) if search else []
                if search and not added:
                    continue
                try:
                    start_hydra(run_sweep_job, [*overrides, *added], plan.flags)
                except Exception as error:  # noqa: BLE001  (raised again when the record is closed)
                    if not is_lost_worker(error):
                        return _explain_end(error, plan, search)
                    lost = find_lost_jobs(sweep)
                    idle_losses = 0 if lost else idle_losses + 1
                    if not can_start_again(error) or idle_losses > IDLE_LOSSES:
                        return _explain_end(error, plan, search)
                    turns = _plan_turns(sweep, turns, alone, lost)
                if sweep.stop_marker.exists() and (turns or (not search and len(sweep.find_jobs()) < plan.jobs)):
                    return SweepStopped()
            return None
    except (SweepStopped, KeyboardInterrupt, SystemExit) as stop:
        return stop
    finally:
        end_ray_workers(sweep)


def _plan_turns(
    sweep: SweepFolder, turns: list[RunFolder | None], alone: RunFolder | None, lost: list[RunFolder]
) -> list[RunFolder | None]:
    """Plan how it goes on after a loss: what was lost for the first time once more, and by itself; what was alone no more."""
    if alone is None:
        names = ", ".join(job.path.name for job in lost)
        again = f"job {names} once more, by itself, after the others" if lost else "it ran no job"
        log_line(f"a worker was lost; {again}", style="yellow")
        record = sweep.read()
        sweep.write(replace(record, left_out=(*record.left_out, *map(_get_hash, lost))))
        return [None, *turns, *lost]
    if not lost:  # its worker went before the job began
        return [alone, *turns]
    _close_lost_jobs(sweep)
    log_line(f"job {alone.path.name} was killed with its process again; the others go on", style="red")
    return turns


def _get_hash(job: RunFolder) -> str:
    return str(job.read_run_json().get("config_hash"))


def _explain_end(error: Exception, plan: SweepPlan, search: Search | None) -> Exception | None:
    """Explain what ended the sweep; None where the jobs have reported and recorded it."""
    if isinstance(error, JobFailedError) or (search and search.is_about_no_result(error)):
        return None
    if is_lost_worker(error):
        line = next(iter(str(error).strip().splitlines()), "")
        return WorkerError(f"a worker was lost, jobs in a queue go on: {type(error).__name__}: {line}")
    return explain_error(error, plan.overrides, ()) or error


def _conclude(
    plan: SweepPlan, sweep: SweepFolder, tracker: MlflowRun, error: BaseException | None, search: Search | None
) -> int:
    """Tell what came of the jobs, to people, to a file and to MLflow; return the exit code."""
    _close_lost_jobs(sweep)
    summary = summarize_sweep(sweep)
    write_results(summary, sweep)
    pictures = draw_pictures(summary, sweep.path)
    if summary.jobs:
        console.print(build_sweep_table(summary))
    if summary.best is not None:
        best = summary.best
        log_line(f"best: job {best.number}, {best.name}: {summary.metric} {best.objective:.4f}, {best.folder.path}")
        _mark_latest(best.folder, Path(sweep.read().output_dir))
    elif summary.record.metric and summary.count("FINISHED"):
        error = error or ConfigError(explain_missing(summary.metric, summary.jobs[-1].metrics))
    log_line(f"results: {sweep.results}")
    unfinished = max(plan.jobs, len(summary.jobs)) - summary.count("FINISHED")
    if search:
        search.close()
        unfinished = max(search.count_unfinished(), len(summary.jobs) - summary.count("FINISHED"))
    if unfinished:
        command = f"python -m vpexp -m {quote_word(f'{RESUME}{quote_value(sweep.path)}')}"
        log_line(f"{unfinished} of {plan.jobs} jobs have not finished; go on with: {command}", style="yellow")
    status, line, code = _judge(error, unfinished, plan.jobs)
    number = None if summary.best is None else summary.best.number
    sweep.update_run_json(status=status, error=line, ended=time.strftime(TIME_FORMAT), best_job=number)
    log_sweep_end(tracker, sweep, summary, pictures)
    tracker.close(status, line)
    tracker.finish()
    sweep.stop_marker.unlink(missing_ok=True)
    if isinstance(error, Exception):
        raise error
    return code


def _judge(error: BaseException | None, unfinished: int, jobs: int) -> tuple[str, str | None, int]:
    """Judge how the sweep ended: its status, why, and the exit code."""
    if is_sigterm(error):
        return "KILLED", describe_stop(error), int(str(error))
    if isinstance(error, KeyboardInterrupt | SweepStopped):
        return "KILLED", "stopped by Ctrl-C", INTERRUPTED
    if error is not None:
        return "FAILED", f"{type(error).__name__}: {error}", FAILED
    if unfinished:
        return "FAILED", f"{unfinished} of {jobs} jobs have not finished", FAILED
    return "FINISHED", None, 0


def _mark_latest(best: RunFolder, output_dir: Path) -> None:
    """Make the best job, and the steps of a pipeline in it, the latest of their stages."""
    for folder in (best, *(RunFolder(path.parent) for path in sorted(best.path.glob("*/run.json")))):
        record = folder.read_run_json()
        if record.get("status") == "FINISHED":
            mark_latest(output_dir, record["stage"], folder)


def open_sweep_run(plan: SweepPlan, sweep: SweepFolder) -> MlflowRun:
    """Open the parent, or that of a sweep that goes on; a new database is made here, before any job asks for it."""
    cfg = plan.cfg
    if not cfg.tracking.enabled:
        return MlflowRun()
    command = " ".join(["python -m vpexp -m", *plan.overrides])
    tags = {"stage": STAGE, "command": command, **list_common_tags(cfg, sweep, get_git_commit())}
    name = cfg.tracking.run_name or f"sweep {cfg.stage.name} {cfg.model.name} {name_data(cfg)} {sweep.path.name[:15]}"
    params = dict(override.lstrip("+").partition("=")[::2] for override in plan.overrides)
    description = RunDescription(
        uri=cfg.tracking.uri,
        experiment=name_experiment(cfg),
        name=name,
        tags=tags,
        params=params | {"varying": ", ".join(plan.varying), "jobs": plan.jobs},
        artifact_folder=Path(cfg.paths.output_dir) / "mlartifacts",
        upload_command=format_sync(sweep.path),
    )
    tracker = open_mlflow_run(description, sweep.path)
    tracker.start()
    return tracker


def log_sweep_end(tracker: MlflowRun, sweep: SweepFolder, summary: SweepSummary, pictures: Sequence[Path]) -> None:
    """Log how many jobs ended how, the best job's numbers as those of the sweep, the table and the pictures."""
    tracker.log_results(
        {
            "jobs/finished": summary.count("FINISHED"),
            "jobs/failed": summary.count("FAILED"),
            "jobs/killed": summary.count("KILLED"),
        }
    )
    best = summary.best
    if best is not None:
        tracker.log_results({name: value for name, value in best.metrics.items() if value is not None})
        tracker.set_tags({"best_job": best.name, "best_run": best.run_id or "", "best_folder": str(best.folder.path)})
    for path in (sweep.results, *pictures, sweep.run_json):
        tracker.log_artifact(path)
