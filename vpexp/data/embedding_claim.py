"""Who encodes an image where several processes fill one cache: whoever holds the lock of its draft.

The draft of an entry (``<image key>.part``) is the file that becomes the entry, and the claim to write it: it is locked
as long as its writer lives, and a killed writer's lock goes with it. File systems that know no locks give every writer
a draft of its own: an image may then be encoded twice, and never wrongly.
"""

import contextlib
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

DRAFT = ".part"


class Claim:
    """The right to write one entry; ``publish`` or ``release`` ends it."""

    def __init__(self, entry: Path, draft: Path, descriptor: int) -> None:
        self.entry = entry
        self._draft = draft
        self._descriptor = descriptor

    def publish(self, parts: Sequence[memoryview]) -> None:
        """Write the entry and give it its name; on an OSError nothing is left behind.

        Raises:
            OSError: the disk is full, and the like.
        """
        try:
            os.ftruncate(self._descriptor, 0)  # what a killed writer may have left
            for part in parts:
                _write_all(self._descriptor, part)
            self._draft.replace(self.entry)
        except BaseException:
            self.release()
            raise
        os.close(self._descriptor)

    def release(self) -> None:
        """Give the claim up; the lock goes last, so that nobody takes over a draft that is about to go."""
        with contextlib.suppress(OSError):
            if is_same_file(self._descriptor, self._draft):
                self._draft.unlink()
        os.close(self._descriptor)


def claim_entry(entry: Path) -> Claim | None:
    """Claim the writing of an entry that is missing.

    Returns:
        None where another process is writing it, or has written it by now.

    Raises:
        OSError: the folder cannot be written.
    """
    draft = entry.with_suffix(DRAFT)
    while True:
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT, 0o666)
        locked = try_lock(descriptor)
        if locked and is_same_file(descriptor, draft):
            claim = Claim(entry, draft, descriptor)
            if not entry.exists():
                return claim
            claim.release()
            return None
        os.close(descriptor)
        if locked is None:
            return _claim_unlocked(entry, draft)
        if not locked:
            return None
        # The draft that was opened has become an entry, or went away, before its lock was had: look again.


def try_lock(descriptor: int) -> bool | None:
    """Lock a file without waiting; None where that cannot be done at all."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # file systems that know no locks say so in several ways
        return None
    return True


def is_same_file(descriptor: int, path: Path) -> bool:
    """Say whether a path still leads to the file that was opened."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)


def _claim_unlocked(entry: Path, draft: Path) -> Claim | None:
    with contextlib.suppress(OSError):
        draft.unlink()
    if entry.exists():
        return None
    draft = entry.with_name(f"{entry.stem}.{uuid.uuid4().hex}{DRAFT}")
    return Claim(entry, draft, os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))


def _write_all(descriptor: int, part: memoryview) -> None:
    while part:
        part = part[os.write(descriptor, part) :]
