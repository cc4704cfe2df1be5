"""A command of vpexp as a process that gives way to all others, and that ends when the one that started it is gone.

python -m vpexp.demo.worker <process that started it> <how much it gives way, 0 to 19> stage=train ...
"""

import os
import runpy
import signal
import sys
import threading
import time

LOOK = 1.0  # seconds


def main() -> None:
    """Run the command."""
    starter, nice = int(sys.argv[1]), int(sys.argv[2])
    if hasattr(os, "nice"):
        os.nice(nice)
    threading.Thread(target=_watch, args=(starter,), daemon=True).start()
    sys.argv = ["vpexp", *sys.argv[3:]]
    runpy.run_module("vpexp", run_name="__main__", alter_sys=True)


def _watch(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(LOOK)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10 * LOOK)
    os._exit(1)  # whatever it waits for


if __name__ == "__main__":
    main()
