"""Fetching a file of trained weights into the cache folder: whole and verified, or not at all."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from vpexp.console import DescriptionColumn, console, log_line
from vpexp.errors import WeightsError
from vpexp.runtime import find_cache_dir

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 30.0


def get_cache_dir(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Name the folder of downloaded weights: the argument, else ``weights`` in vpexp's cache folder."""
    return Path(cache_dir).expanduser() if cache_dir else find_cache_dir() / "weights"


def download_file(url: str, path: Path, sha256: str) -> Path:
    """Download a file once; later calls, also of other processes at the same time, find it there.

    Bytes go to ``<name>.part`` beside ``path``, which takes the final name only when whole and of the right hash. A
    connection that was cut leaves the ``.part``, and the next call goes on from there.

    Raises:
        WeightsError: Not reachable, cut, of the wrong hash, or the folder cannot be written; the message says
            what to fetch from where, and where to put it.
    """
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _hold_lock(path):
            if not path.is_file():
                _download_locked(url, path, sha256)
    except (OSError, http.client.HTTPException, NotImplementedError) as error:
        raise WeightsError(
            f"could not download {path.name} ({_describe(error)}): fetch {url} and put it at {path}, "
            "or give model.weights=<path>; model=sam_micro comes with vpexp, and is weaker on photographs"
        ) from error
    return path


class _TransferError(OSError):
    """The bytes that came are not the file."""


@contextmanager
def _hold_lock(path: Path) -> Iterator[None]:
    """Keep other processes from downloading the same file; the system frees the lock of a process that died."""
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        lock.acquire(timeout=0.5)
    except Timeout:
        log_line(f"another process is downloading {path.name}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _download_locked(url: str, path: Path, sha256: str) -> None:
    part = path.with_name(f"{path.name}.part")
    was_resumed = _fetch(url, part, path.name)
    found = _compute_sha256(part)
    if found != sha256 and was_resumed:
        # What an earlier call left may belong to another version of the file: one attempt from the start.
        part.unlink()
        _fetch(url, part, path.name)
        found = _compute_sha256(part)
    if found != sha256:
        part.unlink()
        raise _TransferError(f"sha256 is {found[:12]}… instead of {sha256[:12]}…, nothing was kept")
    part.replace(path)


def _fetch(url: str, part: Path, description: str) -> bool:
    """Download ``url`` to ``part``, going on from what is already there; return whether it went on or started anew."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "vpexp"})  # noqa: S310
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
            raise
        # The whole file, or more than it, is already there: the hash will tell.
        return True
    with response:
        resumed: bool = response.status == http.HTTPStatus.PARTIAL_CONTENT
        start = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        received = start + _write_body(response, part, description, start=start, total=total)
    if total is not None and received != total:
        raise _TransferError(f"the connection was cut after {received} of {total} bytes; calling again goes on there")
    return resumed


def _write_body(
    response: http.client.HTTPResponse, part: Path, description: str, *, start: int, total: int | None
) -> int:
    """Append the body to ``part`` (or replace what it holds) behind a progress bar; return the bytes received."""
    received = 0
    columns = (
        DescriptionColumn(),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress, part.open("ab" if start else "wb") as file:
        task = progress.add_task(description, total=total, completed=start)
        while chunk := response.read(_CHUNK_BYTES):
            file.write(chunk)
            received += len(chunk)
            progress.update(task, advance=len(chunk))
    return received


def _compute_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"not reachable: {error.reason}"
    return str(error) or type(error).__name__
