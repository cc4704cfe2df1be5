"""A thread that delivers a run's journal while the run goes on: a store that is slow or down never holds a run up."""

import logging
import threading
import time

from vpexp.console import say
from vpexp.tracking.delivery import Courier, ParentNotOpenError, get_patience
from vpexp.tracking.journal import Entry, Journal
from vpexp.tracking.names import describe_error

log = logging.getLogger(__name__)

SHORTEST_PAUSE = 2.0  # seconds until a store that failed is asked again; twice as long each time
LONGEST_PAUSE = 60.0
LAST_PAUSE = 1.0  # the same at the end of the run, when somebody waits
LAST_TRIES = 3


class Sender:
    """Delivers what is in a journal, in order, until it is told to stop.

    Args:
        journal: of the run.

    Attributes:
        lacks_parent: whether it waits for the run that this one belongs to, which the store has not opened.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._courier = Courier(journal)
        self._changed = threading.Condition()
        self._failures = 0  # since something arrived
        self._tries = 0  # that failed since somebody waits
        self._waited_for = False
        self._stopped = False
        self.lacks_parent = False
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Say that there is something to deliver."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, seconds: float, tries: int = LAST_TRIES) -> bool:
        """Wait until everything has arrived, the store has failed ``tries`` times, or the time is over.

        A store that fails already when the waiting begins has one more try: a server that is down takes seconds to say so.

        Returns:
            Whether everything has arrived.
        """
        until = time.monotonic() + seconds
        with self._changed:
            self._waited_for, self._tries = True, 0
            tries = 1 if self._failures else tries
            self._changed.notify_all()
            while self.journal.count_waiting() and self._tries < tries and time.monotonic() < until:
                self._changed.wait(max(0.0, until - time.monotonic()))
            self._waited_for = False
        return self.journal.count_waiting() == 0

    def stop(self) -> None:
        """Deliver nothing more; a delivery under way is left to itself."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._stopped and self.journal.get_first() is None:
                    self._changed.wait()
                entry = self.journal.get_first()
                if self._stopped or entry is None:
                    return
            try:
                self._courier.deliver(entry)
            except Exception as error:  # whatever the store does, the run goes on
                if not self._stopped:
                    log.warning("tracking: %s: %s", self.journal.state.uri, entry.kind, exc_info=error)
                self._note_failure(error, entry)
            else:
                self._note_arrival()

    def _note_arrival(self) -> None:
        self.journal.mark_delivered()
        with self._changed:
            if self._failures and not self._stopped and not self.lacks_parent:
                say(f"tracking: {self.journal.state.uri} is back")
            self._failures = 0
            self.lacks_parent = False
            self._changed.notify_all()

    def _note_failure(self, error: Exception, entry: Entry) -> None:
        if self._stopped:
            return
        self._failures += 1
        self.lacks_parent = isinstance(error, ParentNotOpenError)
        if self._failures >= get_patience(error):
            say(f"tracking: the store refuses {entry.kind} ({describe_error(error)}): left out", style="yellow")
            self._failures = 0
            self._note_arrival()
            return
        if self._failures == 1 and not self.lacks_parent:
            say(
                f"tracking: {self.journal.state.uri} cannot be used ({describe_error(error)}); "
                "going on without it, what it misses is kept in the run's folder",
                style="yellow",
            )
        with self._changed:
            self._tries += 1
            self._changed.notify_all()
        self._pause()

    def _pause(self) -> None:
        begun = time.monotonic()
        with self._changed:
            while not self._stopped:
                usual = min(SHORTEST_PAUSE * 2 ** (self._failures - 1), LONGEST_PAUSE)
                left = begun + (min(usual, LAST_PAUSE) if self._waited_for else usual) - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(left)
