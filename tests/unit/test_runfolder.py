import json
import math
import re
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from vpexp.errors import CheckpointError, ConfigError
from vpexp.files import write_json
from vpexp.runfolder import RunFolder, create_run_folder, find_latest, find_maker, mark_latest


def test_create_run_folder__is_named_after_stage_and_time(tmp_path):
    first, second = (create_run_folder(tmp_path / "out", "train") for _ in range(2))

    assert first.path.parent == tmp_path / "out" / "train"
    assert re.fullmatch(r"\d{8}_\d{6}_\d{6}", first.path.name)
    assert first.path.is_dir()
    assert first.path < second.path


def test_create_run_folder__given_folder_is_taken(tmp_path):
    assert create_run_folder(tmp_path, "train", tmp_path / "sweep" / "3").path == tmp_path / "sweep" / "3"


def test_create_run_folder__folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "out").write_text("a file")

    with pytest.raises(ConfigError, match=rf"paths.output_dir={tmp_path}/out cannot be written: Not a directory"):
        create_run_folder(tmp_path / "out", "train")


def test_mark_latest__link_is_relative_so_that_outputs_can_be_moved(tmp_path):
    folder = create_run_folder(tmp_path / "out", "train")

    mark_latest(tmp_path / "out", "train", folder)

    assert (tmp_path / "out" / ".latest" / "train").readlink() == Path(f"../train/{folder.path.name}")
    (tmp_path / "out").rename(tmp_path / "moved")
    assert find_latest(tmp_path / "moved", "train") == RunFolder(tmp_path / "moved" / "train" / folder.path.name)


def test_mark_latest__swap_is_atomic(tmp_path):
    folders = [create_run_folder(tmp_path, "train") for _ in range(2)]
    mark_latest(tmp_path, "train", folders[0])
    stop, found = threading.Event(), set()

    def look() -> None:
        while not stop.is_set():
            found.add(find_latest(tmp_path, "train"))

    reader = threading.Thread(target=look)
    reader.start()
    for turn in range(300):
        mark_latest(tmp_path, "train", folders[turn % 2])
    stop.set()
    reader.join()

    assert found <= set(folders)
    assert [path.name for path in (tmp_path / ".latest").iterdir()] == ["train"]


def test_find_latest__nothing_yet(tmp_path):
    assert find_latest(tmp_path, "train") is None


def test_find_latest__run_that_was_deleted(tmp_path):
    folder = create_run_folder(tmp_path, "train")
    mark_latest(tmp_path, "train", folder)
    folder.path.rmdir()

    assert find_latest(tmp_path, "train") is None
    again = create_run_folder(tmp_path, "train")
    mark_latest(tmp_path, "train", again)
    assert find_latest(tmp_path, "train") == again


def test_update_run_json__adds_and_replaces(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.read_run_json() == {}

    folder.update_run_json(status="RUNNING", stage="train")
    folder.update_run_json(status="FINISHED", path=tmp_path)

    assert folder.read_run_json() == {"status": "FINISHED", "stage": "train", "path": str(tmp_path)}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_read_run_json__damaged_file_is_one_line(tmp_path):
    (tmp_path / "run.json").write_text("{")

    with pytest.raises(CheckpointError, match=r"run\.json is not readable JSON"):
        RunFolder(tmp_path).read_run_json()


def test_write_json__nan_becomes_null_at_any_depth(tmp_path):
    write_json(tmp_path / "a.json", {"a": math.nan, "b": [1.5, math.inf], "c": {"d": (math.nan, "x")}, "e": 2})

    assert json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail) == {
        "a": None,
        "b": [1.5, None],
        "c": {"d": [None, "x"]},
        "e": 2,
    }


