"""``scripts/check_gpu`` in small, on the CPU: each part runs by itself, and the exit code tells whether all have passed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def check(*asked: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/check_gpu", "--device", "cpu", "--tiny", *asked]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.slow
def test_check_gpu__runs_all_parts_in_small(tmp_path, monkeypatch):
    monkeypatch.setenv("VPEXP_CACHE_DIR", str(tmp_path))
    done = check("--minutes", "9")
    assert done.returncode == 0, done.stdout + done.stderr
    for words in (
        "sam_debug float32: 0.00 of 10,000 mask pixels differ",
        "sam_debug bfloat16: ",
        "sam2_debug bfloat16, batch  2: ",
        "32-true: 6 images encoded in ",
        "bf16-mixed: 6 images encoded in ",
        "  training on cpu in ",
        "1 steps in ",
        "all parts passed",
    ):
        assert words in done.stdout


def test_check_gpu__a_part_that_fails_says_so_and_the_next_runs():
    done = check("--device", "nowhere", "--only", "agreement,encoder", "--minutes", "1")
    assert done.returncode == 1
    assert "agreement: FAILED" in done.stdout
    assert "encoder: FAILED" in done.stdout
    assert done.stdout.rstrip().endswith("failed: agreement, encoder")


def test_check_gpu__unknown_parts_are_said():
    done = check("--only", "agreement,encoders")
    assert done.returncode == 2
    assert "'encoders' is none of agreement, encoder, training, quickstart, sam_micro" in done.stderr
