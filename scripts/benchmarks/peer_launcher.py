"""The peer in a process of its own: OTX's visual prompting, run by the interpreter of an environment that has it.

``measure_peer`` measures it alone; ``open_peer`` keeps it alive, so that it can take turns with something else. Works:

``read``        one image: decode, resize, pad, normalise, rasterise its objects
``predict``     the objects of one image that was read before
``test``        the same, and its update of the metrics
``train``       forward, loss, backward and Adam on a batch that was read before
``test_image``  from file to the metrics' values: read, test, compute
``train_step``  read a batch, then train
"""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

PEER = Path(__file__).with_name("peer.py")
WORKS = ("read", "predict", "test", "train", "test_image", "train_step")
MODELS = {"sam_tiny_vit": "tiny_vit", "sam_vit_b": "vit_b"}
SHOWN_LINES = 15


class PeerError(RuntimeError):
    """The peer cannot be run there, or failed."""


def measure_peer(
    python: Path, *, works: Sequence[str] = WORKS, rounds: int = 3, **options: Any
) -> dict[str, dict[str, Any]]:
    """Measure the peer alone, each work in a process of its own.

    Args:
        python: interpreter of an environment with OTX 2.2 to 2.4.
        works: what to measure.
        rounds: that count, after one that does not.
        options: see ``build_command``.

    Returns:
        For each work ``seconds`` and ``cpu_seconds`` (medians), ``all_seconds``, ``all_cpu_seconds`` and ``peak_bytes``,
        the most memory that its process held.

    Raises:
        PeerError: it cannot be run there, or failed.
    """
    measured = {}
    for work in works:
        command = [*build_command(python, **options), "--rounds", str(rounds), "--works", work]
        with TemporaryFile("w+") as log:
            try:
                done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, check=False)
            except OSError as error:
                raise PeerError(
                    f"{python}: cannot be run ({error}); give the python of an environment with OTX"
                ) from error
            if done.returncode:
                raise _explain(python, done.returncode, log)
        measured[work] = dict(json.loads(done.stdout)["works"][work])
    return measured


def build_command(
    python: Path,
    *,
    model: str = "sam_tiny_vit",
    weights: Path | None = None,
    data: Path | None = None,
    image_size: int = 1024,
    size_hw: tuple[int, int] = (1365, 2048),
    objects: int = 12,
    batch: int = 1,
    threads: int = 1,
) -> list[str]:
    """Build the command that runs the peer.

    Args:
        python: its interpreter.
        model: ``sam_tiny_vit`` or ``sam_vit_b``.
        weights: file in the official layout; random weights without it.
        data: folder of a COCO data set, of which the first images of ``train`` are used; images are drawn without it.
        image_size: input size of the model.
        size_hw: height and width of drawn images, pixels.
        objects: on a drawn image.
        batch: images a training step.
        threads: CPU threads.

    Raises:
        PeerError: the peer has no such model.
    """
    if model not in MODELS:
        raise PeerError(f"the peer has no {model}: it has {' and '.join(MODELS)}")
    options: dict[str, Any] = {
        "model": MODELS[model],
        "weights": weights,
        "data": data,
        "image-size": image_size,
        "height": size_hw[0],
        "width": size_hw[1],
        "objects": objects,
        "batch": batch,
        "threads": threads,
    }
    given = {name: str(value) for name, value in options.items() if value is not None}
    return [str(python), str(PEER), *(word for name, value in given.items() for word in (f"--{name}", value))]


class Peer:
    """The running peer."""

    def __init__(self, python: Path, command: Sequence[str], log: IO[str]) -> None:
        self._python, self._log = python, log
        try:
            self._process = subprocess.Popen(
                [*command, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        except OSError as error:
            raise PeerError(f"{python}: cannot be run ({error}); give the python of an environment with OTX") from error

    def wait_until_built(self) -> None:
        """Wait for its model.

        Raises:
            PeerError: it failed.
        """
        self._read()

    def turn(self, work: str) -> dict[str, float]:
        """Do a work once; returns its ``seconds`` and ``cpu_seconds``.

        Raises:
            PeerError: it failed.
        """
        return self._ask(f"turn {work}")

    def peak(self) -> int:
        """Get the most memory that its process has held so far, in bytes.

        Raises:
            PeerError: it failed.
        """
        return int(self._ask("peak")["bytes"])

    def close(self) -> None:
        """End its process."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise _explain(self._python, self._process.wait(), self._log) from None
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        answer = self._process.stdout.readline()
        if not answer:
            raise _explain(self._python, self._process.wait(), self._log)
        return dict(json.loads(answer))


@contextmanager
def open_peer(python: Path, **options: Any) -> Iterator[Peer]:
    """Start the peer, wait until it is built, and end it in any case.

    Args:
        python: interpreter of an environment with OTX 2.2 to 2.4.
        options: see ``build_command``.

    Raises:
        PeerError: it cannot be run there, or failed.
    """
    with TemporaryFile("w+") as log:
        peer = Peer(python, build_command(python, **options), log)
        try:
            peer.wait_until_built()
            yield peer
        finally:
            peer.close()


def _explain(python: Path, code: int, log: IO[str]) -> PeerError:
    log.seek(0)
    lines = log.read().strip().splitlines()[-SHOWN_LINES:]
    return PeerError("\n".join([f"{python}: the peer ended with code {code}", *lines]))
