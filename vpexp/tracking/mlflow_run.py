"""One run in MLflow. What it records goes into a journal first: a store that is slow, down or gone never costs the run."""

import logging
import math
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpexp.console import console, say
from vpexp.tracking.journal import Journal, open_journal
from vpexp.tracking.sender import Sender, find_senders_below, forget, is_at_work
from vpexp.tracking.store import normalize_uri
from vpexp.tracking.upload import count_missing, find_tracked_folders, upload_waiting

log = logging.getLogger(__name__)

OPEN_SECONDS = 10.0  # to make the tables of a new database takes some seconds
CLOSE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the checkpoint of a run comes from.

    Attributes:
        folder: of the run that made it.
        is_model: whether it is the model that this run was for; an epoch that was not the best is not.
    """

    folder: Path
    is_model: bool = True


@dataclass(frozen=True, slots=True)
class RunDescription:
    """What a run is in MLflow before it starts.

    Attributes:
        uri: the store.
        experiment: its name.
        name: of the run.
        tags: of the run.
        params: of the run.
        artifact_folder: where the experiment's files go, if the store is a local database.
        upload_command: what people type to upload what the store has missed.
        parent: folder of the run that this one belongs to.
        origin: the checkpoint that it takes up.
    """

    uri: str
    experiment: str
    name: str
    tags: dict[str, str]
    params: dict[str, Any]
    artifact_folder: Path
    upload_command: str
    parent: Path | None = None
    origin: Origin | None = None


class MlflowRun:
    """Records what happens in one MLflow run; returns at once, a thread delivers.

    Args:
        journal: of the records; None records nothing.
        upload_command: what people type to upload what the store has missed.
        parent: folder of the run that this one belongs to.
    """

    def __init__(self, journal: Journal | None = None, upload_command: str = "", parent: Path | None = None) -> None:
        self.journal = journal
        self._upload_command = upload_command
        self._parent = parent
        self._sender = Sender(journal) if journal else None

    @property
    def run_id(self) -> str | None:
        """MLflow's id; None where tracking is off, or as long as the store has not opened the run."""
        return self.journal.state.run_id if self.journal else None

    def start(self) -> None:
        """Begin to deliver, and wait until the run is open, or the store has failed, or takes too long."""
        if self._sender:
            import mlflow  # noqa: F401  (here: two threads that import at once may meet half a module)

            self._sender.start()
            self._sender.wait(time.monotonic() + OPEN_SECONDS, tries=1)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters, with None and lists as text."""
        self._tell("params", {name: str(value) for name, value in params.items()})

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log numbers; NaN, which says that there is no number, is left out."""
        numbers = {name: float(value) for name, value in metrics.items() if math.isfinite(float(value))}
        if numbers:
            self._tell("metrics", {"metrics": numbers, "step": step})

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Upload a file, or a folder with all that it holds, as it is when its turn comes."""
        if self.journal is not None and path.exists():
            self._tell("artifact", {"path": _write_place(path, self.journal.folder), "folder": folder})

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags."""
        self._tell("tags", {name: str(value) for name, value in tags.items()})

    def log_dataset(self, name: str, source: str, context: str, profile: Mapping[str, Any]) -> None:
        """Log a split of a data set as an input of the run; its digest is that of the profile."""
        self._tell("dataset", {"name": name, "source": source, "context": context, "profile": dict(profile)})

    def log_origin(self, origin: Origin) -> None:
        """Log the run that made the checkpoint as a tag, and its model as an input of this run."""
        self._tell("origin", {"folder": str(origin.folder.absolute()), "is_model": origin.is_model})

    def log_model(self, name: str, kind: str, tags: Mapping[str, Any]) -> None:
        """Log the model that this run made: one a run, in MLflow an output of it."""
        self._tell("model", {"name": name, "kind": kind, "tags": {key: str(value) for key, value in tags.items()}})

    def register_model(
        self, name: str, package: Path, *, maker: Path, tags: Mapping[str, Any], description: str
    ) -> None:
        """Register a model as the next version of a name.

        Args:
            name: in MLflow's registry.
            package: folder of an MLflow model, which stays where it is until it has been uploaded.
            maker: folder of the run that made the model; a run has one version under a name.
            tags: of the version.
            description: of the version.
        """
        if self.journal is None:
            return
        content = {
            "name": name,
            "package": _write_place(package, self.journal.folder),
            "maker": str(maker.absolute()),
            "tags": {key: str(value) for key, value in tags.items()},
            "description": description,
        }
        self._tell("register", content)

    def close(self, status: str, error: str | None = None) -> None:
        """End the run: FINISHED, FAILED or KILLED, with the error as a tag."""
        if error:
            self.set_tags({"error": error})
        self._tell("close", {"status": status})

    def finish(self) -> None:
        """Wait until everything has arrived, as long as the store takes it; say what has not, and how to upload it.

        A part of a run that is going on in this process does not wait: the whole does, in the end. Ctrl-C ends the
        waiting, not the run, which has ended before.
        """
        if self._sender is None or self.journal is None:
            return
        self._sender.end()
        if self._parent is not None and is_at_work(self._parent):
            return
        folder, until = self.journal.folder, time.monotonic() + CLOSE_SECONDS
        try:
            with _show_waiting():
                if self._sender.wait(until):
                    _finish_parts(folder, until)
        except KeyboardInterrupt:
            log.info("tracking: Ctrl-C, the rest is left for later")
        finally:
            for sender in (self._sender, *find_senders_below(folder)):
                sender.stop()
        forget(self.journal.state.uri)
        missing = count_missing(folder)
        if missing and not self._sender.lacks_parent:  # the parent says it for all its parts
            say(
                f"tracking: {missing} records of this run are not in MLflow; when it is back: {self._upload_command}",
                style="yellow",
            )

    def _tell(self, kind: str, content: dict[str, Any]) -> None:
        if self.journal is None or self._sender is None:
            return
        self.journal.append(kind, content)
        self._sender.wake()


