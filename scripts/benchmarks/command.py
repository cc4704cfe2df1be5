"""Compare vpexp with a plain implementation of the same work, side by side on this machine.

    .venv/bin/python scripts/benchmark.py                                     # all works, sam_tiny_vit
    .venv/bin/python scripts/benchmark.py --only decoder,train_step --model sam_vit_b --json benchmark.json

The plain side is what one writes today from the original packages: transformers' SamModel (ViT-B), or MobileSAM's encoder
with segment-anything's decoder (tiny); encoder every step, loss at original size, all boxes of an image in one decoder
call. Both sides run on the CPU in processes of their own and take turns, and both must compute the same, or it fails.
Images (2048 x 1365, 12 objects each) and weights are generated into a temporary folder; nothing is downloaded.
"""

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from scripts.benchmarks.duel import BenchmarkError, Comparison
from scripts.benchmarks.results import build_table, describe, merge, read_results
from scripts.benchmarks.works import WORKS, Workshop
from vpexp.console import console, log_line
from vpexp.runtime import quiet_libraries

TERMINATED = 128 + signal.SIGTERM
MODELS = ("sam_tiny_vit", "sam_vit_b", "sam_micro", "sam2_tiny", "sam2_small", "sam2_base_plus", "sam2_large")


def main() -> None:
    """Read the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=_read_works, default=list(WORKS), help=f"some of {','.join(WORKS)}")
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--rounds", type=int, default=5, help="that count, after one that does not")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each side")
    parser.add_argument("--peer", type=Path, help="python of an environment with otx[base]==2.4.6, to measure it too")
    parser.add_argument("--json", type=Path, help="file to write the results into; others that it holds stay")
    arguments = parser.parse_args()
    if arguments.json:
        try:
            read_results(arguments.json)  # before hours of measuring
        except BenchmarkError as error:
            parser.error(str(error))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # so that processes and folders are put away
    quiet_libraries()
    measured: dict[str, Comparison] = {}
    failed = False
    with tempfile.TemporaryDirectory(prefix="vpexp_benchmark_") as folder:
        workshop = Workshop(Path(folder), arguments.model, arguments.threads, arguments.rounds, peer=arguments.peer)
        for name in arguments.only:
            started = time.perf_counter()
            try:
                rows = WORKS[name](workshop)
            except BenchmarkError as error:
                failed = True
                log_line(str(error), style="red")
                continue
            found = {f"{work}/{arguments.model}": row for work, row in rows.items()}
            measured |= found
            log_line(f"{name}: measured in {time.perf_counter() - started:.0f} s")
            if arguments.json:
                merge(arguments.json, found)
    console.print(build_table(measured, arguments.threads))
    for line in describe(measured):
        log_line(line)
    sys.exit(failed)


def _read_works(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in WORKS:
            raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(WORKS)}")
    return names
