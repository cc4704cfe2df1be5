"""Where the time of a click on the labelling page goes: a box is sent to the page's own server, and a mask comes back.

The clock's milliseconds, each the median of many clicks on objects of an image whose embedding is there: alone, while the next image
is encoded, and while the model searches another image for what to propose.
"""

import http.client
import json
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.benchmarks.duel import Comparison, compare
from scripts.benchmarks.settings import Settings
from vpexp.config.schema import DataConfig
from vpexp.data.annotations import AnnotatedImage
from vpexp.data.dataset import load_dataset
from vpexp.data.image_source import SourceImage
from vpexp.demo.app import LabellingApp
from vpexp.demo.proposals import Proposals
from vpexp.demo.routes import build_app
from vpexp.demo.server import open_socket
from vpexp.demo.session import LabelSession
from vpexp.demo.store import LabelStore
from vpexp.inference.load import load_model, load_predictor
from vpexp.inference.predictor import InstanceModel, Predictor

HOST = "127.0.0.1"
CLICKS = 4  # a round, of each kind
STARTING = 0.1  # seconds until what clicks are measured beside is under way
FOUND = 50
"""Boxes that the search of an image decodes."""


class Clock:
    """Sums up the milliseconds that calls take in the thread that answers a click."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = defaultdict(float)
        self.is_click = threading.local()

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Time a function where it is called for a click."""

        def timed(*given: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                if getattr(self.is_click, "now", False):
                    self.parts[part] += 1000 * (time.perf_counter() - started)

        return timed


class Clicks:
    """A server with images of a data set, and the clicks that it is sent.

    Args:
        predictor: answers.
        images: with objects.
        folder: where nothing is kept.
    """

    def __init__(self, predictor: Predictor, images: list[AnnotatedImage], folder: Path) -> None:
        self.images, self.clock = images, Clock()
        sources = [SourceImage(place, image.path.name, image.path) for place, image in enumerate(images, 1)]
        self.session = LabelSession(predictor, sources, kept=len(images))
        store = LabelStore(folder)
        self.app = LabellingApp(self.session, store, {}, ["object"], Proposals(self.session, store))
        self._time(predictor)
        self._sent = 0

    def _time(self, predictor: Predictor) -> None:
        clock, segment = self.clock, self.session.segment

        def answer(*given: Any, **named: Any) -> Any:
            clock.is_click.now = True
            try:
                return clock.wrap("answer", segment)(*given, **named)
            finally:
                clock.is_click.now = False

        self.session.segment = answer  # type: ignore[method-assign]
        predictor._run_decoder = clock.wrap("decoder", predictor._run_decoder)  # type: ignore[method-assign]  # noqa: SLF001

    @contextmanager
    def serve(self) -> Iterator[None]:
        """Serve the page in a thread."""
        import uvicorn

        with open_socket(HOST, None) as opened:
            self.port = opened.getsockname()[1]
            server = uvicorn.Server(uvicorn.Config(build_app(self.app, HOST), log_level="error", lifespan="off"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, daemon=True)
            thread.start()
            try:
                yield
            finally:
                server.should_exit = True
                thread.join()

    def ask(self, method: str, path: str, content: Any = None) -> Any:
        """Send a request as the page does."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=600)
        body = None if content is None else json.dumps(content)
        connection.request(method, f"/api/images/{path}", body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    def click(self, *, is_point: bool = False) -> dict[str, float]:
        """Drag a box around an object of the first image, or click on it: milliseconds of the parts.

        It is a little wider each time, so that no answer is remembered.
        """
        boxes_N4 = self.images[0].boxes_N4
        left, top, right, bottom = boxes_N4[self._sent % len(boxes_N4)].tolist()
        wider = 0.01 * (self._sent // len(boxes_N4))
        self._sent += 1
        self.clock.parts.clear()
        started = time.perf_counter()
        step = (
            {"point": [left + self._sent % 7, top]} if is_point else {"box": [left, top, right + wider, bottom + wider]}
        )
        answer = self.ask("POST", "0/segment", {"steps": [step]})
        total = 1000 * (time.perf_counter() - started)
        assert "mask" in answer, answer
        parts = self.clock.parts
        rest = parts["answer"] - parts["decoder"]
        return {"all": total, "decoder": parts["decoder"], "mask": rest, "http": total - parts["answer"]}

    def click_beside(self, method: str, path: str, content: Any = None) -> list[float]:
        """Click on the first image while the server is at work for another one; only clicks that begin meanwhile count."""
        beside = threading.Thread(target=self.ask, args=(method, path, content))
        beside.start()
        time.sleep(STARTING)
        found = []
        while beside.is_alive() and len(found) < CLICKS:
            found.append(self.click()["all"])
        beside.join()
        return found

    def forget(self, index: int) -> None:
        """Forget what is known of an image: its embedding, and what was found in it."""
        self.session._embeddings.pop((index, self.session.open(index)), None)  # noqa: SLF001
        self.app.proposals._found.clear()  # type: ignore[union-attr]  # noqa: SLF001


def measure_clicks(settings: Settings, rounds: int) -> dict[str, Comparison]:
    """Measure clicks: rows by what they are beside, and the parts of those that are alone.

    Args:
        settings: model, weights, data and threads.
        rounds: that count: four clicks alone, an image that is encoded meanwhile, and one that is searched.
    """
    torch.set_num_threads(settings.threads)
    predictor = load_predictor(load_model(settings.model, weights=settings.weights))
    predictor.instances = InstanceModel(_spread_boxes, None, ("object",), threshold=0.0, max_overlap=1.0)
    dataset = load_dataset(DataConfig(format="coco", root=str(settings.data)), splits=("train",))
    clicks = Clicks(predictor, list(dataset.splits["train"].images), settings.folder / "clicks")
    beside: dict[str, list[float]] = {"encoding": [], "search": []}
    with clicks.serve():
        clicks.click()  # encodes the image
        points = [clicks.click(is_point=True)["all"] for _ in range(CLICKS * rounds)]
        alone = [clicks.click() for _ in range(CLICKS * rounds)]
        for _ in range(rounds):
            clicks.forget(1)
            beside["encoding"] += clicks.click_beside("POST", "1/encode", {"ahead": True})
            beside["search"] += clicks.click_beside("GET", "1/proposals")
    rows = {"click": [one["all"] for one in alone], "click_point": points}
    rows |= {f"click_{part}": [one[part] for one in alone] for part in ("decoder", "mask", "http")}
    rows |= {f"click_beside_{what}": times for what, times in beside.items() if times}
    return {name: _describe(times) for name, times in rows.items()}


def _spread_boxes(embedding: Any, image_13SS: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Find boxes everywhere, as a prompter would in a crowded image."""
    del embedding
    side = image_13SS.shape[-1]
    corners_K2 = np.random.default_rng(0).uniform(0, 0.6 * side, (FOUND, 2)).astype(np.float32)
    return np.hstack([corners_K2, corners_K2 + np.float32(side / 16)]), np.ones(FOUND, np.float32)


def _describe(times: list[float]) -> Comparison:
    slowest = f"slowest of {len(times)}: {max(times):.0f} ms"
    return replace(compare(statistics.median(times), None, unit="ms", checked=slowest), rounds=len(times))
