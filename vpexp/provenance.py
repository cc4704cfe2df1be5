"""Which code a run was made with: the commit and the versions of packages."""

import subprocess
from importlib.metadata import PackageNotFoundError, version

RECORDED_PACKAGES = ("vpexp", "torch", "pytorch-lightning", "datumaro", "mlflow", "faster-coco-eval", "numpy")
GIT_SECONDS = 10


def get_git_commit() -> str | None:
    """Find the commit of the folder that vpexp was started in, with ``+`` for uncommitted changes."""
    try:
        commit = _ask_git("rev-parse", "HEAD")
        changes = _ask_git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changes else "")


def get_versions() -> dict[str, str | None]:
    """List the versions of the packages that shape the numbers; None for one that is not installed as a package."""
    return {name: _get_version(name) for name in RECORDED_PACKAGES}


def _ask_git(*arguments: str) -> str:
    answer = subprocess.run(  # noqa: S603  fixed words
        ["git", *arguments], capture_output=True, text=True, check=True, timeout=GIT_SECONDS
    )
    return answer.stdout.strip()


def _get_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # vpexp run from a checkout that was not installed
        return None
