import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpexp.data.splits import SplitSource, divide, plan_splits
from vpexp.errors import DataError

NAMES = {"train": "train", "val": "val", "test": "test"}


def plan(*subsets, wanted=("train", "val", "test"), without=(), **requested):
    return plan_splits(dict.fromkeys(subsets, ()), {**NAMES, **requested}, wanted, without=without)


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"),
        ("Training", "Validation", "Testing"),
        ("TRAIN", "valid", "test"),
        ("train2017", "val2017", "test2017"),
        ("train_polygons", "val_polygons", "test_polygons"),
        ("fold/train", "fold/val", "fold/test"),
    ],
)
def test_plan_splits__names_in_the_wild(names):
    assert plan(*names).sources == dict(zip(NAMES, map(SplitSource, names), strict=True))
    assert plan(*names).notes == []


def test_plan_splits__missing_test_is_val():
    result = plan("train", "val")
    assert result.sources["test"] == result.sources["val"] == SplitSource("val")
    assert result.notes == ["no test split: testing on val"]


def test_plan_splits__missing_val_is_a_part_of_train():
    result = plan("train", "test")
    assert result.sources == {
        "train": SplitSource("train", "kept"),
        "val": SplitSource("train", "held out"),
        "test": SplitSource("test"),
    }
    assert result.notes == ["no val split: a seeded part of 'train' is set aside"]


@pytest.mark.parametrize("name", ["default", "result", "annotations", "my_grapes", "trainval"])
def test_plan_splits__one_unnamed_subset_is_train(name):
    result = plan(name)
    assert result.sources["train"] == SplitSource(name, "kept")
    assert result.sources["val"] == result.sources["test"] == SplitSource(name, "held out")
    assert len(result.notes) == 2


def test_plan_splits__trainval_only_without_train():
    assert plan("trainval", "train", "val").sources["train"] == SplitSource("train")
    assert plan("trainval", "test").sources["train"] == SplitSource("trainval", "kept")


def test_plan_splits__only_what_is_wanted():
    assert plan("test", wanted=("test",)).sources == {"test": SplitSource("test")}
    assert plan("val", wanted=("test",)).sources == {"test": SplitSource("val")}
    assert plan("a_train", "b_train", "test", wanted=("test",)).sources == {"test": SplitSource("test")}
    assert plan("default", wanted=("test",)).sources == {"test": SplitSource("default", "held out")}
    assert plan("train", wanted=("train",)).sources == {"train": SplitSource("train")}


def test_plan_splits__named_by_the_user():
    result = plan("day", "night", "train", train="night", val="DAY", test="train")
    assert result.sources == {"train": SplitSource("night"), "val": SplitSource("day"), "test": SplitSource("train")}


def test_plan_splits__named_by_another_name():
    subsets = {"train": ("instances_train", "annotations/instances_train.json")}
    for name in ("instances_train", "annotations/instances_train.json"):
        assert plan_splits(subsets, {**NAMES, "train": name}, ("train",)).sources == {"train": SplitSource("train")}


def test_plan_splits__same_subset_twice_by_the_users_wish():
    assert plan("train", val="train").sources["val"] == SplitSource("train")


def test_plan_splits__named_split_that_is_not_there():
    with pytest.raises(DataError, match=r"data\.val_split=nights: .* it has 'day', 'train'"):
        plan("day", "train", val="nights")


def test_plan_splits__no_training_split():
    with pytest.raises(DataError, match=r"no train split: the data set has 'day', 'night'; .*data\.train_split="):
        plan("day", "night")
    with pytest.raises(DataError, match="no train split: the data set has 'test'"):
        plan("test")


def test_plan_splits__several_fit():
    with pytest.raises(DataError, match=r"several subsets could be train: 'train_bbox', 'train_polygons'; choose one"):
        plan("train_polygons", "train_bbox")
    assert plan("train_polygons", "train", "val").sources["train"] == SplitSource("train")


def test_plan_splits__without_a_subset_that_has_no_annotations():
    result = plan("train", "val", "test", without=[("test", "test")])
    assert result.sources["test"] == SplitSource("val")


@given(st.lists(st.integers(), max_size=40, unique=True), st.floats(0.01, 0.99), st.integers(0, 5))
def test_divide__parts_are_disjoint_and_ordered(items, fraction, seed):
    kept, held_out = divide(items, fraction, seed)
    assert divide(items, fraction, seed) == (kept, held_out)
    if len(items) > 1:
        assert sorted(kept + held_out) == sorted(items)
        assert kept
        assert held_out
        for part in (kept, held_out):
            assert part == [item for item in items if item in part]
    else:
        assert kept == held_out == items


def test_divide__share_and_seed():
    kept, held_out = divide(range(100), 0.2, 0)
    assert len(held_out) == 20
    assert divide(range(100), 0.2, 1)[1] != held_out
    assert len(kept) == 80


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 2])
def test_divide__fraction_out_of_range(fraction):
    with pytest.raises(DataError, match=r"data\.val_fraction"):
        divide([1, 2], fraction, 0)
