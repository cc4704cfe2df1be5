"""Which images a source means, and which of them a name means."""

import os
import string
from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vpexp.data.image_source import SourceImage, find_images, find_source_folder, match_names, suggest_name
from vpexp.data.skipped import SkipCounts, describe_remarks
from vpexp.errors import ConfigError, DataError


@pytest.fixture
def photos(tmp_path):
    """Images in two folders, with things that are none beside them."""
    for name in (
        *("b.jpg", "a.JPG", "left/a.JPG", "left/deep/c.png", "notes.txt", "prompts.json"),
        *(".hidden.jpg", ".cache/d.jpg", "__MACOSX/a.jpg"),
    ):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "photos"


def get_names(images):
    return [image.name for image in images]


def test_find_images__folder_with_all_below_it_sorted(photos):
    images = find_images(str(photos))
    assert get_names(images) == ["a.JPG", "b.jpg", "left/a.JPG", "left/deep/c.png"]
    assert [image.number for image in images] == [1, 2, 3, 4]
    assert [image.path for image in images] == [photos / name for name in get_names(images)]


def test_find_images__a_file_is_taken_as_it_is(photos):
    assert get_names(find_images(str(photos / "left" / "a.JPG"))) == ["a.JPG"]
    assert get_names(find_images(str(photos / ".hidden.jpg"))) == [".hidden.jpg"]
    (image,) = find_images(str(photos / "notes.txt"))  # whether it is an image shows when it is read
    assert image == SourceImage(1, "notes.txt", photos / "notes.txt")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", ["a.JPG", "b.jpg"]),
        ("?.jpg", ["b.jpg"]),
        ("**/*", ["a.JPG", "b.jpg", "left/a.JPG", "left/deep/c.png"]),
        ("**", ["a.JPG", "b.jpg", "left/a.JPG", "left/deep/c.png"]),
        ("*/a.*", ["left/a.JPG"]),
        ("left/*.JPG", ["a.JPG"]),
        ("[lr]eft/a.JPG", ["left/a.JPG"]),
    ],
)
def test_find_images__pattern(photos, pattern, names):
    assert get_names(find_images(str(photos / pattern))) == names


