"""``data.augment``: each variant of a training image is encoded once, and training draws them from seed and epoch alone."""

import json
from pathlib import Path

import pytest

from tests.integration.test_embedding_cache import count, list_entries, run_stage
from tests.integration.test_resume import assert_same_training
from vpexp.stages.shared.context import StageResult

AUGMENT = "data.augment=[flip,turn]"
IMAGES, TRAIN = 8, 4


@pytest.fixture(scope="module")
def augmented(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StageResult]:
    root = tmp_path_factory.mktemp("augmented")
    return root, run_stage(root, AUGMENT, "trainer.max_epochs=3")


def test_train__variants_are_encoded_once_and_shared_with_a_training_without(augmented, tmp_path):
    root, first = augmented
    needed = IMAGES + 7 * TRAIN
    assert count(first) == (needed, 0, needed)
    assert len(list_entries(root)) == needed
    plain = run_stage(root, "trainer.max_epochs=3")
    assert count(plain) == (0, IMAGES, 0), "what is not turned has the entries it always had"
    assert plain.metrics["best_epoch/val/f1-score"] != first.metrics["best_epoch/val/f1-score"]


def test_train__variants_make_no_difference_where_they_come_from(augmented, tmp_path):
    """Encoded in a step, by two workers, the numbers are those of variants that were stored before."""
    _, first = augmented
    other = run_stage(tmp_path, AUGMENT, "trainer.max_epochs=3", "data.num_workers=2", "cache.max_gb=1e-9")
    assert count(other)[:2] == (0, 0)
    assert_same_training(first.folder, other.folder)


def test_train__says_what_the_variants_take(augmented):
    text = (augmented[1].folder / "vpexp.log").read_text()
    assert (
        "data.augment: 8 variants of each image of train, 28 embeddings beside those of the images as they are" in text
    )


def test_train__other_colours_without_a_cache(tmp_path):
    plain, photo = (
        run_stage(tmp_path, "cache=none", "prompter=none", *more) for more in ((), ("data.augment=[photo]",))
    )
    losses = [json.loads((result.folder / "metrics.json").read_text())["metrics"] for result in (plain, photo)]
    assert losses[0]["before/val/f1-score"] == losses[1]["before/val/f1-score"], "val is as it is"
    assert losses[0]["best_epoch/val/f1-score"] != losses[1]["best_epoch/val/f1-score"]
