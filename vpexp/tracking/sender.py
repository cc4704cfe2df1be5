"""A thread that delivers a run's journal while the run goes on: a store that is slow or down never holds a run up.

People read of a store once when it goes away, and once when it is back, however many runs of a process use it.
"""

import logging
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from vpexp.console import say
from vpexp.runfolder import RunFolder
from vpexp.tracking.delivery import METRICS_A_CALL, Courier, Judgement, Trouble
from vpexp.tracking.journal import Entry, Journal

SHORTEST_PAUSE = 2.0  # seconds until a store that failed is asked again; twice as long each time
LONGEST_PAUSE = 60.0
LAST_PAUSE = 1.0  # the same at the end of the run, when somebody waits
LAST_TRIES = 3
ENTRY_TRIES = 3  # of an entry that fails while the store is there; then those behind it have their turn
BUSY_TRIES = 3  # of a database that others write to, until that is reported
_at_work: dict[Path, "Sender"] = {}  # by run folder
_lock = threading.Lock()
_away: set[str] = set()

log = logging.getLogger(__name__)


class Sender:
    """Delivers what is in a journal, in order, until it is stopped; holds the run's folder as long.

    Args:
        journal: of the run.
        tells: whether the store's coming and going is reported.

    Attributes:
        delivered: how many entries have arrived.
        refused: what the store did not take, and why.
        trouble: why the last delivery failed; None if it did not.
    """

    def __init__(self, journal: Journal, *, tells: bool = True) -> None:
        self.journal = journal
        self.delivered = 0
        self.refused: list[str] = []
        self.trouble: Judgement | None = None
        self._tells = tells
        self._courier = Courier(journal)
        self._changed = threading.Condition()
        self._failures = 0  # since something arrived
        self._entry_failures = 0  # of the entry whose turn it is
        self._tries = 0  # that failed since somebody waits
        self._one_by_one = 0  # up to this number nothing is delivered together
        self._waited_for = self._ending = self._stopped = False
        self._held = ExitStack()
        self._previous: Sender | None = None
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    @property
    def lacks_parent(self) -> bool:
        """Whether it waits for the run that this one belongs to, which the store has not opened."""
        return self.trouble is not None and self.trouble.trouble is Trouble.PARENT

    def start(self) -> None:
        """Begin."""
        folder = self.journal.folder.resolve()
        self._held.enter_context(RunFolder(folder).hold())
        self._previous = _at_work.get(folder)
        _at_work[folder] = self
        self._thread.start()

    def wake(self) -> None:
        """Report that there is something to deliver."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, until: float, tries: int = LAST_TRIES) -> bool:
        """Wait until everything has arrived, the store has failed ``tries`` times, or it is ``until`` (monotonic).

        A store that fails already when the waiting begins has one more try: a server that is down takes seconds to say so.

        Returns:
            Whether everything has been dealt with.
        """
        with self._changed:
            self._waited_for, self._tries = True, 0
            tries = 1 if self._failures else tries
            self._changed.notify_all()
            while self.journal.count_waiting() and self._thread.is_alive() and self._tries < tries:
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, LAST_PAUSE))
            self._waited_for = False
        return self.journal.count_waiting() == 0

    def end(self) -> None:
        """Deliver what is there, in the background, and end then."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Deliver nothing more; a delivery under way is left to itself, and its outcome is not noted."""
        self.journal.leave()
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._let_folder_go()
        if self._thread.ident is not None:
            self._thread.join(LAST_PAUSE)  # it ends at once, unless a request is under way

    def join(self) -> None:
        """Wait until its thread has ended."""
        self._thread.join()

    def _work(self) -> None:
        try:
            if self._previous is not None:
                self._previous.join()  # its last request must not cross the first of this one
            while entries := self._get_next():
                self._deliver(entries)
        except Exception:  # a defect here costs the upload, never the run
            log.exception("tracking: nothing more is uploaded")
        finally:
            folder = self.journal.folder.resolve()
            if _at_work.get(folder) is self:
                del _at_work[folder]
            self._let_folder_go()
            with self._changed:
                self._stopped = True
                self._changed.notify_all()

    def _let_folder_go(self) -> None:
        with self._changed:
            held = self._held.pop_all()
        held.close()

    def _get_next(self) -> list[Entry]:
        """Wait for something to deliver; nothing: it is time to end."""
        with self._changed:
            while not self._stopped:
                first = self.journal.get_next(1)
                if first:
                    return first if first[0].number <= self._one_by_one else self.journal.get_next(METRICS_A_CALL)
                if self._ending:
                    break
                self._changed.wait()
        return []

    def _deliver(self, entries: list[Entry]) -> None:
        try:
            self._courier.deliver(entries)
        except Exception as error:  # whatever the store does, the run goes on
            if self._stopped:
                return
            judgement = self._courier.judge(error, entries[0])
            # The whole story once: a store that is down for a night must not fill the log.
            story = error if self._failures == 0 and judgement.trouble is not Trouble.PARENT else None
            log.info("tracking: %s: %s", entries[0].kind, judgement.reason, exc_info=story)
            if not self._stopped:
                self._act(judgement, entries)
        else:
            if self._tells and not self._stopped:
                tell_back(self.journal.state.uri)
            self.delivered += len(entries)
            self._go_on(entries, set_aside=False)

    def _act(self, judgement: Judgement, entries: list[Entry]) -> None:
        """Do what a failure asks for."""
        self.trouble = judgement
        concerns_entry = judgement.trouble in (Trouble.ALONE, Trouble.REFUSED)
        if concerns_entry and len(entries) > 1:
            self._one_by_one = entries[-1].number  # to find out which
        elif judgement.trouble is Trouble.REFUSED:
            self._leave_out(entries, judgement, set_aside=False)
        elif judgement.trouble is Trouble.ALONE:
            self._entry_failures += 1
            if self._entry_failures >= ENTRY_TRIES:
                self._leave_out(entries, judgement, set_aside=True)
            else:
                self._pause(self._entry_failures)
        else:
            if judgement.trouble is Trouble.LOST:
                self.journal.start_again()
            self._wait_for_store(judgement)

    def _leave_out(self, entries: list[Entry], judgement: Judgement, *, set_aside: bool) -> None:
        kind = entries[0].kind
        known = any(line.startswith(f"{kind}:") for line in self.refused)
        self.refused.append(f"{kind}: {judgement.reason}")
        if self._tells and not known:  # once a kind: a store that takes no metrics takes none of any epoch
            say(f"tracking: the store does not take {kind} ({judgement.reason}): left out", style="yellow")
        self._go_on(entries, set_aside=set_aside)

    def _go_on(self, entries: list[Entry], *, set_aside: bool) -> None:
        if set_aside:
            self.journal.set_aside(entries)
        else:
            self.journal.mark_delivered(entries)
        with self._changed:
            self._failures = self._entry_failures = 0
            self.trouble = None
            self._changed.notify_all()

    def _wait_for_store(self, judgement: Judgement) -> None:
        self._failures += 1
        patient = judgement.trouble is Trouble.PARENT or (
            judgement.trouble is Trouble.BUSY and self._failures < BUSY_TRIES
        )
        if self._tells and not patient:
            tell_away(self.journal.state.uri, judgement.reason)
        with self._changed:
            self._tries += 1
            self._changed.notify_all()
        self._pause(1 if patient else self._failures)

    def _pause(self, failures: int) -> None:
        begun = time.monotonic()
        with self._changed:
            while not self._stopped:
                usual = min(SHORTEST_PAUSE * 2 ** min(failures - 1, 16), LONGEST_PAUSE)
                left = begun + (min(usual, LAST_PAUSE) if self._waited_for else usual) - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(left)


def find_senders_below(folder: Path) -> list[Sender]:
    """Find the senders at work in this process for the runs inside a run's folder."""
    place = folder.resolve()
    return [sender for path, sender in sorted(_at_work.items()) if place in path.parents]


def is_at_work(folder: Path) -> bool:
    """Return whether a sender is at work in this process for the run in a folder."""
    return folder.resolve() in _at_work


def tell_away(uri: str, reason: str) -> None:
    """Report that a store cannot be used, unless people know."""
    with _lock:
        known = uri in _away
        _away.add(uri)
    if not known:
        say(
            f"tracking: {uri} cannot be used ({reason}); going on without it, what it misses is kept in the run's folder",
            style="yellow",
        )


def tell_back(uri: str) -> None:
    """Report that a store is back, if it was reported away."""
    with _lock:
        known = uri in _away
        _away.discard(uri)
    if known:
        say(f"tracking: {uri} is back")


def forget(uri: str) -> None:
    """The run is over: the next one tells anew."""
    with _lock:
        _away.discard(uri)
