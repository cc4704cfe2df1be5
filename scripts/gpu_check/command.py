"""Check vpexp on a GPU, and measure it, in eight minutes.

    python scripts/check_gpu                            # the first GPU
    python scripts/check_gpu --device cuda:1 --minutes 15 --only agreement,encoder
    python scripts/check_gpu --device cpu --tiny        # a trial without a GPU: small sizes, a minute

It needs this checkout and, of packages: torch, pytorch-lightning, hydra-core, omegaconf, numpy, pillow, rich, pycocotools,
faster-coco-eval, safetensors, filelock, scipy, matplotlib, and for the quick start openvino, nncf and mlflow (pyproject.toml has them all).
Weights are drawn, or sam_micro's own; nothing is downloaded. What it writes lies in a temporary folder, which is removed.

Each part runs in a process of its own, and has a share of the time; one that fails says so and the next runs. The exit code is
0 where all have passed.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.gpu_check.parts import PARTS, Place

GRACE_SECONDS = 15.0
"""What a part may take beyond its time, before its process is ended."""
SHARES = {"agreement": 0.13, "encoder": 0.25, "training": 0.22, "quickstart": 0.3, "sam_micro": 0.1}
"""Of the time; a part may also use what those before it have left, and the last one takes all that is left."""


def main() -> None:
    """Read the command line; run the parts, or one of them here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, mps or cpu")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    parser.add_argument("--tiny", action="store_true", help="small sizes")
    parser.add_argument("--only", type=_read_parts, default=list(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        (name,) = arguments.only
        place = Place(arguments.device, arguments.tiny, arguments.inside, time.monotonic() + 60 * arguments.minutes)
        sys.exit(not PARTS[name](place))
    print(_describe_machine(arguments.device), flush=True)
    ends = time.monotonic() + 60 * arguments.minutes
    due = 0.0
    failed = []
    total = sum(SHARES[name] for name in arguments.only)
    for name in arguments.only:
        due += SHARES[name] / total
        seconds = max(1.0, ends - 60 * arguments.minutes * (1 - due) - time.monotonic())
        print(f"\n== {name} (at most {seconds:.0f} s)", flush=True)
        started = time.monotonic()
        if not _run(name, arguments.device, arguments.tiny, seconds):
            failed.append(name)
            print(f"{name}: FAILED", flush=True)
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    print(f"\nfailed: {', '.join(failed)}" if failed else "\nall parts passed", flush=True)
    sys.exit(bool(failed))


def _run(name: str, device: str, tiny: bool, seconds: float) -> bool:
    """Run a part in a process of its own, which is ended with all that it started where it does not end in time."""
    with tempfile.TemporaryDirectory(prefix="vpexp_check_gpu_", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, sys.argv[0], "--inside", folder, "--only", name, "--device", device]
        command += ["--minutes", str(seconds / 60), *(["--tiny"] if tiny else [])]
        process = subprocess.Popen(command, start_new_session=True)
        try:
            return process.wait(seconds + GRACE_SECONDS) == 0
        except subprocess.TimeoutExpired:
            print(f"{name}: not done after {seconds + GRACE_SECONDS:.0f} s", flush=True)
            return False
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _describe_machine(device: str) -> str:
    import torch

    what = f"{os.cpu_count()} CPU cores"
    if device.startswith("cuda") and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.device(device))
        what = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, {what}"
    return f"torch {torch.__version__} on {device}: {what}"


def _read_parts(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in PARTS:
            raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(PARTS)}")
    return names
