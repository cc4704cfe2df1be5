"""What people are told of a store: once when it goes away, once when it is back, however many runs of a process use it."""

import threading

from vpexp.console import say

_lock = threading.Lock()
_away: set[str] = set()


def tell_away(uri: str, reason: str) -> None:
    """Tell that a store cannot be used, unless people know."""
    with _lock:
        known = uri in _away
        _away.add(uri)
    if not known:
        say(
            f"tracking: {uri} cannot be used ({reason}); going on without it, what it misses is kept in the run's folder",
            style="yellow",
        )


def tell_back(uri: str) -> None:
    """Tell that a store is back, if people were told that it was away."""
    with _lock:
        known = uri in _away
        _away.discard(uri)
    if known:
        say(f"tracking: {uri} is back")


def forget(uri: str) -> None:
    """The run is over: the next one tells anew."""
    with _lock:
        _away.discard(uri)
