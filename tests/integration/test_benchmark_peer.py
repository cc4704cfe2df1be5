"""The benchmark's peer: what is said where it cannot be run, its images, and, where a reader has it, itself.

Set ``VPEXP_PEER_PYTHON`` to the interpreter of an environment with ``otx[base]`` 2.2 to 2.4 to run the peer too.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from scripts.benchmarks.peer_launcher import WORKS, PeerError, build_command, measure_peer, open_peer
from scripts.benchmarks.peer_scenes import draw_scenes, read_scenes

PEER_PYTHON = os.environ.get("VPEXP_PEER_PYTHON")
SMALL = {"image_size": 256, "size_hw": (120, 160), "objects": 3}

needs_peer = pytest.mark.skipif(not PEER_PYTHON, reason="VPEXP_PEER_PYTHON names no interpreter with OTX 2.2 to 2.4")
needs_no_peer = pytest.mark.skipif(importlib.util.find_spec("otx") is not None, reason="the peer is installed here")


def test_measure_peer__no_such_interpreter():
    with pytest.raises(PeerError, match="/nowhere/python: cannot be run"):
        measure_peer(Path("/nowhere/python"))


def test_open_peer__no_such_interpreter():
    with pytest.raises(PeerError, match="/nowhere/python: cannot be run"), open_peer(Path("/nowhere/python")):
        pass


@needs_no_peer
def test_measure_peer__environment_without_it():
    with pytest.raises(PeerError, match=r"no visual prompting of OTX 2\.2 to 2\.4 there"):
        measure_peer(Path(sys.executable), **SMALL)


@needs_no_peer
def test_open_peer__environment_without_it():
    with pytest.raises(PeerError, match="no visual prompting"), open_peer(Path(sys.executable), **SMALL):
        pass


def test_build_command__a_model_that_the_peer_lacks():
    with pytest.raises(PeerError, match="no sam_micro: it has sam_tiny_vit and sam_vit_b"):
        build_command(Path("python"), model="sam_micro")


def test_draw_scenes__size_objects_and_outlines_within(tmp_path: Path):
    scenes = draw_scenes(tmp_path, 2, size_hw=(90, 140), objects=5)
    assert len(scenes) == 2
    for path, outlines in scenes:
        with Image.open(path) as image:
            assert image.size == (140, 90)
        assert len(outlines) == 5
        assert all(0 <= x <= 140 for outline in outlines for x in outline[0::2])
        assert all(0 <= y <= 90 for outline in outlines for y in outline[1::2])
    assert scenes[0][1] != scenes[1][1]


def write_coco(folder: Path) -> None:
    (folder / "annotations").mkdir()
    square = {"segmentation": [[1, 1, 5, 1, 5, 5]], "image_id": 7}
    content = {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "b.jpg"}],
        "annotations": [square, {**square, "image_id": 9}, square],
    }
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(content))


def test_read_scenes__objects_go_to_their_images(tmp_path: Path):
    write_coco(tmp_path)
    scenes = read_scenes(tmp_path, 2)
    assert [(path.name, len(outlines)) for path, outlines in scenes] == [("a.jpg", 2), ("b.jpg", 1)]
    assert scenes[0][1][0] == [1, 1, 5, 1, 5, 5]


def test_read_scenes__fewer_images_than_a_batch(tmp_path: Path):
    write_coco(tmp_path)
    with pytest.raises(SystemExit, match="a batch of 3 needs as many images, found 2"):
        read_scenes(tmp_path, 3)


@needs_peer
def test_measure_peer__medians_and_peaks():
    measured = measure_peer(Path(str(PEER_PYTHON)), works=["read", "train_step"], rounds=2, batch=2, **SMALL)
    assert set(measured) == {"read", "train_step"}
    for figures in measured.values():
        assert len(figures["all_seconds"]) == 2
        assert min(figures["all_cpu_seconds"]) <= figures["cpu_seconds"] <= max(figures["all_cpu_seconds"])
        assert figures["peak_bytes"] > 100e6
    assert measured["train_step"]["cpu_seconds"] > measured["read"]["cpu_seconds"]


@needs_peer
def test_open_peer__takes_turns_at_all_works():
    with open_peer(Path(str(PEER_PYTHON)), **SMALL) as peer:
        turns = [peer.turn(work) for work in (*WORKS, *WORKS)]
        assert all(turn["seconds"] > 0 for turn in turns)
        assert peer.peak() > 100e6


@needs_peer
def test_measure_peer__weights_of_another_model(tmp_path: Path):
    import torch

    torch.save({"mask_decoder.iou_token.weight": torch.zeros(1, 256)}, tmp_path / "weights.pt")
    with pytest.raises(PeerError, match="the peer did not take"):
        measure_peer(Path(str(PEER_PYTHON)), works=["read"], weights=tmp_path / "weights.pt", **SMALL)
