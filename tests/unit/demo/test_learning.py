"""Rounds of learning: when one begins, what is taken up, and what a process that is killed leaves."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.references.official import randomize
from vpexp.data.masks import encode_mask
from vpexp.demo.learning import STATE, Learner, start_process
from vpexp.demo.session import LabelSession
from vpexp.demo.store import LabelStore
from vpexp.errors import CheckpointError
from vpexp.inference.load import load_predictor
from vpexp.models.registry import build_sam_debug

TRAIN = """
import json, sys, time
from pathlib import Path
run = Path(sys.argv[1], "train", "1")
(run / "checkpoints").mkdir(parents=True)
(run / "checkpoints" / "epoch_000.ckpt").write_text("a model")
metrics = {"before/val/f1-score": 0.8, "val/f1-score": float(sys.argv[2])}
(run / "metrics.json").write_text(json.dumps({"metrics": metrics}))
(run / "run.json").write_text(json.dumps({"status": "FINISHED", "best_checkpoint": "checkpoints/epoch_000.ckpt"}))
time.sleep(float(sys.argv[3]))
"""
"""A process that leaves what a training leaves."""


class Site:
    """A session, a store, and a learner whose trainings end at once."""

    def __init__(self, predictor, images, tmp_path) -> None:
        self.images, self.tmp_path = images, tmp_path
        self.session = LabelSession(predictor, images, kept=2)
        self.store = LabelStore(tmp_path / "labels")
        self.asked, self.loaded = [], []
        self.score, self.seconds = 0.9, 0.0
        self.learner = self.build()

    def build(self, start="sam_debug", every=2) -> Learner:
        return Learner(
            self.session,
            self.store,
            start=start,
            every=every,
            folder=self.tmp_path / "rounds",
            start_round=self.train,
            load=self.load,
        )

    def train(self, folder, root, checkpoint, number):
        self.asked.append((number, checkpoint, sorted(path.name for path in (root / "images").rglob("*.*"))))
        command = [sys.executable, "-c", TRAIN, str(folder), str(self.score), str(self.seconds)]
        return start_process(command, folder / "output.log")

    def load(self, checkpoint):
        self.loaded.append(checkpoint)
        if checkpoint is not None and checkpoint.read_text() != "a model":
            raise CheckpointError(f"{checkpoint} is damaged")
        return load_predictor(randomize(build_sam_debug(64), seed=len(self.loaded)))

    def label(self, *indices) -> None:
        for index in indices:
            size = ((40, 60), (30, 50), (48, 32))[index]
            mask_HW = np.zeros(size, bool)
            mask_HW[2:9, 3:9] = True
            self.store.keep(self.images[index], "berry", encode_mask(mask_HW), score=1.0, prompt={}, uid=f"u{index}")

    def learn(self) -> None:
        self.learner.step()
        self.learner.wait()


@pytest.fixture
def site(debug_sam, images, tmp_path):
    made = Site(load_predictor(debug_sam), images, tmp_path)
    yield made
    made.learner.end()


def test_round__begins_after_so_many_images_that_were_left(site):
    site.label(0)
    site.learner.step()
    assert site.asked == []
    assert site.learner.describe()["line"] == "learns after 1 more image"
    site.session.open(1)
    site.label(1)
    site.learner.step()
    assert site.asked == []  # somebody works on it
    site.session.open(2, ahead=True)
    site.session.open(2)

    site.learner.step()

    assert site.asked == [(1, None, ["a.png"] * 4)]  # both in train and in val
    assert site.learner.describe()["busy"]
    site.learner.wait()
    assert not site.learner.describe()["busy"]
    site.learn()
    assert len(site.asked) == 1  # nothing new


def test_rounds__begin_with_the_first_image_where_no_number_is_given(site):
    site.learner = site.build(every=None)
    for count in range(3):
        assert site.learner.describe()["line"].startswith("learns after 1 more image")
        site.label(count)
        site.learn()

        assert len(site.asked) == count + 1
        assert "that it learnt from: found" in site.learner.describe()["news"]
    assert site.learner.describe()["line"].startswith("learns after 2 more images")
    again = site.build(every=None)
    assert again.describe()["line"] == site.learner.describe()["line"]


def test_image_with_nothing_in_it__is_learnt_from_and_one_that_another_tool_only_lists_is_not(site):
    site.label(0, 1)
    site.store.set_done(site.images[2], 48, 32, done=True)
    site.learn()
    assert site.asked[0][2] == ["a.png"] * 4 + ["turned.jpg"] * 2

    other = site.store.labels.with_image("listed.png", 10, 10, 77)
    assert "listed.png" not in other.labelled


def test_better_model__is_taken_up_and_undone_and_there_after_a_restart(site):
    site.label(0, 1)
    first = site.session.model
    site.learn()

    assert site.session.model.version == first.version + 1
    assert "masks 0.800 → 0.900: taken up" in site.learner.describe()["news"]
    place = site.store.folder / ".learning" / "round_001.ckpt"
    assert (site.learner.checkpoint, place.read_text()) == (place, "a model")
    again = site.build()
    assert (again.checkpoint, again.rounds) == (place, site.learner.rounds)
    assert again.load_last() is not None
    again.step()
    assert len(site.asked) == 1  # it has learnt from these
    assert site.build(start="another model").checkpoint is None
    place.write_text("damaged")
    assert again.load_last() is None

    site.learner.undo()

    assert site.learner.checkpoint is None
    assert site.loaded[-1] is None
    assert site.session.model.version == first.version + 2
    assert not site.learner.describe()["can_undo"]
    assert not place.exists()
    assert json.loads((site.store.folder / STATE).read_text())["models"] == []


def test_model_that_is_no_better__is_not_taken_up(site):
    site.score = 0.8
    site.label(0, 1)
    site.learn()

    assert site.session.model.version == 0
    assert "no better, not taken up" in site.learner.describe()["line"]
    assert not list(site.store.folder.rglob("*.ckpt"))


def test_stop__ends_the_round_and_go_on_begins_it_again(site):
    site.seconds = 600
    site.label(0, 1)
    site.learner.step()
    process = site.learner._work.process
    site.learner.stop()

    assert process.poll() is not None
    assert site.learner.describe()["line"] == "stopped"
    site.learner.step()
    assert len(site.asked) == 1
    site.seconds = 0
    site.learner.start()
    site.learn()
    assert [number for number, *_ in site.asked] == [1, 1]
    assert site.session.model.version == 1


def test_state_that_is_damaged__is_begun_anew(site, capsys):
    place = site.store.folder / STATE
    place.parent.mkdir(parents=True)
    place.write_text('{"start": "sam_debug", "rounds"')

    assert site.build().rounds == []
    assert "learning begins anew" in capsys.readouterr().out


@pytest.mark.slow
def test_worker__ends_with_the_process_that_started_it(tmp_path):
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'vpexp.demo.worker', str(os.getpid()), '5', 'stage=demo', 'source=.',"
        f" 'model=sam_debug', 'model.weights=random', 'checkpoint=null', 'demo.port=null', 'tracking=none', 'paths.output_dir={tmp_path}'],"
        " stdout=subprocess.PIPE, text=True)\n"
        "for line in child.stdout:\n"
        "    if 'label ' in line and ' at http' in line: print(child.pid, flush=True); break\n"
        "time.sleep(600)"
    )
    (tmp_path / "photos").mkdir()
    from PIL import Image

    Image.new("RGB", (60, 40)).save(tmp_path / "photos" / "a.png")
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path / "photos", stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    assert (
        subprocess.run(
            ["ps", "-o", "ni=", "-p", str(worker)], capture_output=True, text=True, check=False
        ).stdout.strip()
        == "5"
    )
    parent.kill()
    until = time.monotonic() + 60
    while subprocess.run(["ps", "-p", str(worker)], capture_output=True, check=False).returncode == 0:
        assert time.monotonic() < until
        time.sleep(0.1)
