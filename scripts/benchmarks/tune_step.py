"""The same step where the last blocks of the encoder learn too: from what is kept before them, and without a cache."""

from scripts.benchmarks.train_step import Ours

TOLERANCES = {"loss": 2e-3}  # what is kept is float16


class LastOne(Ours):
    """The last block and the neck learn."""

    asked = ("model.tune=last:1",)


class PlainLastOne(Ours):
    """The same, each image encoded in each step."""

    asked = ("model.tune=last:1", "cache.enabled=false")


class LastTwo(Ours):
    """The last two blocks and the neck learn."""

    asked = ("model.tune=last:2",)


class PlainLastTwo(Ours):
    """The same, each image encoded in each step."""

    asked = ("model.tune=last:2", "cache.enabled=false")


SIDES = {"last_1": LastOne, "plain_last_1": PlainLastOne, "last_2": LastTwo, "plain_last_2": PlainLastTwo}
