"""Servers of MLflow as a user starts them, each with all of its processes ended when the test is."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LEAN = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # a dozen processes that runs and models do without
STARTED = 120.0  # seconds that a server may take
BIN = Path(sys.executable).parent


def choose_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def start_mlflow(command: list[str], uri: str, port: int, path: str) -> Iterator[str]:
    """Start ``mlflow <command>`` and wait until it answers; it ends with the block.

    Args:
        command: without host and port.
        uri: the store.
        port: a free one.
        path: what it answers when it is ready.
    """
    address = f"http://127.0.0.1:{port}"
    path_variable = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "MLFLOW_TRACKING_URI": uri, "PATH": path_variable, "OMP_NUM_THREADS": "1", **LEAN}
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *command, "--host", "127.0.0.1", "--port", str(port)],
        env=env,
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    log: list[str] = []
    reader = threading.Thread(target=lambda: log.extend(process.stdout or ()), daemon=True)
    reader.start()
    try:
        until = time.monotonic() + STARTED
        while True:
            assert process.poll() is None, "".join(log)
            assert time.monotonic() < until, "".join(log)
            try:
                urllib.request.urlopen(f"{address}{path}", timeout=5).read()
                break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
