"""The one console object: all that people read goes through it, to standard error or output as rich decides."""

import logging

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console()


def build_progress() -> Progress:
    """Build the progress bar that every long loop shows."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (console.is_terminal or console.is_jupyter),  # in a file or pipe it would only leave blank lines
    )


def say(line: str, *, style: str | None = None) -> None:
    """Tell people one line, and keep it in the run's log."""
    line = line.encode("utf-8", "backslashreplace").decode()  # file names may hold what no encoding can print
    console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)
    logging.getLogger("vpexp").info(line)
