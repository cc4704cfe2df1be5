"""A worker's end when the process that orders its jobs is gone: nobody would hear of them, or know that they go on."""

import os
import signal
import threading
from typing import Self

from vpexp.signals import TERMINATED

SECONDS = 1.0


class ParentWatch:
    """Stops a job, as SIGTERM does, when its process is no child of the sweep's any more, and then the process.

    Nothing is watched in a process that another one started: a queue or a cluster ends its jobs itself.

    Args:
        sweep_process: number of the process that orders the jobs.
    """

    def __init__(self, sweep_process: int) -> None:
        self._parent = sweep_process
        self._is_child = os.getppid() == sweep_process
        self._is_lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="parent", daemon=True)

    def __enter__(self) -> Self:
        if self._is_child:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._is_child:
            self._thread.join()
        if self._is_lost:  # the job is recorded; a pool's worker would wait for more
            os._exit(TERMINATED)

    def _watch(self) -> None:
        while not self._ended.wait(SECONDS):
            if os.getppid() != self._parent:
                self._is_lost = True
                os.kill(os.getpid(), signal.SIGTERM)
                return
