"""``stage=sync run=<folder>``: upload what MLflow has missed of a run, a pipeline, a sweep, or of all runs in a folder."""

from pathlib import Path

from omegaconf import DictConfig

from vpexp.console import format_count, log_line
from vpexp.errors import CheckpointError, TrackingError
from vpexp.runfolder import RunFolder
from vpexp.stages.shared.context import StageResult
from vpexp.tracking.upload import find_parent_folders, find_tracked_folders, upload_waiting


def run(cfg: DictConfig, *, elsewhere: bool = False) -> StageResult:
    """Upload, and say what went where.

    Args:
        cfg: the configuration.
        elsewhere: whether everything is to go to ``tracking.uri``, not to the stores that the runs were recorded in.

    Raises:
        CheckpointError: there is no such folder, or nothing in it was tracked.
        TrackingError: the store cannot be used.
    """
    folders = _find_folders(cfg.run)
    uploaded = 0
    try:
        for upload in upload_waiting(folders, cfg.tracking.uri if elsewhere else None):
            uploaded += 1
            journal = upload.journal
            log_line(f"{journal.folder}: {upload.delivered} records uploaded to MLflow run {journal.state.run_id}")
            for kind, reason in upload.refused:
                log_line(f"  not taken: {kind}: {reason}", style="yellow")
    except TrackingError as error:
        raise TrackingError(
            f"MLflow cannot be used ({error}): uploaded until now: {format_count(uploaded, 'run')}, nothing is lost; try again when it is back"
        ) from error
    running = [path for path in folders if RunFolder(path).is_held()]
    for path in running:
        log_line(f"{path}: left to the process that works in it")
    log_line(f"{format_count(len(folders), 'run')}, {uploaded} had something to upload")
    return StageResult({"uploaded": float(uploaded)})


def _find_folders(asked: str) -> list[Path]:
    """Find the runs to upload: those in a folder, and those that they belong to, without which they have no place."""
    folder = Path(asked).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"run={asked}: there is no such folder")
    folders = find_tracked_folders(folder.resolve())
    if not folders:
        raise CheckpointError(f"run={asked}: no run in it was tracked; runs lie in outputs/<stage>/<time>")
    return [*find_parent_folders(folder.resolve()), *folders]
