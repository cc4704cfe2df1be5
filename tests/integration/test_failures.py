"""What a user can cause ends in one clear error, whatever stage of a training it comes from."""

from pathlib import Path

import pytest

from tests.conftest import RunDebug
from vpexp.errors import CheckpointError, ConfigError, DivergenceError


def test_train__diverged_loss_is_an_error_and_leaves_no_latest(tmp_path: Path, run_debug: RunDebug) -> None:
    with pytest.raises(DivergenceError, match=r"lower optimizer\.lr"):
        run_debug(tmp_path, "optimizer.lr=1e30", "trainer.max_epochs=3", "tracking=none")
    assert not (tmp_path / ".latest" / "train").exists()


def test_train__early_stopping_on_an_unknown_metric_names_those_there_are(tmp_path: Path, run_debug: RunDebug) -> None:
    with pytest.raises(ConfigError, match=r"monitor=val/foo is not measured; there are .*val/f1-score"):
        run_debug(tmp_path, "callbacks.early_stopping.monitor=val/foo", "tracking=none")


def test_train__share_of_batches_that_is_none_is_one_line(tmp_path: Path, run_debug: RunDebug) -> None:
    with pytest.raises(ConfigError, match="trainer"):
        run_debug(tmp_path, "trainer.limit_train_batches=0.01", "tracking=none")


def test_resume__checkpoint_that_cannot_go_on_is_named(tmp_path: Path, run_debug: RunDebug) -> None:
    folder = run_debug(tmp_path, "tracking=none").folder
    assert folder is not None
    (weights,) = (folder / "checkpoints").glob("epoch_*.ckpt")
    with pytest.raises(CheckpointError, match=rf"holds weights alone.*resume={folder} goes on"):
        run_debug(tmp_path, f"resume={weights}", "tracking=none")
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match=r"last\.ckpt cannot be read"):
        run_debug(tmp_path, f"resume={folder}", "tracking=none")
