"""Which process went first: where one worker dies, its pool ends the others too, and they are not to blame."""

import threading
from typing import Self

from vpexp.runfolder import RunFolder
from vpexp.sweeps.record import SweepFolder

SECONDS = 0.02
LOOKS_A_SCAN = 25  # jobs that begin are looked for less often than ends


class DeathWatch:
    """Looks at the locks of running jobs while a pool works.

    Args:
        sweep: whose jobs are watched.

    Attributes:
        first_dead: the jobs whose processes were gone first, all that went within one look.
    """

    def __init__(self, sweep: SweepFolder) -> None:
        self.first_dead: list[RunFolder] = []
        self._sweep = sweep
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        alive: list[RunFolder] = []
        looks = 0
        while not self._ended.wait(SECONDS):
            if looks % LOOKS_A_SCAN == 0:
                alive = [job for job in self._sweep.find_jobs() if job.is_held()]
            looks += 1
            gone = [job for job in alive if not job.is_held()]
            alive = [job for job in alive if job not in gone]
            self.first_dead = [job for job in gone if _is_running(job)]
            if self.first_dead:
                return
        # The launcher was told before this thread had looked again.
        self.first_dead = [job for job in self._sweep.find_jobs() if not job.is_held() and _is_running(job)]


def _is_running(job: RunFolder) -> bool:
    """By its own last word, which a process that is killed cannot take back."""
    return bool(job.read_run_json().get("status") == "RUNNING")
