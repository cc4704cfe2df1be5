import pytest

from vpexp.data.folder import Folder
from vpexp.data.shortage import explain_shortage
from vpexp.data.skipped import BOX_ONLY, CROWD, NOTHING_USABLE, SkipCounts


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    return Folder(tmp_path)


def test_explain_shortage__one_cause(folder):
    skips = SkipCounts()
    skips.skip(BOX_ONLY, "a.jpg, annotation 7", count=850)
    skips.skip(NOTHING_USABLE, "a.jpg", count=58)
    assert explain_shortage("train", "train2017", skips, folder) == (
        f"{folder.root}: nothing to learn from in split train ('train2017'): all 850 objects are boxes without masks; "
        "vpexp learns from masks: use annotations with polygons, RLE or mask images (first: a.jpg, annotation 7)"
    )


def test_explain_shortage__only_one_object(folder):
    skips = SkipCounts()
    skips.skip(CROWD, "a.jpg")
    assert "nothing to measure in split test ('t'): the only object is a crowd region;" in explain_shortage(
        "test", "t", skips, folder
    )


def test_explain_shortage__several_causes(folder):
    skips = SkipCounts()
    skips.skip(CROWD, "a.jpg", count=2)
    skips.skip(BOX_ONLY, "b.jpg", count=5)
    skips.skip("damaged RLE", "c.jpg")
    text = explain_shortage("train", "train", skips, folder)
    assert "5 objects are boxes without masks, 2 skipped: crowd region, 1 skipped: damaged RLE; vpexp" in text


def test_explain_shortage__no_cause(folder, tmp_path):
    assert explain_shortage("train", "train", SkipCounts(), folder).endswith("it has no images with annotations")
    (tmp_path / "a.png").rename(tmp_path / "a.txt")
    assert "the folder holds no image files" in explain_shortage("train", "train", SkipCounts(), Folder(tmp_path))