def test_find_images__relative_paths(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    assert get_names(find_images("photos")) == get_names(find_images("photos/")) == get_names(find_images(str(photos)))
    assert get_names(find_images("*/*.jpg")) == ["photos/b.jpg"]
    monkeypatch.chdir(photos)
    assert get_names(find_images(".")) == get_names(find_images(str(photos)))
    assert get_names(find_images("*.jpg")) == ["b.jpg"]


def test_find_images__home_is_understood(photos, monkeypatch):
    monkeypatch.setenv("HOME", str(photos.parent))
    assert get_names(find_images("~/photos/*.jpg")) == ["b.jpg"]


def test_find_images__folder_whose_name_looks_like_a_pattern(tmp_path):
    for folder in ("day [1]", "day 1"):
        (tmp_path / folder).mkdir()
    (tmp_path / "day [1]" / "a.png").write_bytes(b"")
    (tmp_path / "day 1" / "b.png").write_bytes(b"")
    assert get_names(find_images(str(tmp_path / "day [1]"))) == ["a.png"]
    assert get_names(find_images(str(tmp_path / "day [1]" / "*.png"))) == ["a.png"]


def test_find_images__own_pictures_below_the_source_are_passed_over(photos):
    picture = photos / "outputs" / "predict" / "1" / "overlays" / "a.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"")
    without = ["a.JPG", "b.jpg", "left/a.JPG", "left/deep/c.png"]
    assert get_names(find_images(str(photos), leave_out=photos / "outputs")) == without
    assert (
        get_names(find_images(str(photos), leave_out=photos.parent / "outputs"))[-1]
        == "outputs/predict/1/overlays/a.png"
    )
    assert get_names(find_images(str(photos), leave_out=photos)) == get_names(find_images(str(photos)))
    # named on purpose
    assert get_names(find_images(str(picture.parent), leave_out=photos / "outputs")) == ["a.png"]
    assert get_names(find_images(str(photos / "outputs/**/*.png"), leave_out=photos / "outputs")) == [
        "predict/1/overlays/a.png"
    ]


def test_find_images__folders_linked_in_circles(photos):
    (photos / "left" / "again").symlink_to(photos, target_is_directory=True)
    assert "left/a.JPG" in get_names(find_images(str(photos)))


def test_find_images__names_that_are_not_utf8(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xfcn.png"))
    path.write_bytes(b"")
    assert [image.path for image in find_images(str(tmp_path))] == [path]


def test_find_images__nothing_there_is_one_line(photos, tmp_path):
    with pytest.raises(ConfigError, match=r"source=.*/nope does not exist: give an image, a folder, or a pattern"):
        find_images(str(tmp_path / "nope"))
    with pytest.raises(ConfigError, match=r"/x\*\.jpg: nothing fits the pattern"):
        find_images(str(photos / "x*.jpg"))
    with pytest.raises(DataError, match="no image among the 1 files and folders"):
        find_images(str(photos / "*.txt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image among the 0 files"):
        find_images(str(tmp_path / "empty"))


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("given_name", "expected"),
    [
        ("b.jpg", "b.jpg"),
        ("./b.jpg", "b.jpg"),
        ("photos/b.jpg", "b.jpg"),
        ("c.png", "left/deep/c.png"),
        ("deep/c.png", "left/deep/c.png"),
        ("left/deep/c.png", "left/deep/c.png"),
        ("left\\deep\\c.png", "left/deep/c.png"),
        ("a.JPG", "a.JPG"),  # the path below the source wins over a file name
        ("left/a.JPG", "left/a.JPG"),
    ],
)
def test_match_names__path_below_the_source_or_its_end(photos, given_name, expected):
    match = match_names([given_name], find_images(str(photos)), "p.json")
    assert match.images[given_name].name == expected
    assert match.unknown == ()


def test_match_names__whole_path(photos):
    path = str(photos / "left" / "a.JPG")
    assert match_names([path], find_images(str(photos)), "p.json").images[path].name == "left/a.JPG"


@pytest.mark.parametrize("name", ["", ".", "/", "x.jpg", "ft/a.JPG", "a.jpg", "right/a.JPG", "b.jpg/b.jpg", "b"])
def test_match_names__unknown(photos, name):
    match = match_names([name], find_images(str(photos)), "p.json")
    assert match.images == {}
    assert match.unknown == (name,)


def test_match_names__one_file_name_in_two_folders(tmp_path):
    for name in ("left/a.png", "right/a.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    images = find_images(str(tmp_path))
    match = match_names(["right/a.png", "left/a.png"], images, "p.json")
    assert [match.images[name].name for name in ("left/a.png", "right/a.png")] == ["left/a.png", "right/a.png"]
    with pytest.raises(
        DataError, match=r"p\.json: 'a\.png' fits 2 images \(left/a\.png, right/a\.png\); write the path"
    ):
        match_names(["a.png"], images, "p.json")
    with pytest.raises(DataError, match=r"'left/a\.png' and '\./left/a\.png' are the same image"):
        match_names(["left/a.png", "./left/a.png"], images, "p.json")


@given(st.lists(st.text(string.ascii_letters + "/.", min_size=1, max_size=8), min_size=1, max_size=8, unique=True))
def test_match_names__own_names_always_match(names):
    clean = list(dict.fromkeys("/".join(p for p in n.split("/") if p not in ("", ".", "..")) for n in names))
    images = [SourceImage(i, n, Path("/photos") / n) for i, n in enumerate(filter(None, clean), start=1)]
    match = match_names([image.name for image in images], images, "p.json")
    assert match.images == {image.name: image for image in images}


def test_suggest_name__closest(photos):
    images = find_images(str(photos))
    assert suggest_name("deep/cc.png", images) == "c.png"
    assert suggest_name("left/a.JPEG", images) == "a.JPG"
    assert suggest_name("something else", images) is None


def test_source_folder__is_that_of_a_file_a_folder_or_a_pattern(tmp_path):
    photos = tmp_path / "my [photos]"
    photos.mkdir()
    (photos / "a.jpg").touch()

    for source in (photos, photos / "a.jpg", photos / "*.jpg", photos / "**" / "*.png"):
        assert find_source_folder(str(source)) == photos


@pytest.mark.parametrize(("named", "kept"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_match_names__accents_in_either_form(tmp_path, named, kept):
    for name in ("Größe.png", "tief/é/ñandú.png", "plain.png"):
        path = tmp_path / normalize(kept, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    images = find_images(str(tmp_path))
    names = [normalize(named, name) for name in ("Größe.png", "é/ñandú.png")]
    match = match_names(names, images, "p.json")
    assert match.unknown == ()
    assert [normalize("NFC", match.images[name].name) for name in names] == ["Größe.png", "tief/é/ñandú.png"]
    with pytest.raises(DataError, match="are the same image"):
        match_names([normalize(form, "Größe.png") for form in ("NFC", "NFD")], images, "p.json")


def test_find_images__what_is_passed_over_is_counted(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    (tmp_path / "plain.png").rename(tmp_path / "noending")
    for name in ("a.avif", "b.JP2", "c.tga", "d.PNG"):
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    for name in ("e.heic", "f.HEIC", "g.dng", "README", "prompts.json"):
        (tmp_path / name).write_bytes(b"something else")
    os.mkfifo(tmp_path / "h.png")
    skips = SkipCounts()
    images = find_images(str(tmp_path), skips=skips)
    assert get_names(images) == ["a.avif", "b.JP2", "c.tga", "d.PNG", "noending"]
    passed_over = {"file type not read (.heic)": 2, "file type not read (.dng)": 1}
    assert skips.counts == passed_over | {"no regular file, so it is not opened": 1}
    assert describe_remarks([skips]) == [f"files that are no images, passed over: 2 (such as {tmp_path / 'README'})"]
    with pytest.raises(DataError, match=r"no image among the .*; 1 x file type not read \(\.dng\)"):
        find_images(str(tmp_path / "g*"))


@pytest.mark.parametrize("pattern", ["", "/*.jpg", "/**/*.jpg"])
def test_find_images__links_that_lead_outside(photos, tmp_path, pattern):
    (photos / "c.jpg").symlink_to("b.jpg")
    outside = tmp_path / "elsewhere.jpg"
    outside.write_bytes(b"x")
    (photos / "d.jpg").symlink_to(outside)
    os.mkfifo(photos / "e.jpg")
    skips = SkipCounts()
    names = get_names(find_images(f"{photos}{pattern}", skips=skips))
    assert "c.jpg" in names
    assert "d.jpg" not in names
    assert skips.counts.pop("file outside the given folder (data.allow_outside=true uses it)") == 1
    assert skips.examples["no regular file, so it is not opened"] == str(photos / "e.jpg")
    allowed = find_images(f"{photos}{pattern}", allow_outside=True)
    assert get_names(allowed) == sorted([*names, "d.jpg"])
    assert get_names(find_images(str(photos / "d.jpg"))) == ["d.jpg"]  # who names a link means it
    with pytest.raises(ConfigError, match=r"e\.jpg: no regular file, so it is not opened"):
        find_images(str(photos / "e.jpg"))
