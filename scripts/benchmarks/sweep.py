"""A sweep of 9 jobs, 3 learning rates x 3 batch sizes, from the command to its end.

Ours: ``python -m vpexp -m``, nine runs in this machine's basic launcher, one after another in one process. Plain: one run
of the same shape, start-up included, times nine. Both validate after every epoch; ours also before and after training.
"""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from scripts.benchmarks import ours
from scripts.benchmarks.duel import ROOT, SHOWN_LINES, BenchmarkError, Comparison, build_environment, compare
from scripts.benchmarks.settings import Settings

LEARNING_RATES = "1e-6,1e-5,1e-4"
BATCH_SIZES = "1,2,4"
JOBS = 9
PLAIN_BATCH_SIZE = 2  # the one in the middle


def measure(settings: Settings, images: int) -> dict[str, Comparison]:
    """Run the sweep and a plain job; count the passes of the encoder.

    Args:
        settings: the data holds only what the sweep needs.
        images: of train and val together.

    Raises:
        BenchmarkError: a run failed, or the sweep did not encode each image once.
    """
    overrides = [
        *(asked for asked in ours.list_overrides(settings) if not asked.startswith("data.batch_size=")),
        f"trainer.max_epochs={settings.epochs}",
        "stage.controls=false",
        "stage.overlays=0",
        f"optimizer.lr={LEARNING_RATES}",
        f"data.batch_size={BATCH_SIZES}",
    ]
    # Other works may have encoded the same images, and embeddings are found by what is in an image.
    shutil.rmtree(settings.folder / "cache" / "embeddings", ignore_errors=True)
    ours_seconds = _time([sys.executable, "-m", "vpexp", "-m", *overrides], settings)
    passes = _count_passes(settings.folder / "outputs" / "sweeps")
    plain_settings = replace(settings, batch_size=PLAIN_BATCH_SIZE)
    plain_seconds = JOBS * _time(
        [sys.executable, "-m", "scripts.benchmarks.plain_job"], settings, plain_settings.to_json()
    )
    if passes != images:
        raise BenchmarkError(f"sweep: {images} images went through the encoder {passes} times, not once each")
    plain_passes = JOBS * settings.epochs * images
    return {
        "sweep": compare(ours_seconds, plain_seconds, unit="s", checked=f"{JOBS} runs finished"),
        "sweep_encoder_passes": compare(passes, plain_passes, unit="images", checked=f"{images} images"),
    }


def _time(command: list[str], settings: Settings, text: str = "") -> float:
    started = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=build_environment(settings.threads),
        input=text + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()[-SHOWN_LINES:]
        raise BenchmarkError("\n".join([f"sweep: {' '.join(command[:4])} ended with code {done.returncode}", *lines]))
    return seconds


def _count_passes(sweeps: Path) -> int:
    records = [json.loads(path.read_text()) for path in sweeps.glob("*/*/run.json")]
    finished = [record for record in records if record["status"] == "FINISHED"]
    if len(finished) != JOBS:
        raise BenchmarkError(f"sweep: {len(finished)} of {JOBS} jobs finished below {sweeps}")
    return sum(int(record["encoder_passes"]) for record in finished)
