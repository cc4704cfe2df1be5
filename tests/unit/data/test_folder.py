import pytest

from vpexp.data.folder import AmbiguousImageError, Folder, ImageFinder
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
    assert Folder(tmp_path / "set").files == ("a.txt", "images/x.png")


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


@pytest.mark.parametrize(
    ("image", "annotations", "file_name"),
    [
        ("images/train/a.png", "annotations/instances_train.json", "a.png"),
        ("images/a.png", "annotations/instances_train.json", "a.png"),
        ("train/a.png", "annotations/instances_train.json", "a.png"),
        ("train/a.png", "train/_annotations.coco.json", "a.png"),
        ("train/images/a.png", "train/labels.json", "a.png"),
        ("a.png", "instances.json", "a.png"),
        ("images/deep/er/a.png", "annotations/instances_train.json", "deep/er/a.png"),
        ("images/train/deep/a.png", "annotations/instances_train.json", "deep/a.png"),
        ("images/a.png", "annotations/instances_train.json", "images/a.png"),
        ("images/a.png", "annotations/instances_train.json", "../images/a.png"),
        ("images/a.png", "annotations/instances_train.json", "images\\a.png"),
        ("images/A.PNG", "annotations/instances_train.json", "a.png"),
        ("photos/2024/a.png", "annotations/instances_train.json", "a.png"),
        ("images/a.png", "annotations/instances_train.json", "/home/someone/pictures/a.png"),
        ("inner/set/images/a.png", "inner/set/annotations/instances_train.json", "a.png"),
    ],
)
def test_image_finder__layouts(tmp_path, image, annotations, file_name):
    touch(tmp_path, image, annotations)
    finder = ImageFinder(Folder(tmp_path), annotations, ["train"])
    assert finder.find(file_name) == tmp_path / image


def test_image_finder__own_subset_first(tmp_path):
    touch(tmp_path, "images/train/a.png", "images/val/a.png", "annotations/x.json")
    folder = Folder(tmp_path)
    for subset in ("train", "val"):
        assert (
            ImageFinder(folder, "annotations/x.json", [subset]).find("a.png") == tmp_path / "images" / subset / "a.png"
        )


def test_image_finder__longest_common_end_wins(tmp_path):
    touch(tmp_path, "p/one/a.png", "p/two/a.png", "annotations/x.json")
    finder = ImageFinder(Folder(tmp_path), "annotations/x.json", ["train"])
    assert finder.find("/elsewhere/two/a.png") == tmp_path / "p/two/a.png"
    with pytest.raises(AmbiguousImageError, match=r"several image files have this name: p/one/a\.png, p/two/a\.png"):
        finder.find("a.png")


def test_image_finder__absolute_path_that_exists(tmp_path):
    touch(tmp_path, "set/annotations/x.json", "outside/a.png")
    finder = ImageFinder(Folder(tmp_path / "set"), "annotations/x.json", [])
    assert finder.find(str(tmp_path / "outside/a.png")) == tmp_path / "outside/a.png"


@pytest.mark.parametrize("file_name", ["gone.png", "", ".", "..", "/", "a\0b.png"])
def test_image_finder__nowhere(tmp_path, file_name):
    touch(tmp_path, "images/a.png", "annotations/x.json")
    assert ImageFinder(Folder(tmp_path), "annotations/x.json", []).find(file_name) is None


def test_image_finder__never_takes_a_mask_for_an_image(tmp_path):
    touch(tmp_path, "annotations/panoptic_train/a.png", "masks/a.png", "annotations/x.json")
    assert ImageFinder(Folder(tmp_path), "annotations/x.json", ["train"]).find("a.png") is None


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


@pytest.mark.parametrize("name", ["x" * 5000 + ".png", "\ud800.png", "a\0.png"])
def test_image_finder__name_that_cannot_be(tmp_path, name):
    touch(tmp_path, "annotations/a.json")
    assert ImageFinder(Folder(tmp_path), "annotations/a.json", ["train"]).find(name) is None
