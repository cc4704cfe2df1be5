"""The parts of ``scripts/check_gpu``. Each prints what it finds as it goes, and returns whether all is as it must be.

Legend: N prompts, H W rows and columns of an image, S model input size, B images of a batch.
"""

import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.benchmarks.scene import write_scenes
from vpexp.console import console
from vpexp.devices import MIXED, SINGLE, find_native_bfloat16
from vpexp.embeddings.cache import encode_images
from vpexp.inference.load import load_model
from vpexp.inference.torch_predictor import TorchPredictor
from vpexp.models.sam import Sam
from vpexp.runfolder import RunFolder, read_metrics

ROOT = Path(__file__).parents[2]
BOXES, IMAGES = 24, 16
MOST_FLIPS = 1e-4
"""Share of the pixels of masks that may differ between CPU and GPU in float32."""
MEASURED_SECONDS = 2.0
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how a part runs.

    Attributes:
        device: torch's name of it.
        tiny: small sizes, to try the script itself.
        folder: for its files.
        ends: when it should be done, by the monotonic clock.
    """

    device: str
    tiny: bool
    folder: Path
    ends: float

    @property
    def seconds_left(self) -> float:
        """Seconds until then."""
        return self.ends - time.monotonic()

    @property
    def accelerator(self) -> list[str]:
        """What a command of vpexp is told."""
        device = torch.device(self.device)
        chosen = [f"trainer.accelerator={device.type}"]
        return chosen if device.index is None else [*chosen, f"trainer.devices=[{device.index}]"]


def check_agreement(place: Place) -> bool:
    """Compare masks of CPU and GPU: float32 must agree but for one pixel in 10,000, bfloat16 is told."""
    passed = True
    for name in ("sam_debug",) if place.tiny else ("sam_micro", "sam_tiny_vit"):
        sam = _build(name)
        rng = np.random.default_rng(0)
        image_HW3 = _draw_image(rng, sam.image_size)
        corners_N22 = np.sort(rng.uniform(0, sam.image_size, (BOXES, 2, 2)), axis=1)
        boxes_N4 = corners_N22.reshape(-1, 4).astype(np.float32)
        expected_NHW = _predict(sam, image_HW3, boxes_N4)
        sam.to(place.device)
        for precision, dtype in PRECISIONS.items():
            sam.encoder_dtype = dtype
            with torch.autocast(torch.device(place.device).type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                found_NHW = _predict(sam, image_HW3, boxes_N4)
            flips = float((found_NHW != expected_NHW).mean())
            fine = precision != "float32" or flips <= MOST_FLIPS
            passed = passed and fine
            verdict = "" if fine else f", more than {MOST_FLIPS * 1e4:g}: WRONG"
            _say(f"{name} {precision}: {flips * 1e4:.2f} of 10,000 mask pixels differ from the CPU's{verdict}")
    return passed


def measure_encoder(place: Place) -> bool:
    """Measure images a second by model, precision and batch, and the most memory."""
    names = ("sam_debug", "sam2_debug") if place.tiny else ("sam_tiny_vit", "sam_vit_b", "sam2_tiny")
    batches = (1, 2) if place.tiny else (1, 4, 8, 16, 32)
    for name in names:
        sam = _build(name).to(place.device)
        for precision, dtype in PRECISIONS.items():
            sam.encoder_dtype = dtype
            for batch in batches:
                if place.seconds_left < MEASURED_SECONDS:
                    _say(f"no time left for {name} {precision}, batch {batch}")
                    return True
                images_B3SS = torch.randn(batch, 3, sam.image_size, sam.image_size, device=place.device)
                _reset_peak(place.device)
                try:
                    seconds = _time(lambda: encode_images(sam, images_B3SS), place)  # noqa: B023 (called at once)
                except torch.OutOfMemoryError:
                    _say(f"{name} {precision}, batch {batch}: out of memory")
                    break
                rate, peak = batch / seconds, _read_peak(place.device)
                _say(f"{name} {precision}, batch {batch:2}: {rate:8.2f} images/s, peak {peak:.2f} GB")
    return True


def measure_training(place: Place) -> bool:
    """Train from the cache as a user does, in each precision: first epoch, steps a second, the most memory."""
    from vpexp import Engine

    console.quiet = True
    if place.tiny:
        settings: dict[str, Any] = {"experiment": "debug"}
    else:
        root = write_scenes(place.folder / "data", {"train": IMAGES, "val": 2}, size_hw=(683, 1024))
        settings = {"model": "sam_tiny_vit", "model.weights": "random", "data": "coco", "data.root": str(root)}
    settings |= dict(pair.split("=", 1) for pair in place.accelerator)
    settings |= {"callbacks": "none", "prompter": "none", "tracking": "none", "data.batch_size": 1, "stage.test": False}
    native = find_native_bfloat16(torch.device(place.device))
    for precision in (SINGLE, MIXED) if native or place.tiny else (SINGLE,):
        _reset_peak(place.device)
        # A cache for each: the filling belongs to the first epoch.
        folders = {"paths.cache_dir": str(place.folder / precision), "paths.output_dir": str(place.folder / "outputs")}
        result = Engine(overrides=settings | folders | {"trainer.precision": precision}).train(max_epochs=2)
        assert result.folder is not None
        folder = RunFolder(result.folder)
        cache = folder.read_run_json()["cache"]
        rows = [row for row in read_metrics(folder.metrics_csv) if row.get("train/loss")]
        (first, second), losses = (
            (float(row["train/iter_time"]) for row in rows),
            [float(row["train/loss"]) for row in rows],
        )
        _say(
            f"{precision}: {cache['encoded']} images encoded in {cache['seconds']:.1f} s, a step {first:.3f} s in the first epoch, "
            f"{second:.3f} s in the second ({1 / second:.2f} steps/s from the cache), loss {losses[1]:.4f}, peak {_read_peak(place.device):.2f} GB"
        )
        if not all(math.isfinite(loss) for loss in losses):
            return False
    return True


def run_quickstart(place: Place) -> bool:
    """Run the quick start of the README, from drawn data to INT8."""
    asked = ["experiment=debug"] if place.tiny else ["experiment=quickstart"]
    folders = [f"paths.output_dir={place.folder / 'outputs'}", f"paths.cache_dir={place.folder / 'cache'}"]
    command = [sys.executable, "-m", "vpexp", *asked, *place.accelerator, "tracking=none", *folders]
    started = time.monotonic()
    code, lines = _run(command, place, signal.SIGTERM, shown=("training on", "embeddings", "epoch ", "fine-tuning"))
    if code == 0:
        _say(f"done in {time.monotonic() - started:.0f} s")
        return True
    what = "not done" if place.seconds_left < STOP_SECONDS else f"ended with {code}"
    _say(f"{what} after {time.monotonic() - started:.0f} s; its last lines:\n" + "\n".join(lines[-12:]))
    return False


def train_sam_micro(place: Place) -> bool:
    """Train sam_micro for as long as is left, and count the steps."""
    output = place.folder / "sam_micro.safetensors"
    images, steps = ("1", "1") if place.tiny else ("64", "100000")
    command = [sys.executable, "scripts/train_sam_micro", "--output", str(output), "--device", place.device]
    command += ["--images", images, "--steps", steps, "--threads", str(os.cpu_count() or 1)]
    command += ["--measure-every", "1000000"] if not place.tiny else []
    code, lines = _run(command, place, signal.SIGINT, shown=("step",))
    state_file = output.with_suffix(".state")
    if code != 0 or not state_file.exists():
        _say("its last lines:\n" + "\n".join(lines[-12:]))
        return False
    state = torch.load(state_file, map_location="cpu", weights_only=True)
    done, seconds = state["step"], max(state["seconds"], 1e-9)
    _say(f"{done} steps in {seconds:.0f} s: {done / seconds:.2f} steps/s of {images} images")
    return bool(done > 0)


PARTS: Mapping[str, Callable[[Place], bool]] = {
    "agreement": check_agreement,
    "encoder": measure_encoder,
    "training": measure_training,
    "quickstart": run_quickstart,
    "sam_micro": train_sam_micro,
}
POLL_SECONDS = 0.2
STOP_SECONDS = 12.0
"""What a command that is asked to end may take for it."""


def _run(command: list[str], place: Place, ask: signal.Signals, shown: tuple[str, ...]) -> tuple[int | None, list[str]]:
    """Run a command in the checkout until it ends, or the part's time does: then it is asked to end, and after a while made to.

    Returns:
        Its exit code, None where it had to be made to end; and its lines, of which those that begin with ``shown`` are printed.
    """
    log = place.folder / "log.txt"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)
    with log.open(encoding="utf-8", errors="replace") as file:
        while process.poll() is None and place.seconds_left > STOP_SECONDS:
            time.sleep(POLL_SECONDS)
            for line in file:
                if line.startswith(shown):
                    _say(f"  {line.rstrip()}")
    if process.poll() is None:
        process.send_signal(ask)
    try:
        code: int | None = process.wait(max(STOP_SECONDS, place.seconds_left))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        code = None
    return code, log.read_text(encoding="utf-8", errors="replace").splitlines()


def _build(name: str) -> Sam:
    """Build a model with weights that are always the same, in eval mode on the CPU."""
    torch.manual_seed(0)
    return load_model(name, "auto" if name in ("sam_micro", "sam_debug", "sam2_debug") else "random")


def _predict(sam: Sam, image_HW3: NDArray[np.uint8], boxes_N4: NDArray[np.float32]) -> NDArray[np.bool_]:
    predictor = TorchPredictor(sam)
    return predictor.decode(predictor.embed(image_HW3), boxes=boxes_N4).masks


def _draw_image(rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """Draw smooth blotches, uint8 [H, W, 3]."""
    from PIL import Image

    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def _time(work: Callable[[], Any], place: Place) -> float:
    """Measure the seconds of one call, after one that does not count."""
    work()
    _wait(place.device)
    started, calls = time.monotonic(), 0
    while calls == 0 or time.monotonic() - started < min(MEASURED_SECONDS, 0.2 if place.tiny else MEASURED_SECONDS):
        work()
        _wait(place.device)
        calls += 1
    return (time.monotonic() - started) / calls


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device.startswith("mps"):
        torch.mps.synchronize()


def _reset_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def _read_peak(device: str) -> float:
    """Return the most memory in use since then on a GPU, in this process on a CPU, in 10^9 bytes."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _say(line: str) -> None:
    print(line, flush=True)
