"""The one console object: all that people read goes through it, to standard error or output as rich decides.

Names come from files of others: here they are text, never markup, and what would act on a terminal is escaped. Progress
bars of reading appear only where it takes long.
"""

import errno
import logging
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vpexp.errors import make_printable
from vpexp.signals import drop_output

Item = TypeVar("Item")
_PATIENCE_SECONDS = 2.0
_LARGE_BYTES = 32 * 2**20


class LastingConsole(Console):
    """A console whose terminal or reader may go: lines then go to the run's log alone."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, as ``Console`` does."""
        try:
            super().print(*objects, **options)
        except OSError as error:
            if error.errno != errno.EIO:  # of a terminal that is gone
                raise
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Go on: a run is not lost with who looks at it."""
        self.quiet = True
        drop_output()


console = LastingConsole()


class PlainTable(Table):
    """A table of plain text."""

    def __init__(self, title: str | None = None, **options: Any) -> None:
        """Start a table; its title, if it has one, is bold and on the left."""
        heading = None if title is None else Text(make_printable(title), style="bold")
        super().__init__(title=heading, title_justify="left", **options)

    def add_column(self, header: Any = "", *args: Any, **options: Any) -> None:
        """Add a column, as ``Table`` does."""
        super().add_column(Text(make_printable(header)), *args, **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row of texts, as ``Table`` does."""
        super().add_row(*(Text(make_printable(cell)) for cell in cells), **options)


class DescriptionColumn(TextColumn):
    """What a progress bar is about, as plain text."""

    def __init__(self) -> None:
        super().__init__("{task.description}")

    def render(self, task: Task) -> Text:
        """Make the text."""
        return Text(make_printable(task.description))


def build_progress() -> Progress:
    """Build the progress bar that every long loop shows."""
    return Progress(
        DescriptionColumn(),
        BarColumn(bar_width=24),  # leaves room for words on a terminal of 80 columns
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (console.is_terminal or console.is_jupyter),  # in a file or pipe it would only leave blank lines
    )


def format_count(count: int, noun: str, plural: str | None = None) -> str:
    """Format a count and what is counted: ``1 image``, ``2 images``; ``plural`` where it is no noun with an s."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


def log_line(line: str, *, style: str | None = None) -> None:
    """Print one line, and keep it in the run's log."""
    line = make_printable(line)
    console.print(line, style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)
    logging.getLogger("vpexp").info(line)


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
    """Show that something goes on while one file is read, if it is large; how far it is is unknown.

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
