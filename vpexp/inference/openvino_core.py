"""The one ``openvino.Core`` of the process.

Each Core gives the thread that uses its CPU plugin a stack for signal handlers, and takes it away when it goes. Where
two of them do not go in the reverse order of their coming, the stack that is put back is one that is gone, and the
next signal (a data worker that ends, Ctrl-C) kills the process. So there is one Core, and it stays.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


@cache
def get_core() -> Any:
    """Get the process's ``openvino.Core``; its CPU plugin is loaded."""
    import openvino

    core = openvino.Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin before anybody else's
    return core


@contextmanager
def lend_core() -> Iterator[Any]:
    """Let a library that makes Cores of its own (NNCF: one for each model it compiles) get this one meanwhile."""
    import openvino

    core, usual = get_core(), (openvino.Core, openvino.compile_model)
    openvino.Core = lambda *_: core
    openvino.compile_model = lambda model, device_name="CPU", config=None: core.compile_model(
        model, device_name, config or {}
    )
    try:
        yield core
    finally:
        openvino.Core, openvino.compile_model = usual
