"""Which subset of a data set plays which part: train, val and test, as its folders and files name them."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np

from vpexp.data.annotations import SPLIT_NAMES
from vpexp.errors import DataError

Item = TypeVar("Item")

_LISTED = 12
Part = Literal["all", "kept", "held out"]

ALIASES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation", "validate"),
    "test": ("test", "testing"),
}
"""What the subsets of each split are called in the wild, in any case, likeliest first."""


@dataclass(frozen=True, slots=True)
class SplitSource:
    """Where a split's images come from: a subset, or one part of it where it was divided."""

    subset: str
    part: Part = "all"


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """The sources of all splits that were asked for, and notes about them."""

    sources: dict[str, SplitSource]
    notes: list[str] = field(default_factory=list)


def plan_splits(
    subsets: Mapping[str, Collection[str]],
    requested: Mapping[str, str],
    wanted: Collection[str] = SPLIT_NAMES,
    *,
    without: Collection[tuple[str, str]] = (),
) -> SplitPlan:
    """Decide which subset is which split.

    A missing test split is replaced by the val split, a missing val split by a part of the train split that is set
    aside; a data set of one subset that no split is named after is its train split.

    Args:
        subsets: The data set's subsets: name -> other names that mean the same.
        requested: Split -> name of its subset, as configured; the split's own name stands for all its aliases.
        wanted: The splits that are needed.
        without: (Split, subset) pairs that are not to be used, because the subset turned out to have no annotations.

    Raises:
        DataError: A split that cannot be found, or a name that fits several subsets.
    """
    planner = _Planner(subsets, requested, without)
    plan = SplitPlan({split: planner.find_source(split) for split in SPLIT_NAMES if split in wanted}, planner.notes)
    train, val = plan.sources.get("train"), plan.sources.get("val")
    if train is not None and val is not None and val == SplitSource(train.subset, "held out"):
        plan.sources["train"] = SplitSource(train.subset, "kept")
    return plan


class _Planner:
    """Finds the sources of splits, one at a time, and only of those that are needed."""

    def __init__(
        self,
        subsets: Mapping[str, Collection[str]],
        requested: Mapping[str, str],
        without: Collection[tuple[str, str]],
    ) -> None:
        self.notes: list[str] = []
        self._subsets = subsets
        self._requested = requested
        self._without = without

    def find_source(self, split: str) -> SplitSource:
        """Find where a split's images come from, falling back from test to val, and from val to a part of train."""
        subset = self._find_subset(split)
        if subset is not None:
            return SplitSource(subset)
        if split == "test":
            self._note("no test split: testing on val")
            return self.find_source("val")
        train = self._find_subset("train")
        if train is None:
            files = {name: f" ({list(others)[-1]})" for name, others in self._subsets.items() if others}
            have = f"no {split} split: the data set has {_list(self._subsets, files) or 'no subset'}"
            raise DataError(f"{have}; name the one to use with data.{split}_split=<name>")
        self._note(f"no val split: a seeded part of '{train}' is set aside")
        return SplitSource(train, "held out")

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _list_names(self) -> str:
        return _list(self._subsets) or "no subset"

    def _find_subset(self, split: str) -> str | None:
        """Find the subset of a split: by exactly the name asked for, or by an alias of the split's own name."""
        name = self._requested[split]
        subset = self._find_exactly(name)
        if subset is None and name.lower() not in ALIASES[split]:
            raise DataError(
                f"data.{split}_split={name}: the data set has no one subset of this name, it has {self._list_names()}"
            )
        if subset is None or (split, subset) in self._without:
            subset = self._find_by_alias(split)
        if subset is None and split == "train" and len(self._subsets) == 1:
            only = next(iter(self._subsets))
            return None if any(set(_words(only)) & set(aliases) for aliases in ALIASES.values()) else only
        return subset

    def _find_exactly(self, name: str) -> str | None:
        """Find the subset that has this name, or else the only one that has it in another case or as another name."""
        if name in self._subsets:
            return name
        lower = name.lower()
        fits = [own for own, others in self._subsets.items() if lower in {own.lower(), *(o.lower() for o in others)}]
        return fits[0] if len(fits) == 1 else None

    def _find_by_alias(self, split: str) -> str | None:
        """Find the subset whose name is an alias of the split, or else contains one as a word."""
        free = [own for own in self._subsets if (split, own) not in self._without]
        by_name = [[own for own in free if own.lower() == alias] for alias in ALIASES[split]]
        by_word = [[own for own in free if alias in _words(own)] for alias in ALIASES[split]]
        fits = next(filter(None, [*by_name, *by_word]), [])
        if len(fits) > 1:
            raise DataError(f"several subsets could be {split}: {_list(fits)}; choose one with data.{split}_split=")
        return fits[0] if fits else None


def find_split(name: str) -> str | None:
    """Find the split whose alias a name has as a word: train for ``train2017``; None for no split, or several."""
    fits = [split for split, aliases in ALIASES.items() if set(_words(name)) & set(aliases)]
    return fits[0] if len(fits) == 1 else None


def says_split(name: str, split: str, requested: str) -> bool:
    """Return whether a subset of this name is a split: called as requested, or with an alias of the split as a word."""
    is_default = requested.lower() in ALIASES[split]
    return name.lower() == requested.lower() or (is_default and bool(set(_words(name)) & set(ALIASES[split])))


def _list(names: Collection[str], files: Mapping[str, str] | None = None) -> str:
    """List names for people, the first ones of very many, each with what ``files`` has to add."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(f"'{name}'{(files or {}).get(name, '')}" for name in sorted(names)[:_LISTED]) + more


def _words(name: str) -> list[str]:
    """Split a subset's name into its words: ``train_polygons`` and ``train2017`` both hold train."""
    return re.findall(r"[a-z]+", name.lower())


def divide(items: Sequence[Item], fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Divide items at random into those kept and those held out, each in their order.

    Args:
        items: What to divide, in an order that does not change from run to run.
        fraction: Share that is held out, between 0 and 1; at least one item, and at least one is kept.
        seed: The same seed divides the same items in the same way.

    Returns:
        (kept, held out). A single item is in both.

    Raises:
        DataError: A fraction that is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise DataError(f"data.val_fraction={fraction}: expected a share between 0 and 1")
    if len(items) < 2:
        return list(items), list(items)
    count = min(max(round(fraction * len(items)), 1), len(items) - 1)
    held_out = set(np.random.default_rng(seed).permutation(len(items))[:count].tolist())
    kept = [item for index, item in enumerate(items) if index not in held_out]
    return kept, [item for index, item in enumerate(items) if index in held_out]
