"""The one console object: all that people read goes through it, to standard error or output as rich decides.

Names come from files of others: here they are text, never markup, and what would act on a terminal is escaped.
"""

import errno
import logging
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vpexp.errors import make_printable
from vpexp.signals import drop_output


class LastingConsole(Console):
    """A console whose terminal or reader may go: what is said then goes to the run's log alone."""

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
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (console.is_terminal or console.is_jupyter),  # in a file or pipe it would only leave blank lines
    )


def say(line: str, *, style: str | None = None) -> None:
    """Tell people one line, and keep it in the run's log."""
    line = make_printable(line)
    console.print(line, style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)
    logging.getLogger("vpexp").info(line)
