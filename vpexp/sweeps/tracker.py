"""A sweep in MLflow: the parent of its jobs, with what came of them."""

from collections.abc import Sequence
from pathlib import Path

from vpexp.config.quoting import format_sync
from vpexp.description import list_common_tags
from vpexp.provenance import get_git_commit
from vpexp.stages.context import name_data
from vpexp.sweeps.plan import SweepPlan
from vpexp.sweeps.record import STAGE, SweepFolder
from vpexp.sweeps.summary import SweepSummary
from vpexp.tracking.mlflow_run import MlflowRun, RunDescription, open_mlflow_run


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
        experiment=cfg.tracking.experiment,
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
    """Log how many jobs ended how, the best of them, the table and the pictures."""
    tracker.log_metrics(
        {
            "jobs/finished": summary.count("FINISHED"),
            "jobs/failed": summary.count("FAILED"),
            "jobs/killed": summary.count("KILLED"),
        }
    )
    best = summary.best
    if best is not None:
        numbers = {name: value for name, value in best.metrics.items() if value is not None}
        tracker.log_metrics({f"best/{name}": value for name, value in numbers.items() if name.count("/") == 1})
        tracker.set_tags({"best_job": best.name, "best_run": best.run_id or "", "best_folder": str(best.folder.path)})
    for path in (sweep.results, *pictures, sweep.run_json):
        tracker.log_artifact(path)
