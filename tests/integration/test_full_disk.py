"""Runs whose outputs do not fit on the disk: one line, exit code 2, a record that says FAILED; with more space they go on."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import DEBUG, RunDebug
from vpexp.errors import OutputError
from vpexp.files import find_full_disk
from vpexp.inference.exported import ExportedModel

TRAIN = (*DEBUG, "stage.test=false", "stage.overlays=0", "callbacks.early_stopping=null")
FULL = "cannot be written: No space left on device; free some space, then "
MountDisk = Callable[[str], Path]


def mount(*options: str) -> bool:
    return subprocess.run(["mount", "-t", "tmpfs", *options], capture_output=True, check=False).returncode == 0


@pytest.fixture
def mount_disk(tmp_path: Path) -> Iterator[MountDisk]:
    """Mount a disk in memory: ``mount_disk("64k")``; once more: another size."""
    place = tmp_path / "disk"

    def mount_small(size: str) -> Path:
        there = place.is_mount()
        place.mkdir(exist_ok=True)
        if not mount("-o", f"{'remount,' if there else ''}size={size}", "tmpfs", str(place)):
            pytest.skip("this process may not mount a file system")
        return place

    yield mount_small
    if place.is_mount():
        subprocess.run(["umount", "-l", str(place)], check=True)


def command(disk: Path, cache_dir: Path, *asked: str) -> tuple[int, list[str]]:
    """Run vpexp; return its exit code and what it wrote to standard error."""
    words = [*asked, f"paths.output_dir={disk}/outputs", f"paths.cache_dir={cache_dir}"]
    done = subprocess.run(
        [sys.executable, "-m", "vpexp", *words],
        cwd=cache_dir,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr.splitlines()


def read_records(disk: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in disk.glob("outputs/[a-z]*/*/run.json")]


def assert_told_in_a_line(disk: Path, cache_dir: Path, *asked: str) -> str:
    code, lines = command(disk, cache_dir, *asked)
    assert (code, len(lines)) == (2, 1), lines
    assert FULL in lines[0]
    assert {record["status"] for record in read_records(disk)} <= {"FAILED"}
    assert not list(disk.rglob(".reserved"))
    return lines[0]


@pytest.mark.parametrize("size", ["16k", "64k"])
def test_train__disk_that_holds_no_record_begins_nothing(mount_disk: MountDisk, run_debug: RunDebug, size: str) -> None:
    disk = mount_disk(size)

    with pytest.raises(OutputError, match=FULL):
        run_debug(disk / "outputs", "tracking=none")

    assert read_records(disk) == []


def test_train__full_disk_is_one_line(mount_disk: MountDisk, cache_dir: Path) -> None:
    disk = mount_disk("256k")

    line = assert_told_in_a_line(disk, cache_dir, *TRAIN)  # MLflow's database is on that disk too

    assert line.endswith("start again")
    (record,) = read_records(disk)
    assert record["error"].startswith("OutputError: ")


@pytest.mark.slow
@pytest.mark.parametrize("size", ["1m", "12m", "24m"])
def test_train__full_disk_is_one_line_at_every_size(mount_disk: MountDisk, cache_dir: Path, size: str) -> None:
    assert_told_in_a_line(mount_disk(size), cache_dir, *TRAIN, "trainer.max_epochs=3")


@pytest.mark.slow
def test_train__goes_on_when_there_is_space(mount_disk: MountDisk, cache_dir: Path) -> None:
    disk = mount_disk("50m")
    line = assert_told_in_a_line(disk, cache_dir, *TRAIN, "trainer.max_epochs=3", "tracking=none")
    mount_disk("200m")

    code, lines = command(disk, cache_dir, line.rpartition("resume: python -m vpexp ")[2])

    assert (code, lines) == (0, [])
    (record,) = read_records(disk)
    assert (record["status"], record["epochs"]) == ("FINISHED", 3)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["96k", "1m", "6m"])
def test_export__full_disk_is_one_line(mount_disk: MountDisk, cache_dir: Path, size: str) -> None:
    asked = ("stage=export", "model=sam_debug", "checkpoint=null", "data=synthetic", "tracking=none")
    assert_told_in_a_line(mount_disk(size), cache_dir, *asked)


@pytest.mark.slow
def test_ptq__full_disk_is_one_line(mount_disk: MountDisk, cache_dir: Path, debug_ir: ExportedModel) -> None:
    small = ("data=synthetic", "data.synthetic.scene=shapes", "data.synthetic.image_size=64", "data.synthetic.train=4")
    asked = ("stage=ptq", f"checkpoint={debug_ir.decoder}", *small, "tracking=none")
    assert_told_in_a_line(mount_disk("1m"), cache_dir, *asked)


@pytest.mark.slow
def test_predict__full_disk_is_one_line(mount_disk: MountDisk, cache_dir: Path, tmp_path: Path) -> None:
    photo, prompts = tmp_path / "a.png", tmp_path / "prompts.json"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8)).save(photo)
    prompts.write_text('{"a.png": {"boxes": [[10, 20, 90, 80]]}}')
    asked = ("stage=predict", "model=sam_debug", "checkpoint=null", f"source={photo}", f"prompts={prompts}")
    assert_told_in_a_line(mount_disk("160k"), cache_dir, *asked, "tracking=none")


def test_find_full_disk__in_what_led_to_an_error() -> None:
    error = RuntimeError("unexpected pos 64 vs 0")
    error.__cause__ = OSError(28, "No space left on device")
    later = ValueError("behind it")
    later.__context__ = error

    assert find_full_disk(later) == "No space left on device"
    assert find_full_disk(RuntimeError("basic_ios::clear: iostream error")) is not None
    assert find_full_disk(OSError(2, "No such file or directory")) is None
