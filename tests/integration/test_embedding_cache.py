"""The embedding cache as a user meets it: each image is encoded once, and nothing that happens to the cache stops a run."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.test_resume import assert_same_training
from vpexp.config import compose_config
from vpexp.embeddings import fill as embedding_fill
from vpexp.errors import ConfigError
from vpexp.run import run
from vpexp.stages.shared.context import StageResult

DEBUG = (
    *("experiment=debug", "callbacks.progress=null", "tracking=none", "trainer.threads=1", "stage.overlays=1"),
    "prompter=none",
)
IMAGES = 8  # 4 train, 2 val, 2 test


def run_stage(root: Path, *asked: str, defaults: tuple[str, ...] = DEBUG) -> StageResult:
    overrides = [*defaults, f"paths.output_dir={root}/outputs", f"paths.cache_dir={root}/cache", *asked]
    return run(compose_config(overrides), overrides)


def read_record(result: StageResult) -> dict:
    assert result.folder is not None
    return json.loads((result.folder / "run.json").read_text())


def count(result: StageResult) -> tuple[int, int, int]:
    """Images encoded into the cache, found in it, and passes of the encoder in all."""
    record = read_record(result)
    return record["cache"]["encoded"], record["cache"]["hits"], record["encoder_passes"]


def list_entries(root: Path) -> list[Path]:
    return sorted((root / "cache" / "embeddings").rglob("*.emb"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StageResult]:
    root = tmp_path_factory.mktemp("trained")
    return root, run_stage(root, "trainer.max_epochs=3", "prompter=default")


@pytest.fixture
def filled(trained: tuple[Path, StageResult], tmp_path: Path) -> Path:
    """A copy of what the first training left."""
    shutil.copytree(trained[0] / "cache", tmp_path / "cache")
    return tmp_path


def test_train__each_image_is_encoded_once_ever(trained, filled, capsys):
    _, first = trained
    assert count(first) == (IMAGES, 0, IMAGES), "three epochs, two evaluations before, two after"
    assert len(list_entries(filled)) == IMAGES
    second = run_stage(filled, "trainer.max_epochs=3", "data.num_workers=2", "prompter=default")
    assert count(second) == (0, IMAGES, 0)
    assert f"embeddings: {IMAGES} images, {IMAGES} from the cache, 0.1 MB in {filled}/cache/embeddings" in (
        capsys.readouterr().out
    )
    assert_same_training(first.folder, second.folder)
    assert list(second.folder.joinpath("overlays").iterdir())


def test_test__after_training_encodes_only_what_it_times(trained, filled):
    shutil.copytree(trained[0] / "outputs", filled / "outputs", symlinks=True)
    result = run_stage(filled, "stage=test", f"checkpoint={trained[1].artifacts['best_checkpoint']}")
    assert count(result) == (0, 2, 2), "the test split has two images, up to three are timed"
    assert result.metrics["test/encoder_time"] > 0
    assert result.metrics["test/f1-score"] == trained[1].metrics["test/f1-score"]
    assert list(result.folder.joinpath("overlays").iterdir())


def test_train__other_weights_see_no_entries_of_these(filled):
    assert count(run_stage(filled, "seed=1")) == (IMAGES, 0, IMAGES)
    assert len(list_entries(filled)) == 2 * IMAGES


def test_train__a_changed_image_is_encoded_again(filled):
    (changed, *_), images = (sorted(filled.glob("cache/synthetic/*/images/*")), IMAGES)
    other = sorted(filled.glob("cache/synthetic/*/images/*"))[1]
    content = changed.read_bytes()
    changed.write_bytes(other.read_bytes() + b"\0")  # another file of the same size in pixels
    assert count(run_stage(filled)) == (1, images - 1, 1)
    changed.write_bytes(content)
    assert count(run_stage(filled)) == (0, images, 0)


def test_train__damaged_entries_are_encoded_again(trained, filled):
    cut_off, flipped, empty, foreign, *_, source = list_entries(filled)
    os.truncate(cut_off, 100)
    content = flipped.read_bytes()
    flipped.write_bytes(content[:-1] + bytes([content[-1] ^ 4]))
    empty.write_bytes(b"")
    shutil.copy(source, foreign)
    result = run_stage(filled, "trainer.max_epochs=3")
    encoded, hits, passes = count(result)
    assert (encoded, hits, passes) == (2, IMAGES - 2, 4), "what has the wrong length before, the others when first used"
    assert read_record(result)["cache"]["damaged"] == 2
    assert_same_training(trained[1].folder, result.folder)
    assert count(run_stage(filled)) == (0, IMAGES, 0)


@pytest.mark.slow
def test_train__killed_while_filling_the_next_start_goes_on(tmp_path):
    words = [*DEBUG, f"paths.output_dir={tmp_path}/outputs", f"paths.cache_dir={tmp_path}/cache"]
    words += ["data.synthetic.train=40", "data.num_workers=0"]
    process = subprocess.Popen([sys.executable, "-m", "vpexp", *words], stdout=subprocess.DEVNULL)
    while process.poll() is None and len(list_entries(tmp_path)) < 3:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(list_entries(tmp_path))
    assert done >= 3
    assert count(run_stage(tmp_path, "data.synthetic.train=40")) == (44 - done, done, 44 - done)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_train__two_at_once_encode_each_image_once(tmp_path, trained):
    shutil.copytree(trained[0] / "cache" / "synthetic", tmp_path / "cache" / "synthetic")
    words = [*DEBUG, f"paths.cache_dir={tmp_path}/cache", "data.num_workers=0"]
    processes = [
        subprocess.Popen([sys.executable, "-m", "vpexp", *words, f"paths.output_dir={tmp_path}/{name}"])
        for name in "ab"
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    records = [json.loads(path.read_text()) for path in tmp_path.glob("?/train/*/run.json")]
    assert sum(record["encoder_passes"] for record in records) == IMAGES
    assert all(record["cache"]["encoded"] + record["cache"]["hits"] == IMAGES for record in records)


def test_train__full_disk(tmp_path, trained, capsys, monkeypatch):
    """The limit on file sizes stops entries (about 8 kB) as a full disk would, and lets smaller files pass."""
    shutil.copytree(trained[0] / "cache" / "synthetic", tmp_path / "cache" / "synthetic")
    fill = embedding_fill._Filler.fill

    def fill_with_limit(filler, images):
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
        try:
            return fill(filler, images)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)

    monkeypatch.setattr(embedding_fill._Filler, "fill", fill_with_limit)
    result = run_stage(tmp_path, "trainer.max_epochs=3")
    line = f"embeddings: {tmp_path}/cache/embeddings cannot be written (File too large); going on"
    assert capsys.readouterr().out.count(line) == 1
    assert not [path for path in tmp_path.rglob("*") if path.suffix in {".part", ".emb"}]
    encoded, _, passes = count(result)
    assert (encoded, passes > IMAGES) == (0, True)
    assert_same_training(trained[1].folder, result.folder)


def test_train__folder_that_is_a_file(tmp_path, trained, capsys):
    shutil.copytree(trained[0] / "cache" / "synthetic", tmp_path / "cache" / "synthetic")
    (tmp_path / "cache" / "embeddings").write_text("not a folder")
    result = run_stage(tmp_path, "trainer.max_epochs=3")
    assert f"{tmp_path}/cache/embeddings cannot be written (Not a directory); going on" in capsys.readouterr().out
    assert_same_training(trained[1].folder, result.folder)


def test_train__budget_that_holds_a_part(tmp_path, trained, capsys):
    shutil.copytree(trained[0] / "cache" / "synthetic", tmp_path / "cache" / "synthetic")
    size = list_entries(trained[0])[0].stat().st_size
    result = run_stage(tmp_path, "trainer.max_epochs=3", f"cache.max_gb={5.5 * size / 1e9:.9f}")
    assert count(result)[:2] == (5, 0)
    assert len(list_entries(tmp_path)) == 5
    said = capsys.readouterr().out
    assert "holds 5 of the 8 images (0.1 MB); the other 3 are encoded whenever they are used" in said
    assert_same_training(trained[1].folder, result.folder)


MIN_DELTA = "callbacks.early_stopping.min_delta"


def test_train__of_all_of_the_encoder_keeps_what_the_trained_one_gives(tmp_path, capsys):
    result = run_stage(tmp_path, "model.freeze=[prompt_encoder]", f"{MIN_DELTA}=-1")
    reason = "all of the image encoder learns; with model.tune=last:<k> what comes before is kept"
    assert f"embeddings: not kept ({reason}), each image is encoded whenever it is used" in capsys.readouterr().out
    assert read_record(result)["encoder_passes"] > 2 * IMAGES
    assert len(list_entries(tmp_path)) == IMAGES
    words = ["stage=test", f"paths.output_dir={tmp_path}/outputs", f"paths.cache_dir={tmp_path}/cache"]
    words += ["tracking=none", "callbacks.progress=null"]
    assert count(run(compose_config(words), words)) == (0, 2, 2)


def test_train__without_a_cache_says_why(tmp_path, capsys):
    reason = "cache.enabled=false"
    result = run_stage(tmp_path, "cache=none")
    line = f"embeddings: not kept ({reason}), each image is encoded whenever it is used"
    assert line in capsys.readouterr().out
    assert read_record(result)["cache"] == {"enabled": False, "reason": reason}
    assert read_record(result)["encoder_passes"] > IMAGES
    assert not (tmp_path / "cache" / "embeddings").exists()


def test_test__of_an_inherited_precision_finds_the_entries(tmp_path):
    run_stage(tmp_path, "cache.precision=float32")
    words = ["stage=test", f"paths.output_dir={tmp_path}/outputs", f"paths.cache_dir={tmp_path}/cache"]
    words += ["tracking=none", "callbacks.progress=null"]
    assert count(run(compose_config(words), words)) == (0, 2, 2)


def test_cache__wrong_values_are_said(tmp_path):
    for asked, message in (
        ("cache.precision=float8", "must be one of float16, float32, int8"),
        ("cache.backend=onnx", "must be one of auto, torch, openvino"),
        ("cache.max_gb=0", "must be above 0; cache=none switches the cache off"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_stage(tmp_path, asked)


def test_cache__openvino_fills_it_too(tmp_path, capsys):
    result = run_stage(tmp_path, "cache.backend=openvino")
    assert count(result) == (IMAGES, 0, IMAGES)
    assert read_record(result)["cache"]["encoders"] == {"openvino": IMAGES}
    assert "encoded in" in (said := capsys.readouterr().out)
    assert "by openvino" in said


@pytest.mark.slow
def test_train__masks_agree_with_and_without_the_cache(tmp_path):
    """On the model that sees, trained on the quick start's images."""
    asked = ["experiment=quickstart", "stage=train", "stage.test=true", "trainer.max_epochs=1", "stage.overlays=0"]
    asked += ["callbacks.progress=null", "tracking=none", "trainer.threads=1", "stage.controls=false", "prompter=none"]
    asked += ["data.synthetic.train=12", "data.synthetic.val=4", "data.synthetic.test=4"]
    asked += [f"paths.output_dir={tmp_path}/outputs", f"paths.cache_dir={tmp_path}/cache"]
    scores = []
    for option in ("cache=default", "cache=none"):
        overrides = [*asked, option]
        metrics = run(compose_config(overrides), overrides).metrics
        scores.append([metrics[f"{split}/f1-score"] for split in ("before/val", "val", "before/test", "test")])
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    assert min(scores[0]) > 0.6
