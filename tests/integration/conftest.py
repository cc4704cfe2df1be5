"""What all tests that start programs share."""

from collections.abc import Iterator

import psutil
import pytest


@pytest.fixture(scope="module", autouse=True)  # a test may start a server anew that the next ones ask
def _end_programs() -> Iterator[None]:
    """Tests that fail leave no run of vpexp behind, which would take the processor from all that follow."""
    before = {child.pid for child in psutil.Process().children()}
    yield
    for child in psutil.Process().children():
        if child.pid not in before and "vpexp" in _read_words(child):
            for process in [*child.children(recursive=True), child]:
                if process.is_running():
                    process.kill()


def _read_words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []
