"""Mixtures of weights: what is mixed, and which is chosen."""

import pytest
import torch

from vpexp.stages.shared.blend import Mixture, blend, choose_mixture, measure_mixture, mix_tensors


def build_mixture(share, gain, loss):
    return Mixture(share, gain, loss, {"box": loss})


def build_measures(trained, box):
    """One image whose sums give these F1."""
    return {name: {"a": (round(1000 * f1), 1000, 1000)} for name, f1 in (("trained", trained), ("box", box))}


def test_mix_tensors__lies_between():
    start = {"a.weight": torch.tensor([0.0, 4.0]), "a.lora_up": torch.zeros(1), "a.lora_down": torch.ones(1)}
    tuned = {
        "a.weight": torch.tensor([1.0, 2.0]),
        "a.lora_up": torch.full((1,), 8.0),
        "a.lora_down": torch.full((1,), 3.0),
    }
    start["count"], tuned["count"] = torch.tensor(3), torch.tensor(7)
    mixed = mix_tensors(start, tuned, 0.25)
    assert mixed["a.weight"].tolist() == [0.25, 3.5]
    assert (mixed["a.lora_up"] * mixed["a.lora_down"]).item() == pytest.approx(0.25 * 8 * 3), "the product is scaled"
    assert mixed["count"].item() == 7
    for share, expected in ((0.0, start), (1.0, tuned)):
        assert torch.equal(mix_tensors(start, tuned, share)["a.weight"], expected["a.weight"])


def test_mix_tensors__adapter_that_the_start_does_not_have():
    tuned = {"lora_up": torch.ones(2), "lora_down": torch.ones(2)}
    assert mix_tensors({}, tuned, 0.5)["lora_up"].tolist() == [0.5, 0.5]


def test_choose_mixture__loses_least_of_those_that_keep_the_gain():
    mixtures = [build_mixture(0.5, 0.08, 0.0), build_mixture(0.7, 0.095, 0.01), build_mixture(0.8, 0.099, 0.02)]
    assert choose_mixture([*mixtures, build_mixture(1.0, 0.1, 0.05)]).share == 0.7
    assert choose_mixture([*mixtures, build_mixture(1.0, 0.06, 0.05)]).share == 0.5


def test_choose_mixture__of_equals_the_one_that_gains_most():
    assert choose_mixture([build_mixture(0.9, 0.11, 0.0), build_mixture(1.0, 0.1, 0.0)]).share == 0.9
    assert choose_mixture([build_mixture(0.9, 0.1, 0.0), build_mixture(1.0, 0.11, 0.0)]).share == 1.0


def test_choose_mixture__where_nothing_was_gained():
    assert choose_mixture([build_mixture(0.5, 0.01, 0.0), build_mixture(1.0, -0.1, 0.2)]).share == 0.5
    assert choose_mixture([build_mixture(0.5, -0.2, 0.0), build_mixture(1.0, -0.1, 0.2)]).share == 1.0


def test_measure_mixture__counts_losses_and_no_gains_elsewhere():
    before, after = build_measures(0.5, 0.8), build_measures(0.6, 0.75)
    mixture = measure_mixture(0.3, before, after)
    assert (mixture.gain, mixture.loss) == (pytest.approx(0.1), pytest.approx(0.05))
    assert measure_mixture(0.3, after, before).loss == 0


def test_blend__writes_the_mixture_of_two_checkpoints(tmp_path):
    for name, value in (("start", 0.0), ("tuned", 1.0)):
        torch.save({"state_dict": {"w": torch.tensor([value])}, "vpexp": {"of": name}}, tmp_path / name)

    def measure(state):
        share = state["w"].item()
        return build_measures(0.5 + 0.1 * min(1.0, 2 * share), 0.8 - 0.1 * share)  # half of the way is as good

    paths = [tmp_path / name for name in ("start", "tuned", "blend")]
    share, record = blend("auto", *paths, before=build_measures(0.5, 0.8), measure=measure)
    assert share == 0.5
    written = torch.load(tmp_path / "blend", weights_only=True)
    assert (written["state_dict"]["w"].item(), written["vpexp"]) == (0.5, {"of": "tuned"})
    assert list(record["tried"]) == ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1"]
    assert record["tried"]["0.5"]["box"] == pytest.approx(0.05)


def test_blend__leaves_no_file_where_nothing_is_mixed(tmp_path):
    for name, value in (("start", 0.0), ("tuned", 1.0), ("blend", 0.5)):  # the last one of a training that was stopped
        torch.save({"state_dict": {"w": torch.tensor([value])}}, tmp_path / name)

    def measure(state):
        return build_measures(0.6 if state["w"].item() == 1 else 0.5, 0.8)

    paths = [tmp_path / name for name in ("start", "tuned", "blend")]
    share, _ = blend("auto", *paths, before=build_measures(0.5, 0.8), measure=measure)
    assert share == 1.0
    assert not (tmp_path / "blend").exists()