@pytest.mark.parametrize(
    "name", ["checkpoints/epoch_003.ckpt", "exported_model_decoder.xml", "optimized_model_decoder.onnx"]
)
def test_find_maker__is_the_run_in_whose_folder_a_file_lies(tmp_path, name):
    maker = create_run_folder(tmp_path, "train", tmp_path / "sweep" / "3")
    maker.update_run_json(stage="train")
    mark_latest(tmp_path, "train", maker)

    assert find_maker(maker.path / name) == maker
    assert find_maker(tmp_path / ".latest" / "train" / name) == maker


def test_find_maker__a_file_elsewhere_has_none(tmp_path):
    RunFolder(tmp_path).update_run_json(stage="train")

    assert find_maker(tmp_path / "copies" / "epoch_003.ckpt") is None


def hold_in_another_process(folder: RunFolder) -> int:
    """Try to hold a folder in another process: 0 where that works, 2 where it is in use."""
    script = f"""
import sys
from pathlib import Path
from vpexp.errors import CheckpointError
from vpexp.files import write_json
from vpexp.runfolder import RunFolder
folder = RunFolder(Path({str(folder.path)!r}))
held = folder.is_held()
try:
    with folder.hold():
        sys.exit(1 if held else 0)
except CheckpointError:
    sys.exit(2 if held else 1)
"""
    return subprocess.run([sys.executable, "-c", script], check=False).returncode


def test_hold__another_process_is_kept_out_until_the_last_holder_has_gone(tmp_path):
    folder = RunFolder(tmp_path)
    assert not folder.is_held()

    with folder.hold():
        with folder.hold():  # the thread that sends its records, or a part of a pipeline that goes on
            assert folder.is_held()
        assert folder.is_held()
        assert hold_in_another_process(folder) == 2
    assert not folder.is_held()
    assert hold_in_another_process(folder) == 0


def test_hold__holders_may_go_in_any_order(tmp_path):
    folder = RunFolder(tmp_path)
    first, second = ExitStack(), ExitStack()
    first.enter_context(folder.hold())
    second.enter_context(folder.hold())

    first.close()
    assert folder.is_held()
    second.close()
    assert not folder.is_held()


def test_hold__goes_with_a_process_that_is_killed(tmp_path):
    folder = RunFolder(tmp_path)
    script = f"""
import time
from pathlib import Path
from vpexp.files import write_json
from vpexp.runfolder import RunFolder
with RunFolder(Path({str(tmp_path)!r})).hold():
    print("held", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    assert folder.is_held()
    with pytest.raises(CheckpointError, match="is in use by another process"), folder.hold():
        pass

    process.kill()
    process.wait()

    assert not folder.is_held()


def test_is_held__asking_again_and_again_keeps_no_holder_out(tmp_path):
    folder = RunFolder(tmp_path)
    script = f"""
from pathlib import Path
from vpexp.files import write_json
from vpexp.runfolder import RunFolder
folder = RunFolder(Path({str(tmp_path)!r}))
print("asking", flush=True)
while True:
    folder.is_held()
"""
    asking = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for process in asking:
            assert process.stdout is not None
            assert process.stdout.readline() == b"asking\n"
        for _ in range(3000):
            with folder.hold():
                pass
    finally:
        for process in asking:
            process.kill()
            process.wait()


def test_is_held__folder_that_is_not_there(tmp_path):
    assert not RunFolder(tmp_path / "nowhere").is_held()


@pytest.mark.parametrize(
    "name", ["config.yaml", ".reserved", "vpexp.log", "checkpoints", "tensorboard/events", ".lock"]
)
def test_hold__a_link_out_of_the_folder_is_one_line(tmp_path, name):
    folder = create_run_folder(tmp_path, "train", tmp_path / "run")
    place, other = folder.path / name, tmp_path / "mine"
    other.write_text("kept")
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(other)

    with pytest.raises(CheckpointError, match=f"{place} is a link to {other}"), folder.hold():
        pass
    assert other.read_text() == "kept"


def test_hold__a_link_inside_the_folder_is_taken(tmp_path):
    folder = create_run_folder(tmp_path, "train", tmp_path / "run")
    (folder.path / "mlruns").symlink_to("overlays")

    with folder.hold():
        assert folder.is_held()
