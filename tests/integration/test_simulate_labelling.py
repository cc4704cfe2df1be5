"""The simulated annotator: that it does what the page offers, counts each action once, and leaves the data set that it says."""

import csv
import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.references.labelling import draw_instances
from vpexp.config.schema import DataConfig, SyntheticConfig
from vpexp.data.annotations import AnnotatedImage
from vpexp.data.dataset import load_dataset
from vpexp.data.image_source import SourceImage
from vpexp.data.masks import compute_box, decode_rle, encode_mask
from vpexp.demo.proposals import Proposals
from vpexp.demo.session import LabelSession
from vpexp.demo.store import LabelStore
from vpexp.inference.load import load_predictor
from vpexp.synthetic.dataset import write_synthetic_dataset

SCRIPT = Path(__file__).parents[2] / "scripts" / "simulate_labelling"


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    """The script as a module."""
    loader = SourceFileLoader("simulate_labelling", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    drawn = SyntheticConfig(scene="shapes", image_size=64, train=2, val=1, test=1)
    return Path(write_synthetic_dataset(tmp_path_factory.mktemp("drawn"), drawn))


def test_fixed_model__costs_a_box_and_a_keep_an_object_and_clicks(simulation, root, tmp_path, monkeypatch, capsys):
    asked = ["--root", str(root), "--only", "fixed model", "--output", str(tmp_path), "model=sam_debug"]
    monkeypatch.setattr(sys, "argv", ["simulate_labelling", *asked])

    simulation.main()

    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    images = load_dataset(DataConfig(format="coco", root=str(root)), splits=("train",)).splits["train"].images
    objects = sum(len(image.masks) for image in images)
    last = {name: int(rows[-1][name]) for name in (*simulation.KINDS, "actions")}
    assert [int(row["images"]) for row in rows] == [1, 2]
    assert last["boxes"] == objects
    assert last["keeps"] <= objects
    assert last["clicks"] <= simulation.CORRECTIONS * objects
    assert last["actions"] == sum(last[kind] for kind in simulation.KINDS)
    assert {last[kind] for kind in ("accepts", "rejects", "corrects", "relabels")} == {0}
    assert (tmp_path / "curve.png").stat().st_size > 0
    assert "fixed model" in capsys.readouterr().out


def test_annotator__accepts_what_is_right_corrects_what_is_nearly_and_draws_the_rest(
    simulation, debug_sam, root, tmp_path
):
    predictor = load_predictor(debug_sam)
    predictor.instances = draw_instances().build_model(predictor.device)
    image = load_dataset(DataConfig(format="coco", root=str(root)), splits=("train",)).splits["train"].images[0]
    session = LabelSession(predictor, [SourceImage(1, image.path.name, image.path)], kept=1)
    proposals = Proposals(session, LabelStore(tmp_path / "unused"))
    (first, second, *_), size = proposals.propose(0).masks, (image.height, image.width)
    half_HW = decode_rle(second.rle)
    half_HW[: int(np.flatnonzero(np.cumsum(half_HW.any(axis=1)) >= 0.35 * half_HW.any(axis=1).sum())[0])] = False
    corner_HW = np.zeros(size, bool)
    corner_HW[:3, :3] = True
    masks = [first.rle, encode_mask(half_HW), encode_mask(corner_HW)]
    ious_KN = simulation.compute_ious([mask.rle for mask in proposals.propose(0).masks], masks)
    boxes_N4 = np.array([compute_box(rle) for rle in masks], np.float32)
    truth = AnnotatedImage("1", image.path, *size, tuple(masks), boxes_N4, np.zeros(3, np.int64), tuple("abc"))
    store = LabelStore(tmp_path / "labels")
    annotator = simulation.Annotator(session, store, Proposals(session, store), good=0.95)

    annotator.label(0, truth, ["berry"] * 3, proposes=True)

    assert (ious_KN[:, 0] >= 0.95).any()
    assert simulation.SAME <= ious_KN[:, 1].max() < 0.95
    assert ious_KN[:, 2].max() < simulation.SAME
    done = annotator.actions
    assert (done["boxes"], done["accepts"]) == (1, 1)
    assert done["keeps"] == 2
    assert done["clicks"] >= 1
    prompts = [mask.entry["prompt"] for mask in store.labels.masks.values()]
    assert first.prompt in prompts
    assert sum(len(prompt.get("points", ())) > 1 and "box" in prompt for prompt in prompts) >= 1
