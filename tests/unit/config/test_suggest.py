import pytest

from vpexp.config import compose_config
from vpexp.config.explain import find_closest, format_suggestion, list_keys


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("data.batch_sise", "data.batch_size"),
        ("dat.batch_size", "data.batch_size"),
        ("batch_size", "data.batch_size"),
        ("lr", "optimizer.lr"),
        ("trainer.lr", "optimizer.lr"),
        ("epochs", "trainer.max_epochs"),
        ("dataa", "data"),
        ("callbacks.early_stoping", "callbacks.early_stopping"),
        ("traner.max_epochs", "trainer.max_epochs"),
    ],
)
def test_find_closest__typing_errors(wrong, right):
    assert find_closest(wrong, list_keys(compose_config())) == right


def test_find_closest__nothing_like_it():
    assert find_closest("xyzzy", list_keys(compose_config())) is None
    assert find_closest("anything", []) is None


def test_find_closest__never_the_section_of_the_wrong_key():
    assert find_closest("prompt.a", ["prompt"]) is None


def test_find_closest__of_equals_the_one_that_lies_less_deep():
    assert find_closest("seed", ["data.synthetic.seed", "seed"]) == "seed"


def test_find_closest__hydras_own_keys_only_for_hydras_keys():
    assert find_closest("hydra.run.dirr", ["hydra.run.dir"]) == "hydra.run.dir"
    assert find_closest("run.dir", ["hydra.run.dir"]) is None


def test_format_suggestion__ends_a_line():
    assert format_suggestion("cocoo", ["coco", "voc"]) == "; did you mean 'coco'?"
    assert format_suggestion("xyzzy", ["coco", "voc"]) == ""


def test_suggestion__a_name_of_other_libraries():
    keys = ["optimizer.lr", "trainer.max_epochs", "data.batch_size", "data.root", "trainer.accelerator"]
    found = {
        wrong: find_closest_of(wrong, keys) for wrong in ("optimizer.learning_rate", "epochs", "data.path", "device")
    }
    assert found == {
        "optimizer.learning_rate": "optimizer.lr",
        "epochs": "trainer.max_epochs",
        "data.path": "data.root",
        "device": "trainer.accelerator",
    }


def find_closest_of(wrong, keys):
    return format_suggestion(wrong, keys).removeprefix("; did you mean '").removesuffix("'?")
