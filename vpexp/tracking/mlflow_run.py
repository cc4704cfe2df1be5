"""One run in MLflow. What it records goes into the run's folder first: a store that is slow, down or gone never costs the run."""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from vpexp.console import console, log_line
from vpexp.runfolder import RunFolder
from vpexp.tracking.journal import Journal, open_journal
from vpexp.tracking.store import CURVES, name_results, normalize_uri
from vpexp.tracking.upload import ParentNotOpenError, Uploader, count_missing, find_tracked_folders, upload_waiting

log = logging.getLogger(__name__)

OPEN_SECONDS = 10.0  # to make the tables of a new database takes some seconds
CLOSE_SECONDS = 60.0
RETRY_SECONDS = 60.0  # until what is recorded asks a store again that could not be used


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


class LiveUpload:
    """Uploads in a thread what a run and its parts record, while they go on.

    People read once that the store cannot be used; what it misses follows when the store is back, or when the run ends.

    Args:
        journal: of the whole run, which the parts lie in.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._held: dict[Uploader, ExitStack] = {}  # in the order in which they began, with their folders
        self._failure: Exception | None = None
        self._again_at = 0.0
        self._reported: set[str] = set()  # kinds of entries that the store does not take
        self._patience = OPEN_SECONDS
        self._stopped = False
        self._tasks: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    @property
    def lacks_parent(self) -> bool:
        """Whether it waits for a run of another process, which reports what the store has missed."""
        return isinstance(self._failure, ParentNotOpenError)

    def add(self, journal: Journal) -> Uploader:
        """Take a journal up, and hold its folder until all of it has arrived."""
        held = ExitStack()
        held.enter_context(RunFolder(journal.folder).hold())
        uploader = Uploader(journal)
        self._held[uploader] = held
        self.wake()
        return uploader

    def wait(self) -> None:
        """Wait until what is recorded has arrived or the store has failed, or until that has taken too long once."""
        reached = threading.Event()
        self._tasks.put(reached.set)
        if not reached.wait(self._patience):
            self._patience = 0.0

    def wake(self) -> None:
        """Report that there is something to upload."""
        self._tasks.put(self._upload_unless_away)

    def end_part(self, uploader: Uploader) -> None:
        """Let the folder of a part that has ended go, if all of it has arrived by then."""
        self._tasks.put(partial(self._let_go, uploader))

    def end(self) -> None:
        """Upload what has not arrived yet, also of parts in other processes, as far as the store takes it in time."""
        again = [uploader.journal.take_up_again for uploader in tuple(self._held)]
        for task in (*again, self._upload, self._upload_other_parts, None):
            self._tasks.put(task)
        self._thread.join(CLOSE_SECONDS)

    def stop(self) -> None:
        """Upload nothing more."""
        self._stopped = True
        for uploader, held in tuple(self._held.items()):
            uploader.give_up(self._thread)
            held.close()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None and not self._stopped:
            task()

    def _upload_unless_away(self) -> None:
        if self._failure is None or time.monotonic() >= self._again_at:
            self._upload()

    def _upload(self) -> None:
        uploaders = tuple(self._held)
        try:
            for uploader in uploaders:
                uploader.upload()
        except Exception as error:  # noqa: BLE001  (whatever the store does, and a defect here: the run goes on)
            self._note_failure(error)
        else:
            if self._failure and not self.lacks_parent and not self._stopped:
                log_line(f"tracking: {self._journal.state.uri} is back")
            self._failure = None
        for kind, reason in (refused for uploader in uploaders for refused in uploader.refused):
            if kind not in self._reported and not self._stopped:  # once a kind, not for each epoch
                self._reported.add(kind)
                log_line(f"tracking: the store does not take {kind} ({reason}): left out", style="yellow")

    def _let_go(self, uploader: Uploader) -> None:
        if not uploader.journal.count_waiting():
            self._held.pop(uploader).close()

    def _upload_other_parts(self) -> None:
        """Upload what the runs of other processes inside this one could not while the store was away."""
        if self._failure:
            return
        try:
            for late in upload_waiting(find_tracked_folders(self._journal.folder)):
                log.info("tracking: %s: %d records uploaded late", late.journal.folder, late.delivered)
                if self._stopped:
                    return
        except Exception as error:  # noqa: BLE001  (the run itself has ended well)
            self._note_failure(error)

    def _note_failure(self, error: Exception) -> None:
        if self._stopped:
            return
        known = self._failure is not None and not self.lacks_parent
        self._failure, self._again_at = error, time.monotonic() + RETRY_SECONDS
        # The whole story once: a store that is down for a night must not fill the log.
        log.info("tracking: %s", error, exc_info=None if known else error)
        if not known and not self.lacks_parent:
            log_line(
                f"tracking: {self._journal.state.uri} cannot be used ({error}); going on without it, "
                "what it misses is kept in the run's folder",
                style="yellow",
            )


_live: dict[Path, LiveUpload] = {}  # of this process, by the folders of the runs that go on


class MlflowRun:
    """Records what happens in one MLflow run; returns at once, a thread uploads.

    Args:
        journal: of the records; None records nothing.
        upload_command: what people type to upload what the store has missed.
        parent: folder of the run that this one belongs to.
    """

    def __init__(self, journal: Journal | None = None, upload_command: str = "", parent: Path | None = None) -> None:
        self.journal = journal
        self._upload_command = upload_command
        self._parent = parent
        self._live: LiveUpload | None = None
        self._uploader: Uploader | None = None
        self._is_part = False  # of a run of this process, which waits for the upload of both

    @property
    def run_id(self) -> str | None:
        """MLflow's id; None where tracking is off, or as long as the store has not opened the run."""
        return self.journal.state.run_id if self.journal else None

    def start(self) -> None:
        """Begin to upload, and wait until the run is open, or the store has failed, or takes too long."""
        if self.journal is None:
            return
        import mlflow  # noqa: F401  (here: two threads that import at once may meet half a module)

        whole = _live.get(self._parent.resolve()) if self._parent else None
        self._is_part = whole is not None
        self._live = whole or LiveUpload(self.journal)
        _live[self.journal.folder.resolve()] = self._live
        self._uploader = self._live.add(self.journal)
        self._live.wait()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters, with None and lists as text."""
        self._tell("params", {name: str(value) for name, value in params.items()})

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log numbers; NaN, which says that there is no number, is left out."""
        numbers = {name: float(value) for name, value in metrics.items() if math.isfinite(float(value))}
        if numbers:
            self._tell("metrics", {"metrics": numbers, "step": step})

    def log_results(self, metrics: Mapping[str, float]) -> None:
        """Log final numbers: those that matter under their own names, all others below ``verbose/``."""
        self.log_metrics(name_results(metrics))

    def log_epoch(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Log the numbers of an epoch as points of curves, below ``values_by_epoch/``; 0 is before the first."""
        self.log_metrics({f"{CURVES}{name}": value for name, value in metrics.items()}, epoch)

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
        if self.journal is None:
            return
        folder, live = self.journal.folder, self._live
        if live is not None and self._uploader is not None:
            _live.pop(folder.resolve(), None)
            if self._is_part:
                live.end_part(self._uploader)
                return
            try:
                with _show_waiting():
                    live.end()
            except KeyboardInterrupt:
                log.info("tracking: Ctrl-C, the rest is left for later")
            finally:
                live.stop()
        missing = count_missing(folder)
        if missing and not (live and live.lacks_parent):  # the parent says it for all its parts
            log_line(
                f"tracking: {missing} records of this run are not in MLflow; when it is back: {self._upload_command}",
                style="yellow",
            )

    def _tell(self, kind: str, content: dict[str, Any]) -> None:
        if self.journal is None:
            return
        self.journal.append(kind, content)
        if self._live:
            self._live.wake()


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


def _show_waiting() -> AbstractContextManager[Any]:
    """Show on a terminal why the program does not end yet."""
    if not console.is_terminal:
        return nullcontext()
    return console.status("uploading records to MLflow; Ctrl-C leaves them for later")
