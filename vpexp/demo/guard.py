"""Who may ask: pages of this server only, so that no web site open in the same browser can read images or labels.

Three doors are shut: a foreign name that was made to lead here (DNS rebinding: its name stands in the ``Host`` header),
requests that another site's page sends (it stands in ``Origin``), and frames or embedded pictures of other sites (headers
of every answer). Answers are JSON in plain ASCII, whatever names files have; an error is one line.
"""

import ipaddress
import json
import socket
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Cache-Control": "no-store",  # another source may be served at this address tomorrow
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


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
