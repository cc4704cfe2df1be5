"""The process that vpexp runs in: the environment variables that it reads and sets, and how memory is given out.

Read: ``VPEXP_CACHE_DIR`` (downloaded weights, generated images), ``HYDRA_FULL_ERROR`` (whole tracebacks),
``OMP_NUM_THREADS`` (CPU threads; launchers set it for jobs that share a machine).
Set, unless the user has set them: switches that stop libraries from phoning home or printing advertisements; ``USER`` and
``HOME`` where the system knows no user of this number.
"""

import ctypes
import logging
import os
import pwd
import sys
import tempfile
import warnings
from pathlib import Path

CACHE_DIR_VARIABLE = "VPEXP_CACHE_DIR"
QUIET_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # from a thread, in the midst of progress bars
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # a server that is down is noticed in seconds; who asked tries again
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",  # or lines of different jobs are taken for one
    "POSSIBLE_USER_WARNINGS": "off",  # Lightning's tips
    "GIT_PYTHON_REFRESH": "quiet",
    "DATUMARO_TELEMETRY": "0",
}
_NOISY_LOGGERS = (
    *("alembic", "mlflow", "urllib3", "pytorch_lightning", "lightning"),
    *("matplotlib", "datumaro", "faster_coco_eval"),
)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of glibc's ``mallopt`` (malloc.h)."""

LARGEST = 2**31 - 1
SETTINGS = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST), (M_TOP_PAD, 64 * 1024 * 1024))


def find_cache_dir() -> Path:
    """Name the folder of downloaded weights and drawn images: $VPEXP_CACHE_DIR, else ~/.cache/vpexp."""
    return Path(os.environ.get(CACHE_DIR_VARIABLE) or "~/.cache/vpexp").expanduser()


def find_thread_limit() -> int | None:
    """Find out how many CPU threads this process may use, for libraries that do not ask OMP_NUM_THREADS themselves."""
    limit = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(limit) if limit.isdecimal() and int(limit) > 0 else None


def quiet_libraries() -> None:
    """Turn off telemetry and lower the voice of libraries whose notes the user cannot act on."""
    for name, value in QUIET_DEFAULTS.items():
        os.environ.setdefault(name, value)
    name_user()
    # OpenVINO and NNCF ask no variable: they phone home unless this package is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    # Lightning and torch warn of few or many workers and short epochs: choices that the configuration states.
    warnings.filterwarnings("ignore", module=r"pytorch_lightning\..*")
    warnings.filterwarnings("ignore", message=r".*does not have many workers")
    warnings.filterwarnings("ignore", message=r"This DataLoader will create \d+ worker processes")
    warnings.filterwarnings("ignore", message=r".*(LeafSpec|TreeSpec).*deprecated.*")
    # What is wrong with image files is counted; a name in a script that a plot's font does not have is no fault.
    warnings.filterwarnings("ignore", module=r"PIL\..*")  # of large ones too: data/image_files.py sets a limit
    warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")


def name_user() -> None:
    """Where the system knows no user of this number, as in a container, set ``USER`` and a ``HOME`` that can be written.

    Libraries ask for both, and end with an error where there is none.
    """
    number = os.getuid()
    try:
        pwd.getpwuid(number)
    except KeyError:
        os.environ.setdefault("USER", str(number))
        if os.access(os.environ.get("HOME", ""), os.W_OK):
            return
        home = Path(tempfile.gettempdir()) / f"vpexp_home_{number}"
        home.mkdir(mode=0o700, exist_ok=True)
        if home.is_symlink() or home.stat().st_uid != number:  # somebody else's
            home = Path(tempfile.mkdtemp(prefix="vpexp_home_"))
        os.environ["HOME"] = str(home)


def keep_freed_memory() -> bool:
    """Let the process keep the memory that it frees for what it asks for next.

    glibc fetches each large block anew from the system, which hands out pages one by one and fills them with zeros: at 1024 px
    a third of a training step went into that. In return the process stays at its largest size, and gaps between blocks add to
    that (at 1024 px 1.8 GB instead of 1.3).

    Returns:
        False where the C library is another one, whose way is left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    taken = [mallopt(parameter, value) for parameter, value in SETTINGS]
    return all(taken)
