"""The process of one side: ``python -m scripts.benchmarks.side WORK SIDE``, driven over a pipe.

Reads one line of settings, then commands; answers each with one line of JSON. All that libraries print goes to standard
error. Each side has a process to itself, so that allocator, threads and caches of one do not touch the other.
"""

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from scripts.benchmarks.contender import Contender
from scripts.benchmarks.settings import Settings, read_settings

KIB = 1024


def main() -> None:
    """Build the side and serve commands until the pipe ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    work, side = sys.argv[1:]
    settings = read_settings(sys.stdin.readline())
    _set_up(settings, side)
    sides: dict[str, Callable[[Settings], Contender]] = importlib.import_module(f"scripts.benchmarks.{work}").SIDES
    contender = sides[side](settings)
    _answer(answers, {"built": True})
    for line in sys.stdin:
        name, *arguments = line.split()
        _answer(answers, _COMMANDS[name](contender, *arguments))


def _set_up(settings: Settings, side: str) -> None:
    from vpexp.runtime import quiet_libraries

    quiet_libraries()
    import torch

    torch.set_num_threads(settings.threads)
    if not side.startswith("plain"):
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Do what ``vpexp.run.run`` does first."""
    try:
        from vpexp.runtime import keep_freed_memory
    except ImportError:
        return
    keep_freed_memory()


def _answer(answers: Any, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


def _check(contender: Contender, path: str) -> dict[str, Any]:
    np.savez(path, **{name: np.asarray(value, dtype=np.float64) for name, value in contender.check().items()})
    return {"path": path}


def _turn(contender: Contender) -> dict[str, Any]:
    contender.prepare()
    started, on_cpu = time.perf_counter(), time.process_time()
    contender.turn()
    return {"seconds": time.perf_counter() - started, "cpu": time.process_time() - on_cpu}


def _peak(contender: Contender) -> dict[str, Any]:
    """Return how much memory this process, without its children, has ever held: bytes."""
    del contender
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"bytes": peak if sys.platform == "darwin" else peak * KIB}


_COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {"check": _check, "turn": _turn, "peak": _peak}

if __name__ == "__main__":
    main()