def open_mlflow_run(description: RunDescription, folder: Path) -> MlflowRun:
    """Open a run in MLflow, and log its parameters and tags; a run that the folder's journal knows goes on.

    Nothing is delivered before ``start``. Where the store cannot be reached, one line says so then; what the run tells
    waits in the journal.
    """
    journal = open_journal(folder, normalize_uri(description.uri))
    assert journal is not None
    run = MlflowRun(journal, description.upload_command, description.parent)
    if journal.last_time:
        journal.append("reopen", {})
    else:
        journal.append(
            "create",
            {
                "experiment": description.experiment,
                "name": description.name,
                "tags": description.tags,
                "artifact_folder": str(description.artifact_folder.absolute()),
                "parent": _write_place(description.parent, folder) if description.parent else None,
            },
        )
        run.log_params(description.params)
        if description.origin:
            run.log_origin(description.origin)
    return run


def _write_place(path: Path, folder: Path) -> str:
    """Write where a file lies: from the run's folder, if it is inside it or around it, so that the folder can move."""
    place, here = path.absolute(), folder.absolute()
    near = place.is_relative_to(here) or here.is_relative_to(place)
    return os.path.relpath(place, here) if near else str(place)


def _finish_parts(folder: Path, until: float) -> None:
    """Wait for the runs inside a run; deliver what those of other processes could not while the store was away."""
    for sender in find_senders_below(folder):
        sender.wait(until)
    parts = [part for part in find_tracked_folders(folder) if part != folder]
    try:
        for upload in upload_waiting(parts, until=until):
            log.info("tracking: %s: %d records uploaded late", upload.folder, upload.delivered)
    except Exception as error:  # whatever the store does, the run has ended well
        log.warning("tracking: %s", folder, exc_info=error)


def _show_waiting() -> AbstractContextManager[Any]:
    """Show on a terminal why the program does not end yet."""
    if not console.is_terminal:
        return nullcontext()
    return console.status("uploading records to MLflow; Ctrl-C leaves them for later")
