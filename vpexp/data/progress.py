"""A progress bar for reading annotations, shown only where reading takes long."""

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from vpexp.console import build_progress

Item = TypeVar("Item")

_PATIENCE_SECONDS = 2.0
_LARGE_BYTES = 32 * 2**20


def show_progress(items: Collection[Item], description: str) -> Iterator[Item]:
    """Go through items, with a progress bar once that has taken two seconds.

    Args:
        items: What to go through.
        description: What is done, before the bar.
    """
    start = time.monotonic()
    remaining = iter(items)
    done = 0
    for item in remaining:
        yield item
        done += 1
        if time.monotonic() - start > _PATIENCE_SECONDS:
            break
    if done == len(items):
        return
    with build_progress() as progress:
        task = progress.add_task(description, total=len(items), completed=done)
        for item in remaining:
            yield item
            progress.advance(task)


@contextmanager
def show_wait(description: str, path: Path) -> Iterator[None]:
    """Show that something goes on while one file is read, if it is large; how far it is cannot be told.

    Args:
        description: What is done.
        path: The file.

    Raises:
        OSError: The file is not there.
    """
    size = path.stat().st_size
    if size < _LARGE_BYTES:
        yield
        return
    with build_progress() as progress:
        progress.add_task(f"{description} ({size >> 20} MiB)", total=None)
        yield
