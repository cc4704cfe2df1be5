"""Learning while people label, as a whole: a server that trains beside itself, and is killed while it does."""

import contextlib
import json
import shutil
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.references.labelling import PATIENCE, Server
from vpexp.config.schema import SyntheticConfig
from vpexp.synthetic.dataset import write_synthetic_dataset

pytestmark = pytest.mark.slow
TINY = (
    *("demo.learn_every=2", "demo.learn_epochs=1", "demo.learn_steps=4", "prompter.width=32", "prompter.depth=0"),
    *("prompter.classifier_steps=1", "trainer.threads=1"),
)


def ask(server: Server, path: str, method: str = "GET") -> dict[str, Any]:
    asked = urllib.request.Request(
        f"{server.address}{path}", method=method, headers={"Content-Type": "application/json"}
    )
    if method == "POST":
        asked.data = b"{}"
    with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
        return dict(json.loads(answer.read()))


def wait(server: Server, is_there: Any) -> dict[str, Any]:
    until = time.monotonic() + PATIENCE
    while not is_there(state := ask(server, "/api/state")):
        assert time.monotonic() < until, (state, "".join(server.lines))
        time.sleep(0.1)
    return state


def wait_for_round(server: Server) -> int:
    """Wait until the training of a round has begun; return its process."""
    until = time.monotonic() + PATIENCE
    while True:
        for record in (server.output_dir / "demo").glob("*/rounds/round_001/train/*/run.json"):
            with contextlib.suppress(ValueError, KeyError):
                return int(json.loads(record.read_text())["process"])
        assert time.monotonic() < until, "".join(server.lines)
        time.sleep(0.05)


def test_server_that_is_killed_while_it_learns__loses_nothing_and_learns_again(tmp_path: Path) -> None:
    drawn = SyntheticConfig(scene="shapes", image_size=64, train=3, val=1, test=1)
    root, photos = Path(write_synthetic_dataset(tmp_path / "drawn", drawn)), tmp_path / "photos"
    photos.mkdir()
    (annotations,) = root.rglob("*train*.json")
    for image in json.loads(annotations.read_text())["images"]:
        shutil.copy(next(root.rglob(Path(image["file_name"]).name)), photos)
    server = Server(photos, tmp_path / "out", "model=sam_debug", "model.weights=random", "checkpoint=null")
    place = server.folder / "annotations" / "instances_train.json"
    place.parent.mkdir(parents=True)
    shutil.copy(annotations, place)
    labels = place.read_bytes()
    uri = f"sqlite:///{server.output_dir}/mlflow.db"
    server.start(*TINY)
    wait(server, lambda state: state["learning"]["busy"])
    worker = wait_for_round(server)

    server.end(signal.SIGKILL)
    until = time.monotonic() + PATIENCE
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    assert place.read_bytes() == labels

    server.start(*TINY)
    state = wait(server, lambda state: "round 1, on the 3 images that it learnt from" in state["learning"]["line"])
    assert place.read_bytes() == labels
    learnt = json.loads((server.folder / ".learning" / "state.json").read_text())
    assert [one["taken"] for one in learnt["rounds"]] == [bool(learnt["models"])]
    assert state["model_version"] == len(learnt["models"])
    if learnt["models"]:
        assert ask(server, "/api/learning/undo", "POST")["model_version"] == 2
    assert ask(server, "/api/learning/stop", "POST")["learning"]["stopped"] is True
    assert server.end(signal.SIGINT) == 0

    client = MlflowClient(uri)
    experiments = [one.experiment_id for one in client.search_experiments()]
    runs = client.search_runs(experiments)
    child = next(run for run in runs if run.info.run_name == "round 1" and run.info.status == "FINISHED")
    parent = client.get_run(child.data.tags["mlflow.parentRunId"])
    assert (parent.data.tags["stage"], parent.info.status) == ("demo", "FINISHED")
