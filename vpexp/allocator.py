"""How the C library gives memory out, set for tensors of many megabytes."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of glibc's ``mallopt`` (malloc.h)."""
LARGEST = 2**31 - 1
GROWTH = 64 * 1024 * 1024


def keep_freed_memory() -> bool:
    """Let the process keep the memory that it frees for what it asks for next.

    glibc fetches each large block anew from the system, which hands out pages one by one and fills them with zeros: at 1024
    px a third of a training step went into that. The largest amount of memory in use stays what it was.

    Returns:
        False where the C library is another one, whose way is left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST), (M_TOP_PAD, GROWTH))
    return all(
        [mallopt(parameter, value) == 1 for parameter, value in settings]
    )  # each of them, whatever the first says
