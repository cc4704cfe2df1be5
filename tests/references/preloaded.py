"""``python -m vpexp``, and what it starts in turn, as forks of a process that has imported what a start spends ten seconds on.

The forked process is a child of the one that starts it, with its own arguments, environment, folder, session and streams, and
runs its module as ``__main__`` from there on; so do the workers of joblib, the followers of DDP and the servers of MLflow. Where a
variable that Python or a library reads at its own start differs, the process is started as usual. CI starts the installed package
without this.
"""

import atexit
import ctypes
import fcntl
import gc
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
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

JOBLIB_WORKER = "joblib.externals.loky.backend.popen_loky_posix"
STARTING = ("vpexp", "mlflow")  # these start some of the others
FORKED = (*STARTING, "uvicorn", "tests.", JOBLIB_WORKER)  # with the modules in them
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
        "joblib.externals.loky.backend.fork_exec",
        "pycocotools.mask",
        "rich.progress",
    ),
)
READ_AT_START = ("PYTHON", "LC_", "LANG", "OMP_", "MKL_", "MPL", "CUDA_", "MALLOC_", "LD_")
AT_ONCE = 1 << 20
FDS, OUT_OF_THE_WAY = 32, 200
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
    """Starts ``python -m <module> …`` in place of ``subprocess.Popen``, from its first use to the end of the tests.

    Args:
        database: the MLflow database that new ones are copies of.
        connection: to the process that is forked; without one it is started.
    """

    def __init__(self, database: Path, connection: socket.socket | None = None) -> None:
        self._database = database
        self._usual = subprocess.Popen._execute_child
        self._signature = inspect.signature(self._usual)
        self._connection = connection
        self._lock = threading.Lock()

    def install(self) -> None:
        """Have ``subprocess.Popen`` fork what it can."""
        preloaded = self

        def execute_child(popen: Any, *arguments: Any, **named: Any) -> None:
            asked = preloaded._signature.bind(popen, *arguments, **named).arguments
            if preloaded._can_fork(asked):
                preloaded._execute_child(popen, asked)
            else:
                preloaded._usual(popen, *arguments, **named)

        subprocess.Popen._execute_child = execute_child

    def install_workers(self) -> None:
        """Have joblib fork its workers; their number of threads, which they are given as variables, stays what it is here."""
        from joblib.externals.loky.backend import fork_exec

        def fork_worker(words: list[str], keep_fds: Iterable[int], env: dict[str, str] | None = None) -> int:
            fds = {fd: fd for fd in (0, 1, 2, *map(int, keep_fds))}
            return self._fork(words, fds, {**os.environ, **(env or {})}, Path.cwd())

        fork_exec.fork_exec = fork_worker

    def remove(self) -> None:
        """Start all processes as usual again."""
        subprocess.Popen._execute_child = self._usual
        if self._connection is not None:
            self._connection.close()

    def _can_fork(self, asked: dict[str, Any]) -> bool:
        words = asked["args"]
        plain = not asked["shell"] and not asked["preexec_fn"] and not asked["pass_fds"]
        is_module = isinstance(words, list) and words[:2] == [sys.executable, "-m"]
        is_forked = is_module and words[2].startswith(FORKED)
        return plain and is_forked and _find_early(asked["env"] or os.environ) == _find_early(os.environ)

    def _execute_child(self, popen: Any, asked: dict[str, Any]) -> None:
        ends = [asked[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        fds = {place: place if end == -1 else end for place, end in enumerate(ends)}
        folder = Path(asked["cwd"] or ".").resolve()
        environment = dict(asked["env"] or os.environ)
        popen.pid = self._fork(asked["args"], fds, environment, folder, session=asked["start_new_session"])
        popen._child_created = True
        popen._close_pipe_fds(
            *(asked[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"))
        )

    def _fork(
        self,
        words: list[str],
        fds: dict[int, int],
        environment: dict[str, str],
        folder: Path,
        *,
        session: bool = False,
    ) -> int:
        """Fork a process, a child of this one; return its number. ``fds``: of this process, by their numbers there."""
        message = {
            "module": words[2],
            "arguments": [str(word) for word in words[3:]],
            "folder": str(folder),
            "environment": environment,
            "session": session,
            "database": str(self._database),
            "places": list(fds),
        }
        prctl = ctypes.CDLL(None).prctl
        with self._lock:
            connection = self._connection = self._connection or _start_server()
            prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            try:
                socket.send_fds(connection, [json.dumps(message).encode()], list(fds.values()))
                number = int(connection.recv(AT_ONCE))
                assert connection.recv(AT_ONCE) == b"orphaned"
            finally:
                prctl(SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        return number


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
    """Fork for each message; return it in the process that is to run it, and None when who sends them is gone."""
    while True:
        content, fds, _, _ = socket.recv_fds(connection, AT_ONCE, FDS)
        if not content:
            return None
        between = os.fork()
        if between == 0:
            between = os.getpid()
            asked: dict[str, Any] = json.loads(content)
            if child := os.fork():
                connection.send(str(child).encode())
                os._exit(0)
            connection.close()
            moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, OUT_OF_THE_WAY) for fd in fds]
            for fd in fds:
                os.close(fd)
            for place, fd in zip(asked["places"], moved, strict=True):
                os.dup2(fd, place)
                os.close(fd)
            while os.getppid() == between:
                time.sleep(0.001)
            return asked
        os.waitpid(between, 0)  # now its child is one of the process that asked
        connection.send(b"orphaned")
        for fd in fds:
            os.close(fd)


def _fork_server() -> tuple[socket.socket, bool]:
    """Fork a process that serves this one, as long as there is one thread; return the socket, and whether this is the server."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        its.close()
        return ours, False
    ours.close()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for place in range(3):
        os.dup2(nowhere, place)
    return its, True


def _run(module: str) -> None:
    """Run a module, and end the process as Python does, but for taking everything apart that was imported."""
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if not isinstance(stop.code, int | None):
            raise
        code = stop.code or 0
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    os._exit(code)


def main() -> None:
    """Import, wait for messages, and run a module in each fork."""
    from vpexp.runtime import quiet_libraries

    quiet_libraries()
    for name in HEAVY:
        importlib.import_module(name)
    assert threading.active_count() == 1, threading.enumerate()
    gc.freeze()  # a collection would look at all of it, and so copy it, in each fork
    connection, serves = socket.socket(fileno=int(sys.argv[1])), True
    while serves:
        asked = _serve(connection)
        if asked is None:
            os._exit(0)
        if asked["session"]:
            os.setsid()
        serves = False
        if asked["module"] in STARTING:
            connection, serves = _fork_server()
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = [asked["module"], *asked["arguments"]]
    early = [asked["folder"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:] = [*early, *(place for place in sys.path[1:] if place not in early)]
    for name in [name for name in sys.modules if name.partition(".")[0] == "vpexp"]:
        del sys.modules[name]  # they read the environment
    copy_first_database(Path(asked["database"]))
    if asked["module"] in STARTING:
        preloaded = PreloadedPython(Path(asked["database"]), connection)
        preloaded.install()
        preloaded.install_workers()
    _run(asked["module"])


if __name__ == "__main__":
    main()
