"""Accuracy control, on made-up scores: which part becomes safer, and when it ends."""

from pathlib import Path

import pytest

from vpexp.deploy.quantize import INT8, KEEP, WEIGHTS, quantize_within
from vpexp.inference.exported import ExportedModel

START = {"image_encoder": INT8, "decoder": INT8}
SOURCE = ExportedModel(Path("source"), Path("source"), "openvino")


def control(losses, max_drop, start=START):
    """Run it on a model that loses what each part loses; return the result and what was tried."""
    tried = []

    def build(methods):
        tried.append(tuple(methods.values()))
        return ExportedModel(Path(methods["image_encoder"]), Path(methods["decoder"]), "openvino")

    def measure(model):
        if model is SOURCE:
            return 0.9
        return 0.9 - losses[0].get(str(model.encoder), 0) - losses[1].get(str(model.decoder), 0)

    made = quantize_within(SOURCE, build, measure, methods=start, max_drop=max_drop, report=[].append)
    return made, tried


def test_quantize_within__good_enough_at_once():
    made, tried = control(({INT8: 0.001}, {INT8: 0.001}), 0.01)
    assert made.methods == START
    assert tried == [(INT8, INT8)]
    assert made.reference == 0.9
    assert made.score == pytest.approx(0.898)


def test_quantize_within__the_part_that_hurts_goes_one_step():
    made, tried = control(({INT8: 0.001}, {INT8: 0.05}), 0.01)
    assert made.methods == {"image_encoder": INT8, "decoder": WEIGHTS}
    assert tried == [(INT8, INT8), (INT8, KEEP), (KEEP, INT8), (INT8, WEIGHTS)]


def test_quantize_within__one_part_goes_all_the_way():
    made, _ = control(({INT8: 0.2, WEIGHTS: 0.1}, {INT8: 0.001}), 0.01)
    assert made.methods == {"image_encoder": KEEP, "decoder": INT8}
    assert made.model.encoder == Path(KEEP)


def test_quantize_within__ends_with_what_was_exported():
    made, _ = control(({INT8: 0.2, WEIGHTS: 0.1}, {INT8: 0.3, WEIGHTS: 0.2}), 0.0)
    assert made.methods == {"image_encoder": KEEP, "decoder": KEEP}
    assert made.score == made.reference


def test_quantize_within__parts_that_are_kept_stay_so():
    made, tried = control(({}, {INT8: 0.2}), 0.01, {"image_encoder": KEEP, "decoder": INT8})
    assert made.methods == {"image_encoder": KEEP, "decoder": WEIGHTS}
    assert tried == [(KEEP, INT8), (KEEP, WEIGHTS)]


def test_quantize_within__nothing_is_measured_twice():
    _, tried = control(({INT8: 0.03, WEIGHTS: 0.02}, {INT8: 0.025, WEIGHTS: 0.02}), 0.0)
    alone = [methods for methods in tried if KEEP in methods and methods != (KEEP, KEEP)]
    assert len(alone) == len(set(alone))


def test_quantize_within__keeps_a_record():
    made, tried = control(({INT8: 0.001}, {INT8: 0.05}), 0.01)
    assert [tuple(trial.methods.values()) for trial in made.trials] == tried
    assert [round(trial.drop, 3) for trial in made.trials] == [0.051, 0.001, 0.05, 0.001]
