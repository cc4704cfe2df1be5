"""What ``stage=demo`` labels, and where it puts it."""

from pathlib import Path

import pytest
from PIL import Image

from vpexp.config import compose_config
from vpexp.errors import ConfigError
from vpexp.runfolder import RunFolder
from vpexp.stages.demo import find_folder, list_images, run
from vpexp.stages.shared.context import RunContext
from vpexp.tracking.mlflow_run import MlflowRun


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "grapes"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (60, 40)).save(folder / name)
    return folder


def build_context(tmp_path: Path, *asked: str) -> RunContext:
    cfg = compose_config(
        ["stage=demo", "model=sam_debug", "checkpoint=null", f"paths.output_dir={tmp_path}/out", *asked]
    )
    return RunContext(cfg, RunFolder(tmp_path / "run"), MlflowRun(), lambda *_: pytest.fail("no other stage is run"))


def test_folder__is_named_after_the_source_the_same_every_time(tmp_path, photos):
    for source in (photos, photos / "a.png", f"{photos}/*.png", f"{photos}/../grapes/"):
        assert find_folder(build_context(tmp_path, f"source={source}")) == tmp_path / "out" / "labels" / "grapes"
    asked = build_context(tmp_path, f"source={photos}", f"demo.folder={tmp_path}/mine")
    assert find_folder(asked) == tmp_path / "mine"


def test_images__of_types_that_are_not_read_are_told(tmp_path, photos, capsys):
    (photos / "c.heic").write_bytes(b"something else")
    assert len(list_images(build_context(tmp_path, f"source={photos}"), tmp_path / "labels")) == 2
    assert "passed over: 1 x file type not read (.heic)" in " ".join(capsys.readouterr().out.split())


def test_images__of_the_data_set_are_none_of_the_source_around_it(tmp_path, photos):
    own = photos / "labels" / "images" / "train"
    own.mkdir(parents=True)
    (own / "a.png").hardlink_to(photos / "a.png")
    context = build_context(tmp_path, f"source={photos}", f"demo.folder={photos}/labels")

    assert [image.name for image in list_images(context, photos / "labels")] == ["a.png", "b.png"]
    inside = build_context(tmp_path, f"source={own}", f"demo.folder={photos}/labels")
    assert [image.name for image in list_images(inside, photos / "labels")] == ["a.png"]


def test_port_that_is_taken__is_said_before_the_model_is_loaded(tmp_path, photos):
    from vpexp.demo.server import open_socket

    with open_socket("127.0.0.1", None) as taken:
        context = build_context(tmp_path, f"source={photos}", f"demo.port={taken.getsockname()[1]}")
        with pytest.raises(ConfigError, match="is taken"):
            run(context)
    assert not (tmp_path / "out" / "labels" / "grapes" / ".lock").exists()
