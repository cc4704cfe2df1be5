"""``stage=sync run=<folder>``: upload what MLflow has missed of a run, a pipeline, a sweep, or of all runs in a folder."""

from pathlib import Path

from omegaconf import DictConfig

from vpexp.console import say
from vpexp.errors import CheckpointError, TrackingError
from vpexp.stages.context import StageResult
from vpexp.tracking.names import describe_error
from vpexp.tracking.upload import find_tracked_folders, upload_waiting


def run(cfg: DictConfig) -> StageResult:
    """Upload, and say what went where.

    Raises:
        CheckpointError: there is no such folder, or nothing in it was tracked.
        TrackingError: the store cannot be used.
    """
    folder = Path(cfg.run).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"run={cfg.run}: there is no such folder")
    folders = find_tracked_folders(folder.resolve())
    if not folders:
        raise CheckpointError(f"run={cfg.run}: no run in it was tracked; runs lie in outputs/<stage>/<time>")
    uploaded = 0
    try:
        for upload in upload_waiting(folders):
            uploaded += 1
            say(f"{upload.folder}: {upload.delivered} records uploaded to MLflow run {upload.run_id}")
            for line in upload.refused:
                say(f"  refused: {line}", style="yellow")
    except Exception as error:
        raise TrackingError(
            f"MLflow cannot be used ({describe_error(error)}): {uploaded} of {len(folders)} runs are done, "
            "nothing is lost; try again when it is back"
        ) from error
    say(f"{len(folders)} runs, {uploaded} had something to upload")
    return StageResult({"uploaded": float(uploaded)})
