"""Which labelled images a model is measured on, what it learns from, and what came out."""

import json

import numpy as np

from vpexp.config.schema import DataConfig
from vpexp.data.dataset import load_dataset
from vpexp.data.masks import encode_mask
from vpexp.demo.rounds import Round, choose_held_out, find_interval, hash_image, read_outcome, write_dataset
from vpexp.demo.store import LabelStore


def test_held_out__stay_the_same_when_more_is_labelled():
    places = {str(number): number / 20 for number in range(20)}
    for count in range(4, 20):
        some = dict(list(places.items())[-count:])
        held_out = choose_held_out(some, some)
        assert 0 < len(held_out) < count
        if any(place < 0.25 for place in some.values()):
            assert held_out == {name for name, place in some.items() if place < 0.25}
    assert choose_held_out({"a": 0.1, "b": 0.2, "c": 0.21, "d": 0.22}, "abcd") == {"a", "b", "c"}
    some = {"a": 0.8, "b": 0.9, "c": 0.95, "d": 0.96}
    assert choose_held_out(some, some) == {"a"}
    assert choose_held_out(some | {"empty": 0.1, "empty too": 0.9}, some) == {"a", "empty"}


def test_held_out__are_never_learnt_from_before_and_the_first_images_are_all_learnt_from():
    places = {"a": 0.1, "b": 0.8, "c": 0.9, "d": 0.95, "e": 0.2}
    for first in ("a", "ab", "abc"):
        assert choose_held_out(places, first) == set()
    assert choose_held_out(dict(list(places.items())[:4]), "abcd", learnt="abc") == {"d"}
    assert choose_held_out(places, "abcde", learnt="abc") == {"e"}
    assert choose_held_out(places, "abcde", learnt="abcde") == set()


def test_interval__grows_with_what_is_known():
    known, rounds = 0, []
    while known < 40:
        known += find_interval(known)
        rounds.append(known)
    assert rounds == [1, 2, 3, 5, 8, 12, 18, 27, 37, 47]


def test_hash__is_of_the_content(images, tmp_path):
    copy = tmp_path / "another name.png"
    copy.write_bytes(images[0].path.read_bytes())

    assert hash_image(copy) == hash_image(images[0].path) != hash_image(images[1].path)
    assert 0 <= hash_image(copy) < 1


def test_dataset__of_a_round_is_what_is_kept(images, tmp_path):
    store = LabelStore(tmp_path / "labels")
    masks = {}
    for image, size in zip(images, ((40, 60), (30, 50), (48, 32)), strict=True):
        mask_HW = np.zeros(size, bool)
        mask_HW[5:20, 6:18] = True
        masks[image.name] = encode_mask(mask_HW)
        store.keep(image, "berry", masks[image.name], score=0.9, prompt={}, uid=image.name)

    write_dataset(tmp_path / "data", store.labels, {image.name: image.path for image in images}, {"b/a.png"})

    dataset = load_dataset(DataConfig(format="coco", root=str(tmp_path / "data")), splits=("train", "val"))
    found = {split: [image.image_id for image in dataset.splits[split].images] for split in ("train", "val")}
    assert found == {"train": ["a.png", "turned.jpg"], "val": ["b/a.png"]}
    for split in dataset.splits.values():
        for image in split.images:
            assert image.masks[0]["counts"] == masks[image.image_id]["counts"]

    write_dataset(tmp_path / "first", store.labels, {images[0].name: images[0].path}, set())

    dataset = load_dataset(DataConfig(format="coco", root=str(tmp_path / "first")), splits=("train", "val"))
    assert [len(dataset.splits[split].images) for split in ("train", "val")] == [1, 1]


def test_outcome__is_better_only_by_what_was_measured(tmp_path):
    run = tmp_path / "train" / "1"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"status": "FINISHED", "best_checkpoint": "checkpoints/epoch_000.ckpt"}))
    for after, taken in ((0.9, True), (0.79, False)):
        metrics = {"before/val/f1-score": 0.8, "val/f1-score": after, "before/val/auto/f1": None, "val/auto/f1": 0.0}
        (run / "metrics.json").write_text(json.dumps({"metrics": metrics, "details": {}}))

        outcome, checkpoint = read_outcome(tmp_path, 3, images=6, held_out=2)

        assert outcome == Round(3, 6, 2, (0.0, 0.8), (0.0, after), taken)
        assert (checkpoint == run / "checkpoints" / "epoch_000.ckpt") is taken
        assert Round.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome
    (run / "run.json").write_text(json.dumps({"status": "FAILED", "error": "no space"}))
    assert str(Round(1, 1, 0)).startswith("round 1, on the image that it learnt from: found ")
    assert str(Round(2, 2, 0)).startswith("round 2, on the 2 images that it learnt from: ")
    outcome, checkpoint = read_outcome(tmp_path, 3, images=6, held_out=2)
    assert (str(outcome), checkpoint) == ("round 3 ended early (no space): the model stays", None)
    (tmp_path / "output.log").write_text("\nvpexp: something is wrong\n\n")
    (run / "run.json").unlink()
    assert read_outcome(tmp_path, 3, images=6, held_out=2)[0].error == "vpexp: something is wrong"
