"""What tests of the labelling page are made of: a server in a process, a browser window, and the truth of a photo."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.references.servers import choose_port
from vpexp.data.masks import decode_rle
from vpexp.data.prompts import find_deepest_point
from vpexp.inference.torch_instances import InstanceParts
from vpexp.models.mask_classifier import MaskClassifier
from vpexp.models.prompter import Prompter

PATIENCE = 150.0


class Truth:
    """The largest object of a photo."""

    def __init__(self, image: Any) -> None:
        largest = int(np.argmax([decode_rle(rle).sum() for rle in image.masks]))
        self.mask_HW = decode_rle(image.masks[largest])
        self.box = image.boxes_N4[largest].tolist()
        self.point = find_deepest_point(image.masks[largest], image.boxes_N4[largest]).tolist()

    def compare(self, mask_HW: NDArray[np.bool_]) -> float:
        return float((mask_HW & self.mask_HW).sum() / (mask_HW | self.mask_HW).sum())


def draw_instances() -> InstanceParts:
    """Draw the weights of a prompter and a classifier, which find two classes everywhere and are sure of nothing."""
    torch.manual_seed(0)
    prompter = Prompter(width=32, depth=0, limit=30).eval()
    for output in prompter.outputs:
        torch.nn.init.normal_(output.weight, std=0.3)
    classifier = MaskClassifier(2, width=0, statistics=True).eval()
    return InstanceParts(prompter, classifier, ("berry", "shoot"), threshold=0.0, max_overlap=0.5)


class Server:
    """``python -m vpexp stage=demo`` in a process of its own."""

    def __init__(self, photos: Path, output_dir: Path, *model: str) -> None:
        self.photos, self.output_dir = photos, output_dir
        self.model = model or ("model=sam_micro", "checkpoint=null")
        self.folder = output_dir / "labels" / photos.name
        self.port = choose_port()

    def command(self, *asked: str) -> list[str]:
        common = ("stage=demo", *self.model, f"source={self.photos}")
        paths = (f"paths.output_dir={self.output_dir}", f"demo.port={self.port}")
        return [sys.executable, "-m", "vpexp", *common, *paths, "demo.labels=[berry,leaf]", *asked]

    def start(self, *asked: str) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            self.command(*asked), env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout or ()), daemon=True)
        self._reader.start()
        until = time.monotonic() + PATIENCE
        while not (found := re.search(r"label 3 images at (http://127\.0\.0\.1:\d+) ", "".join(self.lines))):
            assert self.process.poll() is None, "".join(self.lines)
            assert time.monotonic() < until, "".join(self.lines)
            time.sleep(0.05)
        self.address = found[1]

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def read_annotations(self) -> list[dict[str, Any]]:
        file = self.folder / "annotations" / "instances_train.json"
        return list(json.loads(file.read_text())["annotations"]) if file.is_file() else []


class Window:
    """A browser window with the labelling page."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.mistakes: list[str] = []
        page.on("pageerror", lambda error: self.mistakes.append(str(error)))

    def ask(self, expression: str, given: Any = None) -> Any:
        return self.page.evaluate(f"given => import('/page/main.js').then(({{state, view}}) => {expression})", given)

    def wait(self, expression: str, given: Any = None) -> Any:
        until = time.monotonic() + PATIENCE
        while not (found := self.ask(expression, given)):
            assert time.monotonic() < until, (expression, self.page.inner_text("body"), self.mistakes)
            time.sleep(0.02)
        return found

    def open(self, address: str, number: int) -> None:
        self.page.goto(f"{address}/#{number}")
        self.page.reload()
        self.wait_until_ready(number)

    def wait_until_ready(self, number: int) -> None:
        self.wait(
            "state.index + 1 === given && document.getElementById('status').textContent.startsWith('ready')", number
        )

    def place(self, x: float, y: float) -> tuple[float, float]:
        x, y = self.ask("view.toWindow(...given)", [x, y])
        return x, y

    def click(self, point: list[float], *, outside: bool = False) -> None:
        self.page.mouse.click(*self.place(point[0] + 0.5, point[1] + 0.5), button="right" if outside else "left")
        self.wait("!state.waiting")

    def drag(self, box: list[float]) -> None:
        self.page.mouse.move(*self.place(*box[:2]))
        self.page.mouse.down()
        self.page.mouse.move(*self.place(*box[2:]), steps=3)
        self.page.mouse.up()
        self.wait("!state.waiting")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def read_drawn(self, path: str = "state.path") -> NDArray[np.bool_]:
        """Read which pixels of the image lie inside a drawn outline."""
        inside = self.ask(
            f"""(() => {{
                const context = new OffscreenCanvas(1, 1).getContext("2d"), found = [];
                for (let y = 0; y < view.image.height; y++) for (let x = 0; x < view.image.width; x++)
                    found.push(context.isPointInPath({path}, x + 0.5, y + 0.5, "evenodd") ? 1 : 0);
                return [found.join(""), view.image.height];
            }})()"""
        )
        return np.array(list(inside[0])).reshape(inside[1], -1) == "1"
