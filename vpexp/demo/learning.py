"""Learning while people label: rounds of training in a process of its own, of which the better model is taken up.

    <folder of the labels>/.learning/state.json       which model answers, what it has learnt from
                                     round_003.ckpt   models that were taken up, the last ones

A model is on disk before it answers, and the state names it before that; so a process that is killed at any moment goes on with the
one before or the new one. Labels are only read.
"""

import logging
import shutil
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpexp.console import format_count, log_line
from vpexp.demo.pictures import read_stamp
from vpexp.demo.rounds import Round, choose_held_out, find_interval, hash_image, read_outcome, write_dataset
from vpexp.demo.session import LabelSession
from vpexp.demo.store import LabelStore
from vpexp.errors import CheckpointError, VpexpError
from vpexp.files import read_json, replacing, write_json
from vpexp.inference.predictor import Predictor

STATE = Path(".learning", "state.json")
LOOK = 0.5  # seconds between two looks at what is labelled, and at the process
LEAVING = 10.0  # seconds that a round is given to end
REMEMBERED = 5  # models that undo leads back to

StartRound = Callable[[Path, Path, Path | None, int], "subprocess.Popen[bytes]"]
"""Starts a training: folder of the round, root of its data set, checkpoint that it starts from, its number."""
LoadModel = Callable[[Path | None], Predictor]
"""Loads a checkpoint; None: the model that the page was started with."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Work:
    """A round that goes on.

    Attributes:
        process: trains.
        folder: where it writes.
        names: of the images that it learns from and is measured on.
        held_out: those of them that it is measured on; none: all, as they are few.
    """

    process: "subprocess.Popen[bytes]"
    folder: Path
    names: tuple[str, ...]
    held_out: tuple[str, ...]


class Learner:
    """Learns from what is kept.

    Args:
        session: takes models up.
        store: what is kept.
        start: names the model that the page was started with; what was learnt from another one does not count.
        every: images that are labelled between two rounds; None: see ``find_interval``.
        folder: of the run; rounds lie in it.
        start_round: starts the training.
        load: loads a model.
    """

    def __init__(
        self,
        session: LabelSession,
        store: LabelStore,
        *,
        start: str,
        every: int | None,
        folder: Path,
        start_round: StartRound,
        load: LoadModel,
    ) -> None:
        self._session, self._store = session, store
        self._start, self._every, self._folder = start, every, folder
        self._start_round, self._load = start_round, load
        self._state_path = store.folder / STATE
        self.rounds: list[Round] = []
        self._models: list[str] = []  # taken up one after another; the last one answers
        self._used: set[str] = set()  # images of the last round
        self._learnt: set[str] = set()  # images that any round has learnt from, and not been measured on
        self._numbers: dict[tuple[str, str], float] = {}  # of images, by path and stamp
        self._work: Work | None = None
        self._stopped = False
        self._ended = threading.Event()
        self._lock = threading.Lock()  # of all that changes
        self._news = ""
        self._thread = threading.Thread(target=self._watch, name="learning", daemon=True)
        self.version = 0
        self._read_state()

    @property
    def checkpoint(self) -> Path | None:
        """The model that answers; None: the one that the page was started with."""
        return self._state_path.parent / self._models[-1] if self._models else None

    def load_last(self) -> Predictor | None:
        """Load the model that was taken up last, or one before it where that cannot be read; None: nothing was learnt."""
        while self.checkpoint is not None:
            try:
                return self._load(self.checkpoint)
            except VpexpError as error:
                log_line(f"{error}; the model before it is taken", style="yellow")
                self._models.pop()
        return None

    def run_thread(self) -> None:
        """Look in a thread for what is to do."""
        self._thread.start()

    def end(self) -> None:
        """End the round that goes on; what it would have learnt is learnt when the page is started again."""
        self._ended.set()
        with self._lock:
            self._kill()
        if self._thread.is_alive():
            self._thread.join(LEAVING)

    def stop(self) -> None:
        """End the round that goes on, and begin no other."""
        with self._lock:
            self._stopped = True
            self._kill()
            self.version += 1

    def start(self) -> None:
        """Begin rounds again."""
        with self._lock:
            self._stopped = False
            self.version += 1

    def undo(self) -> None:
        """Take up the model before the present one; a round that goes on is ended."""
        with self._lock:
            self._kill()
            if not self._models:
                return
            gone = self._models[-1]
            earlier = self._state_path.parent / self._models[-2] if len(self._models) > 1 else None
            predictor = self._load(earlier)
            self._models.pop()
            self._write_state()
            self._session.take_up(predictor)
            self._news = f"{Path(gone).stem.replace('_', ' ')} undone: the model before it answers"
            self.version += 1
            (self._state_path.parent / gone).unlink(missing_ok=True)

    def describe(self) -> dict[str, Any]:
        """Describe for people what goes on, and what came out of the last round."""
        if self._work:
            count = format_count(len(self._work.names) - len(self._work.held_out), "image")
            line = f"round {self._count() + 1} learns from {count}; you can go on"
        elif self._stopped:
            line = "stopped"
        else:
            missing = max(self._interval - len(self._list_new()), 1)
            line = f"learns after {format_count(missing, 'more image')}"
        last = f"{line}. {self.rounds[-1]}" if self.rounds else line
        return {
            "line": last,
            "busy": self._work is not None,
            "stopped": self._stopped,
            "can_undo": bool(self._models),
            "news": self._news,
        }

    def step(self) -> None:
        """Do what is to do: begin a round that is due, or take up what one made that has ended."""
        with self._lock:
            if self._work is not None:
                if self._work.process.poll() is not None:
                    self._conclude(self._work)
            elif not self._stopped and not self._ended.is_set() and len(self._list_new()) >= self._interval:
                self._begin()

    def wait(self) -> None:
        """Wait until the round that goes on has ended, and take up what it made."""
        if self._work is not None:
            self._work.process.wait()
            self.step()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK):
            try:
                self.step()
            except Exception:  # labelling goes on without it
                log.exception("learning stopped")
                self._stopped = True
                self._news = "learning stopped: vpexp.log of the run says why"
                self.version += 1

    def _list_complete(self) -> list[str]:
        """List the labelled images that nobody is working on: the one that was opened last only where it is marked as done."""
        labels = self._store.labels
        opened = self._session.last_opened
        now = self._session.images[opened].name if opened is not None else None
        return [name for name in labels.labelled if name != now or name in labels.done]

    def _list_new(self) -> list[str]:
        return [name for name in self._list_complete() if name not in self._used]

    @property
    def _interval(self) -> int:
        return self._every or find_interval(len(self._used))

    def _count(self) -> int:
        return self.rounds[-1].number if self.rounds else 0

    def _begin(self) -> None:
        labels, paths = self._store.labels, self._find_paths()
        places = {name: self._compute_number(path) for name, path in paths.items()}
        with_masks = labels.count_by_image().keys() & places.keys()
        if not with_masks:
            return
        held_out = choose_held_out(places, with_masks, self._learnt)
        number = self._count() + 1
        folder = self._folder / f"round_{number:03}"
        while folder.exists():
            folder = folder.with_name(f"{folder.name}_again")
        write_dataset(folder / "data", labels, paths, held_out)
        process = self._start_round(folder, folder / "data", self.checkpoint, number)
        self._work = Work(process, folder, tuple(paths), tuple(sorted(held_out)))
        self.version += 1
        log.info(
            "round %d: learns from %d images, measured on %s", number, len(paths) - len(held_out), sorted(held_out)
        )

    def _find_paths(self) -> dict[str, Path]:
        """Find the files of the images that a round learns from or is measured on, by name."""
        sources = {image.name: image.path for image in self._session.images}
        found = {name: sources.get(name, self._store.locate(name)) for name in self._list_complete()}
        return {name: path for name, path in found.items() if path.is_file()}

    def _compute_number(self, path: Path) -> float:
        key = str(path), read_stamp(path)
        if key not in self._numbers:
            self._numbers[key] = hash_image(path)
        return self._numbers[key]

    def _conclude(self, work: Work) -> None:
        """Take up what a round made, where it is better."""
        self._work = None
        held_out = len(work.held_out)
        outcome, made = read_outcome(work.folder, self._count() + 1, len(work.names) - held_out, held_out)
        name = f"round_{outcome.number:03}.ckpt"
        if made is not None:
            place = self._state_path.parent / name
            place.parent.mkdir(parents=True, exist_ok=True)
            with replacing(place, durable=True) as draft:
                shutil.copy(made, draft)
            predictor = self._load(place)
            self._models.append(name)
            self._learnt |= set(work.names) - set(work.held_out)
        self.rounds.append(outcome)
        self._used = set(work.names)
        self._write_state()
        if made is not None:
            self._session.take_up(predictor)
        shutil.rmtree(work.folder / "data", ignore_errors=True)
        self._news = str(outcome)
        self.version += 1
        log_line(self._news)

    def _kill(self) -> None:
        if self._work is None:
            return
        process = self._work.process
        process.terminate()
        try:
            process.wait(LEAVING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(self._work.folder / "data", ignore_errors=True)
        self._work = None

    def _write_state(self) -> None:
        for name in self._models[:-REMEMBERED]:
            (self._state_path.parent / name).unlink(missing_ok=True)
        self._models = self._models[-REMEMBERED:]
        self._state_path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "start": self._start,
            "models": self._models,
            "used": sorted(self._used),
            "learnt": sorted(self._learnt),
            "rounds": [one.to_json() for one in self.rounds],
        }
        write_json(self._state_path, content)

    def _read_state(self) -> None:
        """Go on where the page was ended, with the same start model; damaged, it begins anew."""
        if not self._state_path.is_file():
            return
        try:
            content = read_json(self._state_path)
            if content["start"] != self._start:
                return
            rounds = [Round.from_json(one) for one in content["rounds"]]
            names = [Path(str(name)).name for name in content["models"]]  # whatever it says, they lie beside it
            models = [name for name in names if (self._state_path.parent / name).is_file()]
            used = {str(name) for name in content["used"]}
            learnt = {str(name) for name in content.get("learnt", used)}  # earlier versions did not tell them apart
        except (CheckpointError, KeyError, TypeError) as error:
            log_line(f"{self._state_path} is damaged, learning begins anew: {error}", style="yellow")
            return
        self.rounds, self._models, self._used, self._learnt = rounds, models, used, learnt


def start_process(command: list[str], log_path: Path) -> "subprocess.Popen[bytes]":
    """Start a command whose output goes into a file, apart from the terminal's Ctrl-C."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as output:
        return subprocess.Popen(  # noqa: S603  vpexp itself
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
