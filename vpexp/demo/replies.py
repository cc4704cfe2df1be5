"""JSON answers: plain ASCII, whatever names files have; an error is one line."""

import json
from typing import Any

from starlette.responses import JSONResponse


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
