"""Where the page is served: one socket, taken before the model is loaded, and a server that ends with Ctrl-C."""

import contextlib
import errno
import socket
import threading
import webbrowser

from starlette.types import ASGIApp

from vpexp.errors import ConfigError

FIRST_PORT = 8000
LAST_PORT = 65535
CLOSING_SECONDS = 3  # that requests have to end after Ctrl-C


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
