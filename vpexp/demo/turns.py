"""Who may use the model: one at a time, a page that waits before what works ahead; and threads that leave others the processor."""

import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

GIVES_WAY = 5
"""How much what works ahead gives way to a click, as of ``nice``: the click gets three times its share. More would keep whoever
opens that image waiting where other programs are at work."""


class Turns:
    """A lock that is handed to those first for whom a page waits; a plain lock may go to the same thread again and again."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._is_taken = False
        self._first = 0

    @contextmanager
    def take(self, *, ahead: bool = False) -> Iterator[None]:
        """Wait for a turn, and have it; who works ``ahead`` lets all others go first."""
        with self._free:
            self._first += not ahead
            self._free.wait_for(lambda: not self._is_taken and not (ahead and self._first))
            self._first -= not ahead
            self._is_taken = True
        try:
            yield
        finally:
            with self._free:
                self._is_taken = False
                self._free.notify_all()


def build_helper(name: str) -> ThreadPoolExecutor:
    """Build a thread, with threads of libraries that it begins, to which the others do not lose their share of the processor."""
    return ThreadPoolExecutor(1, name, initializer=_give_way)


def _give_way() -> None:
    """Lower the priority of this thread; elsewhere than on Linux only processes have one."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(GIVES_WAY, os.getpriority(os.PRIO_PROCESS, thread)))
