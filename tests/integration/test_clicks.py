"""Whole runs with ``prompt=clicks``: fine-tuning by simulated clicks, and the field's numbers of a test by clicks."""

import json

import pytest

from tests.conftest import RunDebug
from vpexp.stages.shared.context import StageResult

CLICKS = ("prompt=clicks", "prompt.clicks=3", "tracking=none")
NUMBERS = {
    *(f"{name}_clicks_{clicks}" for name in ("mean_iou", "f1-score") for clicks in (1, 2, 3)),
    *(f"noc_{iou}{end}" for iou in (80, 85, 90) for end in ("", "_failed")),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, run_debug: RunDebug) -> StageResult:
    return run_debug(tmp_path_factory.mktemp("clicks"), *CLICKS)


def test_train__learns_and_measures_by_clicks(trained: StageResult) -> None:
    assert trained.folder is not None
    written = json.loads((trained.folder / "metrics.json").read_text())["metrics"]
    for split in ("val", "test"):
        for name in NUMBERS:
            assert f"{split}/{name}" in written
            assert f"before/{split}/{name}" in written
        assert written[f"{split}/f1-score"] == written[f"{split}/f1-score_clicks_3"]
    assert 0 <= trained.metrics["test/wrong_image/f1-score"] <= 1
    assert list((trained.folder / "overlays").glob("test_*.png"))


@pytest.mark.parametrize(("first", "clicks"), [("point", 1), ("box", 0)])
def test_test__first_prompt_is_that_of_a_test_without_clicks(
    trained: StageResult, run_debug: RunDebug, capsys, first: str, clicks: int
) -> None:
    assert trained.folder is not None
    output_dir = trained.folder.parents[1]
    asked = ("stage=test", "stage.controls=false", "stage.overlays=0", "tracking=none")
    by_clicks = run_debug(output_dir, *asked, "prompt=clicks", "prompt.clicks=2", f"prompt.first={first}").metrics
    assert "clicks to IoU 0.85 (never)" in capsys.readouterr().out
    plain = run_debug(output_dir, *asked, f"prompt={first}").metrics
    for name in ("mean_iou", "f1-score"):
        assert by_clicks[f"test/{name}_clicks_{clicks}"] == plain[f"test/{name}"]
    assert "test/mean_iou_clicks_3" not in by_clicks
    assert not any("clicks" in name or "noc" in name for name in plain)
