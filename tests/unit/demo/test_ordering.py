"""Which image is next."""

import time

import numpy as np
import pytest

from vpexp.data.masks import encode_mask
from vpexp.demo.ordering import RULES, Ordering
from vpexp.demo.proposals import Proposals
from vpexp.demo.session import LabelSession
from vpexp.demo.store import LabelStore
from vpexp.inference.load import load_predictor


@pytest.fixture
def parts(finder, images, tmp_path):
    session, store = LabelSession(finder, images, kept=2), LabelStore(tmp_path / "labels")
    return session, store, Proposals(session, store)


def test_order__without_a_look_is_that_of_names_and_labelled_ones_are_left_out(parts, images):
    session, store, proposals = parts
    ordering = Ordering(session, proposals, store)

    assert ordering.list_next() == [0, 1, 2]
    store.set_done(images[1], 30, 50, done=True)
    mask_HW = np.zeros((40, 60), bool)
    mask_HW[2:9, 3:9] = True
    store.keep(images[0], "berry", encode_mask(mask_HW), score=1.0, prompt={}, uid="one")
    assert ordering.list_next() == [2]


@pytest.mark.parametrize("rule", RULES)
def test_order__is_by_what_is_expected_once_images_were_looked_at(parts, rule):
    session, store, proposals = parts
    ordering = Ordering(session, proposals, store, rule)
    for index in (0, 2):
        ordering.look(index, session.model)
    embeddings = session._embeddings.currsize

    found = ordering.list_next()

    assert sorted(found[:2]) == [0, 2]
    assert found[2] == 1  # that nobody looked at yet
    assert embeddings == 0  # no page's image lost its place
    assert Ordering(session, proposals, store, rule).list_next() == [0, 1, 2]


def test_order__exported_models_are_looked_at_alike(images, debug_ir, debug_sam, tmp_path):
    features = []
    for model in (debug_sam, debug_ir):
        session = LabelSession(load_predictor(model, threads=1), images, kept=2)
        store = LabelStore(tmp_path / f"labels{len(features)}")
        ordering = Ordering(session, Proposals(session, store), store)
        ordering.look(0, session.model)
        features.append(ordering._features[0])

    assert features[0].shape == (256,)
    np.testing.assert_allclose(features[1], features[0], atol=1e-4)


def test_far_from_what_is_labelled__comes_first(parts, images):
    session, store, proposals = parts
    ordering = Ordering(session, proposals, store, "distance")
    store.set_done(images[0], 40, 60, done=True)
    ordering._features = {0: np.zeros(4), 1: np.full(4, 0.1), 2: np.ones(4)}

    assert ordering.list_next() == [2, 1]


def test_images__are_looked_at_while_nobody_asks(parts, monkeypatch):
    session, store, proposals = parts
    monkeypatch.setattr("vpexp.demo.ordering.QUIET", 0.0)
    monkeypatch.setattr("vpexp.demo.ordering.PAUSE", 0.0)
    ordering = Ordering(session, proposals, store)
    ordering.start()
    until = time.monotonic() + 60
    while len(ordering._doubts) < 3:
        assert time.monotonic() < until
        time.sleep(0.01)
    ordering.end()

    assert ordering._features.keys() == {0, 1, 2}
    assert all(0 <= doubt <= 1 for _, doubt in ordering._doubts.values())
