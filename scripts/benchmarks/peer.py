#!/usr/bin/env python3
"""Time visual prompting of OpenVINO Training Extensions 2.2 to 2.4, the peer; runs inside the peer's own interpreter.

    python3.11 -m venv otx_env && otx_env/bin/pip install "otx[base]==2.4.6"            # 7 GB
    otx_env/bin/python scripts/benchmarks/peer.py --model tiny_vit --rounds 3 --threads 1

Imports nothing of vpexp. Reading, model, loss, optimizer and metrics are the peer's. Prints one line of JSON;
``scripts/benchmarks/peer_launcher.py`` calls it and says what is in it.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[2]

MODELS = ("tiny_vit", "vit_b")
WORKS = ("read", "predict", "test", "train", "test_image", "train_step")
TRAINING = ("train", "train_step")
KIB = 1024


def main() -> None:
    """Build the peer, then measure a number of rounds, or what the pipe asks for."""
    arguments = parse_arguments()
    sys.path[0] = str(ROOT)  # not this folder: its files would hide modules of the same names
    answers = keep_answers_apart()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(arguments.threads)
    import torch

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        peer = build_peer(arguments, Path(folder))
        if arguments.serve:
            serve(peer, answers)
        else:
            measured = {name: measure(peer, name, arguments.rounds) for name in arguments.works}
            log_line(answers, {**describe(arguments), "works": measured, "peak_bytes": read_peak()})


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="tiny_vit")
    parser.add_argument("--weights", type=Path, help="file in the official layout; random weights without it")
    parser.add_argument("--image-size", type=int, default=1024, help="input size of the model")
    parser.add_argument("--data", type=Path, help="folder with images/ and annotations/instances_train.json; or draw:")
    parser.add_argument("--height", type=int, default=1365)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--objects", type=int, default=12)
    parser.add_argument("--batch", type=int, default=1, help="images a training step; the peer's own is 2")
    parser.add_argument("--rounds", type=int, default=3, help="that count, after one that does not")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--works", nargs="+", choices=WORKS, default=list(WORKS), help="in this order; one alone for its peak of memory"
    )
    parser.add_argument("--serve", action="store_true", help="read 'turn WORK' and 'peak' from standard input")
    return parser.parse_args()


def keep_answers_apart() -> TextIO:
    """Send all that libraries print to standard error; returns the true standard output."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def log_line(answers: TextIO, content: dict[str, Any]) -> None:
    """Write one line of JSON."""
    answers.write(json.dumps(content) + "\n")
    answers.flush()


class Peer:
    """The peer, ready to work."""

    def __init__(self, model: Any, reader: Any, batch: int) -> None:
        self.model, self.reader = model, reader
        self.batch = batch
        self._training_batch, self._test_batch = self._read(batch), self._read(1)
        optimizers, _ = model.configure_optimizers()
        self._optimizer = optimizers[0]
        self.works: dict[str, Callable[[], None]] = {
            "read": self.read,
            "predict": self.predict,
            "test": self.test,
            "train": self.train,
            "test_image": self.test_image,
            "train_step": self.train_step,
        }

    def turn(self, work: str) -> dict[str, float]:
        """Do a work once; returns seconds of the clock and of the processor."""
        self.model.train(work in TRAINING)
        self.model.metric.reset()
        started, started_cpu = time.perf_counter(), time.process_time()
        self.works[work]()
        return {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - started_cpu}

    def read(self) -> None:
        """Read one image: decode, resize, pad, normalise, rasterise its objects."""
        self._read(1)

    def predict(self) -> None:
        """Predict the objects of one image, at its own resolution."""
        import torch

        with torch.inference_mode():
            self.model(self._test_batch)

    def test(self) -> None:
        """Predict one image and hand it to the four metrics."""
        import torch

        with torch.inference_mode():
            self.model.test_step(self._test_batch, 0)

    def train(self) -> None:
        """Train one step: forward, loss, backward, Adam, in the order in which Lightning calls them."""
        loss = self.model.training_step(self._training_batch, 0)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()

    def test_image(self) -> None:
        """Test one image from its file to the values of the metrics."""
        self._test_batch = self._read(1)
        self.test()
        self.model.metric.compute()

    def train_step(self) -> None:
        """Train one step, the reading of its images included."""
        self._training_batch = self._read(self.batch)
        self.train()

    def _read(self, count: int) -> Any:
        return self.reader.collate_fn([self.reader[index] for index in range(count)])


def build_peer(arguments: argparse.Namespace, folder: Path) -> Peer:
    """Build the peer on the images that are asked for; those drawn are written into the folder."""
    from scripts.benchmarks.peer_model import build_model, build_reader
    from scripts.benchmarks.peer_scenes import draw_scenes, read_scenes

    size_hw = (arguments.height, arguments.width)
    scenes = (
        read_scenes(arguments.data, arguments.batch)
        if arguments.data
        else draw_scenes(folder, arguments.batch, size_hw=size_hw, objects=arguments.objects)
    )
    model = build_model(arguments.model, arguments.image_size, arguments.weights)
    return Peer(model, build_reader(scenes, arguments.image_size), arguments.batch)


def measure(peer: Peer, work: str, rounds: int) -> dict[str, Any]:
    """Do a work in a number of rounds, after one that warms up."""
    peer.turn(work)
    turns = [peer.turn(work) for _ in range(rounds)]
    medians = {name: statistics.median(turn[name] for turn in turns) for name in ("seconds", "cpu_seconds")}
    everything = {f"all_{name}": [turn[name] for turn in turns] for name in medians}
    return {**medians, **everything, "peak_bytes": read_peak()}


def serve(peer: Peer, answers: TextIO) -> None:
    """Answer 'turn WORK' and 'peak' until the pipe ends."""
    log_line(answers, {"built": True})
    for line in sys.stdin:
        name, *rest = line.split()
        log_line(answers, peer.turn(*rest) if name == "turn" else {"bytes": read_peak()})


def read_peak() -> int:
    """Read how much memory this process has ever held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * KIB


def describe(arguments: argparse.Namespace) -> dict[str, Any]:
    """Describe what is measured."""
    import otx
    import torch

    hidden = {"works", "serve", *(("height", "width", "objects") if arguments.data else ())}
    asked = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(arguments).items()
        if name not in hidden
    }
    return {"peer": "otx", "version": otx.__version__, "torch": torch.__version__, **asked}


if __name__ == "__main__":
    main()
