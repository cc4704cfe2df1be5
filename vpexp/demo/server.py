"""Where the page is served, and who may ask: pages of this server only, so that no web site open in the same browser can.

There is one socket, taken before the model is loaded, and a server that ends with Ctrl-C. Three doors are shut: a foreign name
that was made to lead here (DNS rebinding: its name stands in the ``Host`` header), requests that another site's page sends (it
stands in ``Origin``), and frames or embedded pictures of other sites (headers of every answer). Answers are JSON in plain
ASCII, whatever names files have; an error is one line.
"""

import contextlib
import errno
import ipaddress
import json
import socket
import threading
import webbrowser
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vpexp.errors import ConfigError

FIRST_PORT = 8000
LAST_PORT = 65535
CLOSING_SECONDS = 3  # that requests have to end after Ctrl-C
HEADERS = {
    "Cache-Control": "no-store",  # another source may be served at this address tomorrow
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def open_socket(host: str, port: int | None) -> socket.socket:
    """Take the port to serve at.

    Args:
        host: a name or an address.
        port: None takes the first free one from 8000.

    Raises:
        ConfigError: the port is taken, or the host is none of this machine.
    """
    for candidate in [port] if port is not None else range(FIRST_PORT, LAST_PORT + 1):
        try:
            return _listen(host, candidate)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and port is None:
                continue
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(
                    f"demo.port={port} is taken: give another one, or demo.port=null for the next that is free"
                ) from error
            raise ConfigError(f"demo.host={host} demo.port={candidate}: {error.strerror or error}") from error
    raise ConfigError(f"demo.port=null: no port is free on {host}")


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the port of a server that was just killed
        opened.bind(address)
        opened.listen()
    except OSError:
        opened.close()
        raise
    return opened


def name_address(host: str, opened: socket.socket) -> str:
    """Name what people type into the browser."""
    port = opened.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_local(opened: socket.socket) -> bool:
    """Return whether only this machine can reach the server."""
    address = str(opened.getsockname()[0])
    return address == "::1" or address.startswith("127.")


def serve(app: ASGIApp, opened: socket.socket, browse: str | None = None) -> None:
    """Serve until Ctrl-C or SIGTERM, of which only the second is passed on.

    Args:
        app: the web application.
        opened: where; it is closed in the end.
        browse: an address to open in a browser.
    """
    import uvicorn

    config = uvicorn.Config(
        app,
        log_config=None,  # its log goes where all logs go: into the run's
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=CLOSING_SECONDS,
    )
    if browse is not None:
        threading.Thread(target=webbrowser.open, args=(browse,), daemon=True).start()
    with opened, contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[opened])


class Guard:
    """Refuses requests of strangers, and sets the headers of every answer.

    Args:
        app: what answers the others.
        host: the configured host, a further name that is trusted.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self.app = app
        self._names = {"localhost", socket.gethostname().lower(), host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        complaint = self.find_complaint(scope)
        app = self.app if complaint is None else build_error(403, complaint)
        await app(scope, receive, send_with_headers)

    def find_complaint(self, scope: MutableMapping[str, Any]) -> str | None:
        """Say why a request is refused; None where it is not."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_trusted(host):
            return f"this server does not answer to the name {host!r}"
        if origin is not None and _find_host(origin) != host.lower():
            return f"pages of {origin!r} may not use this server"
        return None

    def _is_trusted(self, host: str) -> bool:
        """Trust this machine's names, and addresses in numbers, which cannot be made to lead elsewhere."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in self._names:
                return True
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _find_host(origin: str) -> str | None:
    """Find the host and port of an origin; None where it is no address."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


class RequestError(Exception):
    """A request that cannot be answered.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Reply(JSONResponse):
    """JSON; names of files may hold what no encoding can print, and are escaped."""

    def render(self, content: Any) -> bytes:
        """Write the content."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def build_error(status: int, message: str) -> Reply:
    """Build the answer to a request that went wrong."""
    return Reply({"error": " ".join(message.split())}, status_code=status)
