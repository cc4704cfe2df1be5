"""Ours and the peer in turns, on the same images and weights.

The two do not compute the same: the peer applies the sigmoid twice and trains with drifting BatchNorms, so nothing is checked.
"""

from pathlib import Path

from scripts.benchmarks.duel import BenchmarkError, Comparison, Turn, open_side, summarize
from scripts.benchmarks.peer_launcher import PeerError, open_peer
from scripts.benchmarks.settings import Settings


def duel_with_peer(python: Path, work: str, settings: Settings, rounds: int) -> Comparison:
    """Let our side of a work and the peer take turns.

    Args:
        python: interpreter of an environment with OTX.
        work: ``train_step`` or ``test_image``.
        settings: for both.
        rounds: that count, after one that does not.

    Raises:
        BenchmarkError: a side failed.
    """
    options = {"model": settings.model, "weights": settings.weights, "data": settings.data}
    ours: list[Turn] = []
    theirs: list[Turn] = []
    try:
        with (
            open_side(work, "ours", settings) as side,
            open_peer(python, **options, batch=settings.batch_size, threads=settings.threads) as peer,
        ):
            for count in range(rounds + 1):
                mine, found = side.turn(), peer.turn(work)
                if count:
                    ours.append(mine)
                    theirs.append(Turn(found["seconds"], found["cpu_seconds"]))
    except PeerError as error:
        raise BenchmarkError(f"{work}: {error}") from error
    return summarize(ours, theirs, "not comparable, see peer_duel.py")
