"""An encoder that learns in part, from the command to the exported files: what is tested and exported is what was trained."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import RunDebug
from vpexp.stages.shared.context import StageResult

KEEP = "callbacks.early_stopping.min_delta=-1"
ASKED = (
    "experiment=debug",
    "optimizer=sgd",
    "optimizer.lr=1e-3",
    "tracking=none",
    "trainer.threads=1",
    "prompter=none",
    KEEP,
)
KINDS = {
    "blocks": ("model.tune=last:1", "optimizer.lr_encoder=1e-2"),
    "lora": ("model.tune=last:1", "adapter=lora", "adapter.rank=2"),
}


def read_state(result: StageResult) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(result.artifacts["best_checkpoint"], weights_only=True)["state_dict"]
    return state


def get_scores(result: StageResult, prefix: str) -> dict[str, float]:
    names = ("f1-score", "mean_iou", "map")
    return {name: result.metrics[f"{prefix}{name}"] for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_train__stopped_and_resumed_tested_and_exported(tmp_path: Path, run_debug: RunDebug, kind: str) -> None:
    asked = (*ASKED, *KINDS[kind])
    trained = run_debug(tmp_path / "whole", *asked, "trainer.max_epochs=2")
    state = read_state(trained)
    parts = {name.split(".")[1] for name in state}
    assert parts == {"image_encoder", "mask_decoder"}
    encoder = {name for name in state if name.startswith("sam.image_encoder.")}
    if kind == "lora":
        assert all("lora_" in name for name in encoder)
        assert any(value.any() for name, value in state.items() if name.endswith("lora_up"))
    else:
        assert all(name.startswith(("sam.image_encoder.blocks.1.", "sam.image_encoder.neck.")) for name in encoder)

    first = run_debug(tmp_path / "parts", *asked, "trainer.max_epochs=1")
    resumed = run_debug(tmp_path / "parts", f"resume={first.folder}", "trainer.max_epochs=2", "tracking=none")
    for name, value in read_state(resumed).items():
        assert torch.equal(value, state[name]), name
    assert get_scores(resumed, "test/") == get_scores(trained, "test/")

    checkpoint = f"checkpoint={trained.folder}"
    tested = run_debug(tmp_path / "test", "stage=test", checkpoint, "tracking=none")
    assert get_scores(tested, "test/") == get_scores(trained, "test/")

    exported = run_debug(tmp_path / "ir", "stage=export", checkpoint, "tracking=none")  # refuses what is not the same
    again = run_debug(
        tmp_path / "test_ir", "stage=test", f"checkpoint={exported.artifacts['decoder']}", "tracking=none"
    )
    for name, value in get_scores(trained, "test/").items():
        assert again.metrics[f"test/{name}"] == pytest.approx(value, abs=1e-4)

    official = run_debug(tmp_path / "sam", "stage=export", "export.format=sam", checkpoint, "tracking=none")
    (path,) = (path for path in official.artifacts.values() if path.suffix == ".pth")
    weights = torch.load(path, weights_only=True)
    assert not [name for name in weights if "lora" in name]
    assert all(np.isfinite(value.numpy()).all() for value in weights.values())
