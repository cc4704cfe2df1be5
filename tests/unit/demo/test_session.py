"""What the model answers to steps: the same for the same steps, whatever was asked before."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from vpexp.data.images import read_image
from vpexp.data.masks import decode_rle
from vpexp.data.tiles import Tiling
from vpexp.demo.session import LabelSession
from vpexp.demo.steps import Box, Point
from vpexp.inference.instances import find_instances
from vpexp.inference.load import load_predictor

STEPS = (Point(20, 20, True), Box(5, 6, 40, 35), Point(30, 10, False))


class Counting:
    """A predictor that counts what it is asked, and how many ask at once."""

    def __init__(self, predictor):
        self.predictor, self.multimask = predictor, predictor.multimask
        self.embedded, self.decoded = 0, []
        self.busy, self.most_busy = 0, 0

    def embed(self, image_HW3):
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        self.embedded += 1
        embedding = self.predictor.embed(image_HW3)
        self.busy -= 1
        return embedding

    def decode(self, embedding, **prompts):
        self.decoded.append(prompts.get("mask_input") is not None)
        return self.predictor.decode(embedding, **prompts)


@pytest.fixture
def predictor(debug_sam):
    return Counting(load_predictor(debug_sam))


def build(predictor, images, kept=2):
    return LabelSession(predictor, images, kept=kept)


def test_segment__refines_the_mask_before_as_the_predictor_does(predictor, images):
    answer = build(predictor, images).segment(0, STEPS)

    plain = predictor.predictor
    embedding = plain.embed(read_image(images[0].path))
    point, box = np.array([[[20, 20]]], np.float32), np.array([[5, 6, 40, 35]], np.float32)
    first = plain.decode(embedding, points=point, point_labels=np.ones((1, 1), np.float32))
    second = plain.decode(
        embedding, points=point, point_labels=np.ones((1, 1), np.float32), boxes=box, mask_input=first.low_res
    )
    third = plain.decode(
        embedding,
        points=np.array([[[20, 20], [30, 10]]], np.float32),
        point_labels=np.array([[1, 0]], np.float32),
        boxes=box,
        mask_input=second.low_res,
    )
    np.testing.assert_array_equal(decode_rle(answer.rle), third.masks[0])
    assert answer.iou == pytest.approx(float(third.iou[0]))
    assert not np.array_equal(third.low_res, plain.decode(embedding, boxes=box).low_res)


@pytest.mark.parametrize("rule", ["auto", "never"])
def test_click__has_three_masks_and_the_next_one_refines_the_one_that_is_meant(debug_sam, images, rule):
    predictor = load_predictor(debug_sam, multimask=rule)
    session = build(predictor, images)
    embedding = predictor.embed(read_image(images[0].path))
    point, label = np.array([[[20, 20]]], np.float32), np.ones((1, 1), np.float32)
    three = predictor.decode(embedding, points=point, point_labels=label, multimask=True)

    for place in range(3):
        meant = Point(20, 20, True, mask=place + 1)
        answer = session.segment(0, (meant,))
        np.testing.assert_array_equal(decode_rle(answer.rle), three.masks[0, place])
        assert (answer.choice, answer.iou) == (place + 1, three.iou[0, place])
        assert answer.scores == tuple(three.iou[0].tolist())
        two = np.array([[[20, 20], [30, 10]]], np.float32)
        refined = predictor.decode(
            embedding, points=two, point_labels=np.array([[1, 0]], np.float32), mask_input=three.low_res[:, place]
        )
        following = session.segment(0, (meant, Point(30, 10, False)))
        np.testing.assert_array_equal(following.low_res_hw, refined.low_res[0])
        assert (following.choice, following.scores) == (0, ())

    left_open = session.segment(0, (Point(20, 20, True),))
    np.testing.assert_array_equal(
        decode_rle(left_open.rle), predictor.decode(embedding, points=point, point_labels=label).masks[0]
    )
    assert left_open.choice == (0 if rule == "never" else 1 + int(three.iou[0].argmax()))
    assert len(left_open.scores) == 3


def test_undo__gives_what_the_remaining_steps_gave_before(predictor, images):
    session = build(predictor, images)
    before = session.segment(0, STEPS[:2])
    session.segment(0, STEPS)
    asked = len(predictor.decoded)

    assert session.segment(0, STEPS[:2]) is before
    assert len(predictor.decoded) == asked  # remembered
    fresh = build(predictor, images).segment(0, STEPS[:2])
    assert fresh.rle == before.rle
    np.testing.assert_array_equal(fresh.low_res_hw, before.low_res_hw)


def test_embeddings__are_made_once_and_the_oldest_goes(predictor, images):
    session = build(predictor, images, kept=2)
    for index in (0, 1, 0, 2, 0):
        session.encode(index)
    assert predictor.embedded == 3
    session.encode(1)

    assert predictor.embedded == 4


def test_images__are_encoded_ahead_by_a_thread_that_gives_way_and_are_there_when_they_are_opened(debug_sam, images):
    predictor, threads = load_predictor(debug_sam), []
    embed = predictor.embed
    predictor.embed = lambda image_HW3: (threads.append(threading.current_thread().name), embed(image_HW3))[1]
    session = build(predictor, images, kept=3)
    here = threading.current_thread().name

    ahead = session.encode(1, ahead=True)
    session.encode(0)

    assert session.encode(1) is ahead
    session.glance(2)
    assert [name == here for name in threads] == [False, True, False]
    assert threads[0] == threads[2]


def test_pages__that_ask_at_once_wait_for_one_another(predictor, images):
    session = build(predictor, images, kept=3)
    threads = [threading.Thread(target=session.segment, args=(index % 3, STEPS[:1])) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert predictor.embedded == 3
    assert predictor.most_busy == 1


def test_turned_photo__is_seen_upright(predictor, images):
    assert images[2].name == "turned.jpg"
    assert build(predictor, images).segment(2, (Point(31, 47, True),)).rle["size"] == [48, 32]


@pytest.mark.parametrize("exported", ["debug_ir", "debug_onnx"])
def test_exported_model__refines_as_torch_does(predictor, images, exported, request):
    found = build(load_predictor(request.getfixturevalue(exported).folder), images).segment(0, STEPS)

    expected = build(predictor, images).segment(0, STEPS)
    assert np.count_nonzero(decode_rle(found.rle) != decode_rle(expected.rle)) <= 2
    assert found.iou == pytest.approx(expected.iou, abs=1e-3)


@pytest.mark.parametrize("tiling", [None, Tiling(32, 0.25)])
def test_find__encodes_what_is_not_encoded_yet_and_gives_what_predict_does(finder, images, monkeypatch, tiling):
    image_HW3 = read_image(images[0].path)
    prompts, expected = find_instances(finder, image_HW3, tiling)
    encoded = []
    embed = finder.embed
    monkeypatch.setattr(finder, "embed", lambda part_hw3: encoded.append(part_hw3.shape) or embed(part_hw3))
    session = LabelSession(finder, images, kept=2, tiling=tiling)
    session.encode(0)

    asked, masks = session.find(0)

    assert masks == expected.masks
    np.testing.assert_array_equal(asked.coords_NP2, prompts.coords_NP2)
    tiles = [] if tiling is None else [(32, 32, 3)] * len(tiling.plan(40, 60))
    assert encoded == [(40, 60, 3), *tiles]
    assert LabelSession(finder, images, kept=2, min_score=1.0).find(0)[1] == []


def test_find__lets_a_click_go_first_after_every_few_prompts(finder, images, monkeypatch):
    monkeypatch.setattr("vpexp.demo.session.PIXELS_AT_ONCE", 2 * finder.image_size**2)
    session, decoded = LabelSession(finder, images, kept=2), []
    session.encode(1)
    decode_prompts, decode = finder.decode_prompts, finder.decode
    at_work = threading.Event()

    def search(embedding, prompts, **asked):
        decoded.append(len(prompts))
        at_work.set()
        if len(decoded) == 1:
            until = time.monotonic() + 60
            while not session._decoding._first:  # the click waits for its turn
                assert time.monotonic() < until
        return decode_prompts(embedding, prompts, **asked)

    def click(*given, **named):
        decoded.append("click")
        monkeypatch.setattr(finder, "decode_prompts", decode_prompts)
        answer = decode(*given, **named)
        monkeypatch.setattr(finder, "decode_prompts", search)
        return answer

    monkeypatch.setattr(finder, "decode_prompts", search)
    monkeypatch.setattr(finder, "decode", click)
    found = []
    thread = threading.Thread(target=lambda: found.append(session.find(0)))
    thread.start()
    assert at_work.wait(60)
    session.segment(1, STEPS[1:2])
    thread.join()

    assert decoded[:2] == [2, "click"]
    assert len(decoded) > 3
    assert found[0][1]


def test_find__leaves_clicks_answered(finder, images):
    started, clicked = threading.Event(), threading.Event()
    find_boxes, found = finder.instances.find_boxes, []

    def wait(*given):
        started.set()
        assert clicked.wait(60)
        return find_boxes(*given)

    finder.instances = replace(finder.instances, find_boxes=wait)
    session = LabelSession(finder, images, kept=2)
    thread = threading.Thread(target=lambda: found.append(session.find(0)))
    thread.start()
    assert started.wait(60)
    assert session.segment(0, STEPS).rle["size"] == [40, 60]
    assert session.segment(1, STEPS[:1]).rle["size"] == [30, 50]
    clicked.set()
    thread.join()

    assert found[0][1]
