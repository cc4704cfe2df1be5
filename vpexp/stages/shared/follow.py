"""A follower: a process that trains beside rank 0 and keeps no record. Rank 0 alone starts it.

``python -m vpexp.stages.shared.follow <rank> <process of rank 0> <run folder>``, with its assignment on standard input; what it
prints is its log, ``rank_<rank>.log`` in the run folder.
"""

import logging
import os
import pickle
import signal
import sys
import threading
import time
from contextlib import suppress

from vpexp.runtime import quiet_libraries
from vpexp.signals import STOPS

log = logging.getLogger("vpexp.follower")

LOOK_SECONDS = 0.5


def main() -> None:
    """Follow rank 0 through its training.

    Exits with code 1 after an error, which is sent to rank 0.
    """
    rank, leader = int(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_end_with, args=(leader,), daemon=True).start()
    for number in STOPS:  # sent to all processes of a job, they are for rank 0 to answer
        signal.signal(number, signal.SIG_IGN)
    quiet_libraries()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _run(rank)


def _run(rank: int) -> None:
    from vpexp.stages.shared.distributed import DONE, FAILED, Assignment, report_to_rank_0
    from vpexp.training.distributed import connect_store

    assignment: Assignment = pickle.load(sys.stdin.buffer)  # noqa: S301 (rank 0 wrote it)
    store = connect_store(assignment.port, assignment.world_size)
    try:
        from vpexp.stages.shared.distributed import follow

        report_to_rank_0(store, DONE, rank, follow(assignment, rank, store))
    except SystemExit:  # rank 0 was stopped, and sent the stop
        log.info("stopped")
    except Exception as error:
        log.exception("failed")
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        with suppress(Exception):  # rank 0 may be gone, which may be why
            report_to_rank_0(store, FAILED, rank, {"kind": type(error).__name__, "message": reason})
        sys.exit(1)


def _end_with(leader: int) -> None:
    """End this process and those that read images for it as soon as rank 0 is gone, however it went."""
    while os.getppid() == leader:
        time.sleep(LOOK_SECONDS)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
