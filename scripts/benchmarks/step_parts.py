"""Where the time of a training step goes: 2 photos with 12 objects each, 1024 px, embeddings from the cache, one thread.

    .venv/bin/python -m scripts.benchmarks.step_parts [--model sam_tiny_vit] [--steps 5]

Seconds are the process's CPU time, which others on the machine lengthen less than the clock's. Beside it stand the products' operations
and how fast they are against a product of two large matrices, measured in turns with the steps.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from scripts.benchmarks.scene import write_scenes
from scripts.benchmarks.settings import Settings
from scripts.benchmarks.train_step import Ours
from vpexp.models.sam import Sam
from vpexp.training import step_loss

PARTS = ("data", "decoder forward", "loss and enlarging", "backward", "optimizer", "the rest")
SIDE = 2048  # of the matrices whose product is the measure


class Clock:
    """Adds up the CPU time of the parts of a step; a part inside another one is taken from it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = [0.0]

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Measure what is done inside."""
        started = time.process_time()
        self._inside.append(0.0)
        try:
            yield
        finally:
            took = time.process_time() - started
            self.seconds[part] += took - self._inside.pop()
            self._inside[-1] += took

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Measure a function whenever it is called."""

        def measured(*arguments: Any, **options: Any) -> Any:
            with self.measure(part):
                return function(*arguments, **options)

        return measured


def measure_step(contender: Ours, clock: Clock) -> None:
    """Do one step."""
    contender.turns += 1
    with clock.measure("the rest"):
        with clock.measure("data"):
            batch = contender._read(contender.loop, contender.turns)  # noqa: SLF001 (a part of this benchmark)
        loss = contender.loop.module.training_step(batch, 0)
        loss.backward()
        with clock.measure("optimizer"):
            contender.optimizer.step()
            contender.optimizer.zero_grad()


def count_operations(contender: Ours) -> dict[str, float]:
    """Count the operations of the products of a step, in 10^9, by part."""
    total = dict.fromkeys(("decoder forward", "backward"), 0.0)

    def count(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        if part not in total:
            return function

        def counted(*arguments: Any, **options: Any) -> Any:
            with FlopCounterMode(display=False) as counter:
                found = function(*arguments, **options)
            total[part] += counter.get_total_flops() / 1e9
            return found

        return counted

    with _patched(count):
        contender.turn()
    return total


def measure_peak() -> float:
    """Measure the product of two large matrices, in 10^9 operations a second of CPU time."""
    left, right = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    started = time.process_time()
    left @ right
    return 2 * SIDE**3 / (time.process_time() - started) / 1e9


@contextmanager
def _patched(wrap: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Wrap the parts of a step: decoding, the loss of a chunk, and the gradient of one."""
    kept = Sam.decode, step_loss.StepLoss._compute_chunk, torch.autograd.grad  # noqa: SLF001
    Sam.decode = wrap("decoder forward", kept[0])  # type: ignore[method-assign]
    step_loss.StepLoss._compute_chunk = wrap("loss and enlarging", kept[1])  # type: ignore[method-assign]  # noqa: SLF001
    torch.autograd.grad = wrap("backward", kept[2])
    try:
        yield
    finally:
        Sam.decode, step_loss.StepLoss._compute_chunk, torch.autograd.grad = kept  # type: ignore[method-assign]  # noqa: SLF001


def main() -> None:
    """Read the command line, measure, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sam_tiny_vit")
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="vpexp_step_parts_") as name:
        folder = Path(name)
        data = write_scenes(folder / "data", {"train": 2, "val": 1})
        contender = Ours(Settings(arguments.model, folder, data, Path("random"), batch_size=2))
        operations = count_operations(contender)
        steps, peaks = [], []
        for _ in range(arguments.steps):
            clock = Clock()
            with _patched(clock.wrap):
                measure_step(contender, clock)
            steps.append(clock.seconds)
            peaks.append(measure_peak())
    peak = statistics.median(peaks)
    total = statistics.median(sum(step.values()) for step in steps)
    print(
        f"{arguments.model}: a step takes {total:.2f} s of CPU time; the product of matrices reaches {peak:.0f} GFLOP/s"
    )
    print("| part | seconds | share | GFLOP | of the peak |")
    print("|---|--:|--:|--:|--:|")
    for part in PARTS:
        seconds = statistics.median(step[part] for step in steps)
        count = operations.get(part)
        ends = "- | -" if count is None else f"{count:.0f} | {count / seconds / peak:.0%}"
        print(f"| {part} | {seconds:.3f} | {seconds / total:.0%} | {ends} |")


if __name__ == "__main__":
    main()
