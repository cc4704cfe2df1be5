"""A real MLflow server in a process of its own that can be stopped and started again, and a bad way to it."""

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.references.servers import LEAN, STARTED, choose_port


class MlflowServer:
    """``mlflow server`` with a database and artifacts in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = choose_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_up(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Start it, unless it is up, and wait until it answers."""
        if self.is_up:
            return
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                command, env={**os.environ, **LEAN}, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        deadline = time.monotonic() + STARTED
        while not self._answers():
            if time.monotonic() > deadline:
                self.stop()
                raise AssertionError("the MLflow server did not start")
            time.sleep(0.1)

    def stop(self) -> None:
        """Kill it, with its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=10)
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


class BadWay:
    """Passes requests on to a server: late, or not at all.

    Args:
        server: where they go.

    Attributes:
        delay: seconds that every request takes.
        refuses: says of a request's body whether it is answered with 400.
    """

    def __init__(self, server: MlflowServer) -> None:
        self.delay = 0.0
        self.refuses: Callable[[bytes], bool] = lambda _: False
        way = self

        class Handler(BaseHTTPRequestHandler):
            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                time.sleep(way.delay)
                if way.refuses(body):
                    self._answer(400, b"no such thing here")
                    return
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                asked = urllib.request.Request(server.uri + self.path, body or None, headers, method=self.command)
                try:
                    with urllib.request.urlopen(asked) as answer:
                        self._answer(answer.status, answer.read())
                except urllib.error.HTTPError as error:
                    self._answer(error.code, error.read())

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Say nothing."""

        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            setattr(Handler, f"do_{method}", Handler._pass_on)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Take no more requests."""
        self._server.shutdown()
        self._server.server_close()
