"""Runs whose process is gone without a word (killed, out of memory, power cut) do not stay RUNNING."""

import logging
import socket
from pathlib import Path
from typing import Any

from vpexp.console import say
from vpexp.runfolder import RunFolder
from vpexp.tracking.journal import ENTRIES, Journal

log = logging.getLogger(__name__)

HOST_TAG = "host"
FOLDER_TAG = "run_folder"
MOST = 1000
ERROR = "the process ended without a word: killed, out of memory, or the machine stopped"


def get_host() -> str:
    """Name this machine."""
    return socket.gethostname()


def close_abandoned_runs(client: Any, experiment_id: str) -> int:
    """Close the runs of this machine that MLflow believes to be running and whose process is gone, as KILLED.

    A living process holds the lock of its run folder. Runs of other machines are not judged: their locks may not reach
    here.

    Returns:
        How many were closed.
    """
    wanted = f"attributes.status = 'RUNNING' and tags.{HOST_TAG} = '{get_host()}'"
    closed = 0
    for run in client.search_runs([experiment_id], wanted, max_results=MOST):
        folder = RunFolder(Path(run.data.tags.get(FOLDER_TAG, "")))
        if not run.data.tags.get(FOLDER_TAG) or folder.is_held():
            continue
        if client.get_run(run.info.run_id).info.status != "RUNNING":  # it ended while the others were looked at
            continue
        client.set_tag(run.info.run_id, "error", ERROR)
        client.set_terminated(run.info.run_id, "KILLED", end_time=_find_last_sign(folder))
        mark_killed(folder)
        closed += 1
        say(f"closed as KILLED: {folder.path}, {ERROR}")
    return closed


def close_dead_run(folder: RunFolder, journal: Journal) -> None:
    """End the journal of a run that nobody works in and that has not said how it ended, at the last it said."""
    if not journal.is_open:
        return
    mark_killed(folder)
    record = folder.read_run_json()
    if record.get("error"):
        journal.append("tags", {"error": record["error"]}, at=journal.last_time)
    journal.append("close", {"status": record.get("status", "KILLED")}, at=journal.last_time)


def mark_killed(folder: RunFolder) -> bool:
    """Write into a run's own record that its process is gone; say whether it was believed to be running."""
    record = folder.read_run_json()
    if record.get("status") != "RUNNING":
        return False
    folder.update_run_json(status="KILLED", error=ERROR)
    return True


def _find_last_sign(folder: RunFolder) -> int | None:
    """Find when a run told something last, milliseconds since 1970; None: nobody knows."""
    try:
        return int((folder.path / ENTRIES).stat().st_mtime * 1000)
    except OSError:
        return None
