"""``python -m vpexp`` as a fork of a process that has imported what a start spends ten seconds of a processor on.

The forked process is a child of the test's, with its own arguments, environment, folder, session and standard streams, and runs
``vpexp`` as ``__main__`` from there on. Where a variable that Python or a library reads at its own start differs, the process is
started as usual. CI starts the installed package without this.
"""

import ctypes
import importlib
import inspect
import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "vpexp"]
HEAVY = (
    *(
        "torch._dynamo",
        "pytorch_lightning",
        "torchmetrics.functional",
        "matplotlib.pyplot",
        "mlflow",
        "mlflow.store.db.utils",
    ),
    *(
        "mlflow.store.tracking.sqlalchemy_store",
        "hydra.core.plugins",
        "hydra.main",
        "pycocotools.mask",
        "rich.progress",
    ),
)
READ_AT_START = ("PYTHON", "LC_", "LANG", "OMP_", "MKL_", "MPL", "CUDA_", "MALLOC_", "LD_")
AT_ONCE = 1 << 20
SET_CHILD_SUBREAPER = 36  # of prctl(2): whose child an orphan becomes


def copy_first_database(first: Path) -> None:
    """Let every new MLflow database be a copy of ``first``, which is made where it is missing: that takes some hundred migrations."""
    from vpexp.tracking import store

    create = store.create_database

    def copy(file: Path) -> None:
        if not first.exists():
            draft = first.with_name(f"{os.getpid()}.db")
            create(draft)
            draft.replace(first)
        shutil.copyfile(first, file)

    store.create_database = copy


class PreloadedPython:
    """Starts ``python -m vpexp …`` in place of ``subprocess.Popen``, from its first use to the end of the tests.

    Args:
        database: the MLflow database that new ones are copies of.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._usual = subprocess.Popen._execute_child
        self._signature = inspect.signature(self._usual)
        self._connection: socket.socket | None = None
        self._lock = threading.Lock()

    def install(self) -> None:
        """Have ``subprocess.Popen`` fork what it can."""
        preloaded = self

        def execute_child(popen: Any, *arguments: Any, **named: Any) -> None:
            asked = preloaded._signature.bind(popen, *arguments, **named).arguments
            if preloaded._can_fork(asked):
                preloaded._fork(popen, asked)
            else:
                preloaded._usual(popen, *arguments, **named)

        subprocess.Popen._execute_child = execute_child

    def remove(self) -> None:
        """Start all processes as usual again."""
        subprocess.Popen._execute_child = self._usual
        if self._connection is not None:
            self._connection.close()

    def _can_fork(self, asked: dict[str, Any]) -> bool:
        plain = not asked["shell"] and not asked["preexec_fn"] and not asked["pass_fds"]
        is_vpexp = isinstance(asked["args"], list) and asked["args"][:3] == COMMAND
        return plain and is_vpexp and _find_early(asked["env"] or os.environ) == _find_early(os.environ)

    def _fork(self, popen: Any, asked: dict[str, Any]) -> None:
        ends = [asked[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        message = {
            "arguments": [str(word) for word in asked["args"][3:]],
            "folder": str(Path(asked["cwd"] or ".").resolve()),
            "environment": dict(asked["env"] or os.environ),
            "session": asked["start_new_session"],
            "database": str(self._database),
        }
        prctl = ctypes.CDLL(None).prctl
        with self._lock:
            connection = self._connection = self._connection or _start_server()
            prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            try:
                fds = [place if end == -1 else end for place, end in enumerate(ends)]
                socket.send_fds(connection, [json.dumps(message).encode()], fds)
                popen.pid = int(connection.recv(AT_ONCE))
                assert connection.recv(AT_ONCE) == b"orphaned"
            finally:
                prctl(SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        popen._child_created = True
        popen._close_pipe_fds(
            *(asked[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"))
        )


def _find_early(environment: Any) -> dict[str, str]:
    return {
        name: value for name, value in environment.items() if name.startswith(READ_AT_START) and name != "PYTHONPATH"
    }


def _start_server() -> socket.socket:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        subprocess.Popen(
            [sys.executable, __file__, str(its.fileno())], pass_fds=[its.fileno()], stdin=subprocess.DEVNULL
        )
    return ours


def _serve(connection: socket.socket) -> dict[str, Any] | None:
    """Fork for each message; return it in the process that is to run it, and None at the end of the tests."""
    while True:
        content, fds, _, _ = socket.recv_fds(connection, AT_ONCE, 3)
        if not content:
            return None
        between = os.fork()
        if between == 0:
            asked: dict[str, Any] = json.loads(content)
            if child := os.fork():
                connection.send(str(child).encode())
                os._exit(0)
            for place, fd in enumerate(fds):
                os.dup2(fd, place)
            for fd in {*fds, connection.detach()} - {0, 1, 2}:
                os.close(fd)
            return asked
        os.waitpid(between, 0)  # now its child is one of the tests' process
        connection.send(b"orphaned")
        for fd in fds:
            os.close(fd)


def main() -> None:
    """Import, wait for messages, and run ``vpexp`` in each fork, which then ends as any Python does."""
    from vpexp.runtime import quiet_libraries

    quiet_libraries()
    for name in HEAVY:
        importlib.import_module(name)
    assert threading.active_count() == 1, threading.enumerate()
    asked = _serve(socket.socket(fileno=int(sys.argv[1])))
    if asked is None:
        return
    if asked["session"]:
        os.setsid()
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = ["vpexp", *asked["arguments"]]
    sys.path[0] = asked["folder"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "vpexp"]:
        del sys.modules[name]  # they read the environment
    copy_first_database(Path(asked["database"]))
    runpy.run_module("vpexp", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
