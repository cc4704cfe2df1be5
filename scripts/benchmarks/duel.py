"""Sides in turns: A B A B ..., each in a process of its own, after both have shown that they compute the same."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.benchmarks.settings import Settings

ROOT = Path(__file__).parents[2]
SHOWN_LINES = 15
PLAIN = "plain"

Checks = Mapping[str, NDArray[Any]]


class BenchmarkError(RuntimeError):
    """A side failed, or the two sides do not compute the same thing."""


@dataclass(frozen=True, slots=True)
class Turn:
    """How long a turn took: by the clock, and of the process's CPU time, which others on the machine do not lengthen."""

    seconds: float
    cpu: float


class Side:
    """A running side."""

    def __init__(self, work: str, name: str, settings: Settings) -> None:
        self.work, self.name = work, name
        self.folder = settings.folder
        self._log = (settings.folder / f"{work}_{name}_{settings.model}.log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scripts.benchmarks.side", work, name],
            cwd=ROOT,
            env=build_environment(settings.threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.ask(settings.to_json())

    def ask(self, line: str) -> dict[str, Any]:
        """Send a line and wait for the answer.

        Raises:
            BenchmarkError: the process is gone.
        """
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._fail() from None
        answer = self._process.stdout.readline()
        if not answer:
            raise self._fail()
        return dict(json.loads(answer))

    def check(self) -> dict[str, NDArray[Any]]:
        """Get what the other side must compute too."""
        path = self.folder / f"{self.work}_{self.name}.npz"
        self.ask(f"check {path}")
        with np.load(path) as content:
            return dict(content)

    def turn(self) -> Turn:
        """Do the work once."""
        return Turn(**self.ask("turn"))

    def peak(self) -> int:
        """Get the most memory that the process has held so far, in bytes."""
        return int(self.ask("peak")["bytes"])

    def close(self) -> None:
        """End the process."""
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._log.close()

    def _fail(self) -> BenchmarkError:
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()[-SHOWN_LINES:]
        return BenchmarkError("\n".join([f"{self.work}: the side '{self.name}' ended with code {code}", *lines]))


def build_environment(threads: int) -> dict[str, str]:
    """Build the environment of all processes that are measured: the same threads, and nothing is downloaded."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(ROOT),
    }


@contextmanager
def open_side(work: str, name: str, settings: Settings) -> Iterator[Side]:
    """Start a side, and end it in any case."""
    side = Side(work, name, settings)
    try:
        yield side
    finally:
        side.close()


@dataclass(frozen=True, slots=True)
class Comparison:
    """One of our sides against the plain one.

    Attributes:
        ours: median of all rounds, in seconds or what ``unit`` says.
        plain: the same of the plain side; None where it cannot do the work.
        ratio: median of the rounds' ratios, plain to ours.
        low: the smallest of them.
        high: the largest.
        cpu_ratio: median of the rounds' ratios of CPU time.
        rounds: how many count; the first, which warms up, does not.
        unit: of ``ours`` and ``plain``.
        checked: how both sides were found to compute the same.
    """

    ours: float
    plain: float | None
    ratio: float | None
    low: float | None = None
    high: float | None = None
    cpu_ratio: float | None = None
    rounds: int = 1
    unit: str = "s"
    checked: str = ""


def compare(ours: float, plain: float | None, *, unit: str, checked: str = "") -> Comparison:
    """Compare two numbers that were taken once."""
    return Comparison(ours, plain, None if plain is None else plain / ours, unit=unit, checked=checked)


def duel(
    work: str,
    settings: Settings,
    names: Sequence[str],
    rounds: int,
    *,
    tolerances: Mapping[str, float],
    plain: str = PLAIN,
) -> dict[str, Comparison]:
    """Let sides take turns.

    Args:
        work: module of this package that has the sides.
        settings: for all of them.
        names: our sides; the plain one is added.
        rounds: that count, after one that does not.
        tolerances: how far a checked array may be from the plain side's, against the plain one's largest magnitude.
        plain: name of the plain side.

    Returns:
        A comparison for each of our sides.

    Raises:
        BenchmarkError: a side failed, or did not compute what the plain one does.
    """
    with ExitStack() as stack:
        sides = {name: stack.enter_context(open_side(work, name, settings)) for name in (*names, plain)}
        expected = sides[plain].check()
        checked = {name: assert_same(work, name, sides[name].check(), expected, tolerances) for name in names}
        turns: dict[str, list[Turn]] = {name: [] for name in sides}
        for count in range(rounds + 1):
            for name, side in sides.items():
                turn = side.turn()
                if count:
                    turns[name].append(turn)
    return {name: summarize(turns[name], turns[plain], checked[name]) for name in names}


def assert_same(work: str, name: str, got: Checks, expected: Checks, tolerances: Mapping[str, float]) -> str:
    """Compare what a side computed with what the plain one did; returns the differences in words.

    Only what both sides give is compared, and at least one thing must be.

    Raises:
        BenchmarkError: they differ.
    """
    shared = [key for key in expected if key in got]
    if not shared:
        raise BenchmarkError(f"{work}: nothing shows that '{name}' computes what the plain side does")
    described = []
    for key in shared:
        if got[key].shape != expected[key].shape:
            raise BenchmarkError(f"{work}: {key} of '{name}' is {got[key].shape}, plain {expected[key].shape}")
        largest = float(np.abs(expected[key]).max())
        difference = float(np.abs(got[key] - expected[key]).max()) / max(largest, 1e-12)
        if not difference <= tolerances[key]:
            raise BenchmarkError(
                f"{work}: {key} of '{name}' differs from the plain side's by {difference:.2e} of its largest value "
                f"({largest:.3g}), more than {tolerances[key]:.0e}: they do not compute the same"
            )
        described.append(f"{key} {difference:.0e}")
    return ", ".join(described)


def summarize(ours: list[Turn], plain: list[Turn], checked: str) -> Comparison:
    """Turn the turns of two sides into medians and ratios."""
    ratios = [b.seconds / a.seconds for a, b in zip(ours, plain, strict=True)]
    return Comparison(
        statistics.median(turn.seconds for turn in ours),
        statistics.median(turn.seconds for turn in plain),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        statistics.median(b.cpu / a.cpu for a, b in zip(ours, plain, strict=True)),
        len(ratios),
        checked=checked,
    )
