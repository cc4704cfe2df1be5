"""The benchmarks on tiny images: that they run, and that both sides compute the same; never how long they take."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from scripts.benchmarks import command, first_epoch, ir_decoder, test_image
from scripts.benchmarks.duel import BenchmarkError, assert_same, compare, open_side
from scripts.benchmarks.results import build_table, describe, merge
from scripts.benchmarks.works import WORKS, Workshop

FIELDS = {"ours", "plain", "ratio", "unit"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """The model of 256 px on images of a few objects, one round."""
    folder = tmp_path_factory.mktemp("benchmark")
    return Workshop(folder, "sam_micro", threads=1, rounds=1, size_hw=(171, 256), objects=3, crowd=20)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "rows"),
    [
        ("decoder", {"decoder": ("logits", "iou", "gradients"), "decoder_forward": ("logits", "iou", "gradients")}),
        ("train_step", {"train_step": ("loss",)}),
    ],
)
def test_works__measure_both_sides_after_finding_them_equal(shop: Workshop, tmp_path: Path, work: str, rows: dict):
    measured = WORKS[work](shop)
    assert set(measured) == set(rows)
    for name, row in measured.items():
        assert row.ours > 0
        assert row.plain is None or row.ratio == pytest.approx(row.plain / row.ours)
        assert all(word in row.checked for word in rows[name])
    path = tmp_path / "benchmark.json"
    path.write_text('{"sweep/sam_vit_b": {"ours": 1}}')
    named = {f"{name}/sam_micro": row for name, row in measured.items()}
    merge(path, named)
    content = json.loads(path.read_text())
    assert content.pop("sweep/sam_vit_b") == {"ours": 1}
    assert set(content) == set(named)
    assert all(set(entry) >= FIELDS for entry in content.values())
    assert build_table(named, 1).row_count == len(describe(named)) == len(named)


@pytest.mark.slow
def test_clicks__are_answered_by_the_page_s_server_and_their_parts_are_all_of_them(shop: Workshop):
    pytest.importorskip("starlette")
    measured = WORKS["click"](shop)

    parts = {f"click_{part}" for part in ("decoder", "mask", "http")}
    assert {"click", "click_point", *parts} <= set(measured)
    assert all(row.ours > 0 and row.unit == "ms" for row in measured.values())
    assert sum(measured[part].ours for part in parts) == pytest.approx(measured["click"].ours, rel=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("work", [first_epoch, ir_decoder, test_image])
def test_sides__compute_the_same(shop: Workshop, work: ModuleType):
    settings = shop.settings()
    sides = {name: build(settings) for name, build in work.SIDES.items() if name != "ours_int8"}
    computed = {
        name: {key: np.asarray(value, float) for key, value in side.check().items()} for name, side in sides.items()
    }
    for name, side in sides.items():
        assert assert_same(work.__name__, name, computed[name], computed["plain"], work.TOLERANCES)
        side.prepare()
        side.turn()


@pytest.mark.slow
def test_side__that_fails_says_why(shop: Workshop, tmp_path: Path):
    settings = shop.settings()
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no weights")
    fields = {name: getattr(settings, name) for name in ("model", "folder", "data", "threads")}
    with (
        pytest.raises(BenchmarkError, match=r"the side 'plain' ended with code 1"),
        open_side("decoder", "plain", type(settings)(**fields, weights=broken)),
    ):
        pass


def test_assert_same__refuses_another_computation():
    expected = {"loss": np.array([1.0, 4.0])}
    assert assert_same("w", "ours", {"loss": np.array([1.0, 4.0])}, expected, {"loss": 1e-4}) == "loss 0e+00"
    with pytest.raises(BenchmarkError, match=r"they do not compute the same"):
        assert_same("w", "ours", {"loss": np.array([1.0, 4.1])}, expected, {"loss": 1e-4})
    with pytest.raises(BenchmarkError, match=r"they do not compute the same"):
        assert_same("w", "ours", {"loss": np.array([1.0, np.nan])}, expected, {"loss": 1e-4})
    with pytest.raises(BenchmarkError, match=r"nothing shows"):
        assert_same("w", "ours", {}, expected, {"loss": 1e-4})


def test_compare__a_side_that_cannot_do_the_work_has_no_ratio():
    assert compare(2.0, 5.0, unit="GB").ratio == 2.5
    assert compare(2.0, None, unit="GB").ratio is None


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, None])
def test_main__a_file_that_cannot_hold_the_results_is_refused_before_measuring(tmp_path, monkeypatch, capsys, content):
    path = tmp_path / "nowhere" / "a.json" if content is None else tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr("sys.argv", ["benchmark.py", "--json", str(path)])
    monkeypatch.setattr(command, "Workshop", lambda *_, **__: pytest.fail("it measures"))

    with pytest.raises(SystemExit) as caught:
        command.main()

    assert caught.value.code == 2
    assert f"--json {path}" in capsys.readouterr().err
