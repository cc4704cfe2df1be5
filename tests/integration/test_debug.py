"""Trying things: one batch, the same batch again, where the time goes, and what Lightning's Trainer takes besides."""

import math
from pathlib import Path

from vpexp.runfolder import RunFolder, read_metrics


def test_debug_overfit__loss_of_the_one_batch_falls(tmp_path: Path, run_debug):
    asked = ("experiment=debug", "debug=overfit", "trainer.max_epochs=4", "optimizer.lr=1e-3", "stage.test=false")
    result = run_debug(tmp_path, "stage=train", *asked)

    assert result.folder is not None
    rows = read_metrics(RunFolder(result.folder).metrics_csv)
    losses = [float(row["train/loss"]) for row in rows if row["epoch"] != "0"]
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)
    assert RunFolder(result.folder).read_run_json()["mlflow_run_id"] is None


def test_debug_profile__writes_where_the_time_goes_and_no_tensorboard(tmp_path: Path, run_debug):
    asked = ("trainer.extra.check_val_every_n_epoch=2", "trainer.max_epochs=2", "stage.test=false")
    result = run_debug(tmp_path, "debug=profile", *asked)

    assert result.folder is not None
    assert "run_training_epoch" in (result.folder / "fit-profile.txt").read_text()
    assert not RunFolder(result.folder).tensorboard.exists()
    scores = [row["val/f1-score"] for row in read_metrics(RunFolder(result.folder).metrics_csv)]
    assert [bool(score) for score in scores] == [True, False, True]  # the start, and every second epoch


def test_fast_dev_run__goes_through_all_that_a_training_does(tmp_path: Path, run_debug):
    result = run_debug(tmp_path, "trainer.extra.fast_dev_run=true")

    assert result.artifacts["best_checkpoint"].is_file()
    assert math.isfinite(result.metrics["test/f1-score"])
