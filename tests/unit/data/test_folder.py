import os
import socket

import pytest

from vpexp.data.folder import Folder, list_files
from vpexp.errors import DataError


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_folder__lists_files_sorted_and_skips_hidden_ones(tmp_path):
    touch(tmp_path, "b/x.png", "a.txt", ".git/x.png", "__MACOSX/b/x.png", "b/._x.png")
    assert Folder(tmp_path).files == ("a.txt", "b/x.png")


def test_folder__missing(tmp_path):
    with pytest.raises(DataError, match=r"gone: no such folder; set data\.root"):
        Folder(tmp_path / "gone")


def test_folder__empty(tmp_path):
    (tmp_path / "inner").mkdir()
    with pytest.raises(DataError, match="the folder is empty"):
        Folder(tmp_path)


def test_folder__follows_links_but_not_in_circles(tmp_path):
    touch(tmp_path, "elsewhere/x.png", "set/a.txt")
    (tmp_path / "set/images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/round").symlink_to(tmp_path / "set")
    assert Folder(tmp_path / "set", allow_outside=True).files == ("a.txt", "images/x.png")


def test_folder__of_one_file(tmp_path):
    touch(tmp_path, "annotations/a.json", "annotations/b.json", "images/x.png")
    folder = Folder(tmp_path / "annotations/a.json")
    assert folder.root == tmp_path
    assert folder.files_with_suffix(".json") == ["annotations/a.json"]
    assert folder.has_image("images/x.png")


def test_folder__finds_directories_in_any_case(tmp_path):
    touch(tmp_path, "a/Images/x.png", "b/images/y/z.png")
    folder = Folder(tmp_path)
    assert folder.directories_named("images") == ["a/Images", "b/images"]
    assert folder.files_in("b/images") == []
    assert folder.files_in("b/images", recursive=True) == ["b/images/y/z.png"]
    assert folder.files_in("") == []


def test_folder__linked_from_two_places(tmp_path):
    touch(tmp_path, "pictures/x.png", "set/a.txt")
    for name in ("train", "val"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "pictures")
    (tmp_path / "set/gone").symlink_to(tmp_path / "nothing")
    assert Folder(tmp_path / "set").files == ("a.txt", "gone", "train/x.png", "val/x.png")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("set.zip", r"set\.zip is a file: unpack it and give the folder"),
        ("set.tar.gz", r"set\.tar\.gz is a file: unpack it and give the folder"),
        ("Annotations/a.xml", r"a\.xml is a file: give the folder of the data set"),
    ],
)
def test_folder__of_a_file_that_is_no_json(tmp_path, name, advice):
    touch(tmp_path, name)
    with pytest.raises(DataError, match=advice):
        Folder(tmp_path / name)


@pytest.mark.parametrize("root", ["~nobody_of_this_name/x", "x" * 5000, "/" + "x" * 300])
def test_folder__name_that_cannot_be(root):
    with pytest.raises(DataError, match=r"no such folder"):
        Folder(root)


def test_folder__pipes_and_sockets_are_listed_and_barred(tmp_path):
    touch(tmp_path, "images/a.png")
    os.mkfifo(tmp_path / "images/pipe.png")
    (tmp_path / "images/linked.png").symlink_to("pipe.png")
    (tmp_path / "images/null.png").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(os.path.relpath(tmp_path / "images/socket.png"))
        for allowed in (False, True):
            folder = Folder(tmp_path, allow_outside=allowed)
            assert set(folder.barred) == {f"images/{name}.png" for name in ("linked", "null", "pipe", "socket")}
            assert folder.barred["images/pipe.png"] == "no regular file, so it is not opened"
    assert list_files(tmp_path) == ["images/a.png"]
    with pytest.raises(DataError, match=r"pipe\.png: no regular file, so it is not opened"):
        folder.find_to_read("images/pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png: no regular file, so it is not opened; give the folder"):
        Folder(tmp_path / "images/pipe.png")


def test_folder__links_that_lead_outside_are_listed_and_barred(tmp_path):
    touch(tmp_path, "elsewhere/x.png", "elsewhere/deep/y.png", "set/a.txt")
    (tmp_path / "set/images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/b.txt").symlink_to("../elsewhere/x.png")
    (tmp_path / "set/c.txt").symlink_to("a.txt")
    (tmp_path / "set/up").symlink_to("..")
    (tmp_path / "set/self").symlink_to("self")
    folder = Folder(tmp_path / "set")
    reason = "file outside the given folder (data.allow_outside=true uses it)"
    inside = {"a.txt", "c.txt", "self"}
    assert {"b.txt", "images/x.png", "images/deep/y.png"} <= set(folder.barred) == set(folder.files) - inside
    assert set(folder.barred.values()) == {reason}
    assert Folder(tmp_path / "set", allow_outside=True).barred == {}
    (tmp_path / "linked").symlink_to("set")
    assert set(Folder(tmp_path / "linked").barred) == set(folder.barred)  # the root itself may be a link


def test_folder__a_link_to_the_whole_disk_takes_no_time(tmp_path, monkeypatch):
    touch(tmp_path, "set/a.txt", *(f"disk/{number}/{name}" for number in range(30) for name in "abc"))
    (tmp_path / "set/disk").symlink_to("../disk")
    monkeypatch.setattr("vpexp.data.folder._MOST_OUTSIDE", 10)
    assert len(Folder(tmp_path / "set").files) < 20


def test_folder__hidden_annotation_file_that_is_named(tmp_path):
    touch(tmp_path, ".annotations.coco.json")
    folder = Folder(tmp_path / ".annotations.coco.json")
    assert folder.files == (".annotations.coco.json",) == tuple(folder.files_with_suffix(".json"))
    with pytest.raises(DataError, match="empty"):
        Folder(tmp_path)
