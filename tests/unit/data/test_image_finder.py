from unicodedata import normalize

import pytest

from vpexp.data.folder import Folder
from vpexp.data.image_finder import AmbiguousImageError, ImageFinder, UnusableImageError, list_meanings


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


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


@pytest.mark.parametrize("folder", ["train_images", "images_train", "TrainImages", "trainImgs2017", "img-train"])
def test_image_finder__own_folder_that_says_images(tmp_path, folder):
    other = folder.lower().replace("train", "val")
    touch(tmp_path, f"{folder}/a.png", f"{other}/a.png", f"{other}/b.png", "train.json")
    finder = ImageFinder(Folder(tmp_path), "train.json", ["train"])
    assert finder.find("a.png") == tmp_path / folder / "a.png"
    assert finder.find("b.png") is None


def test_image_finder__longest_common_end_wins(tmp_path):
    touch(tmp_path, "p/one/a.png", "p/two/a.png", "annotations/x.json")
    finder = ImageFinder(Folder(tmp_path), "annotations/x.json", ["train"])
    assert finder.find("/elsewhere/two/a.png") == tmp_path / "p/two/a.png"
    with pytest.raises(AmbiguousImageError, match=r"several image files have this name: p/one/a\.png, p/two/a\.png"):
        finder.find("a.png")


def test_image_finder__absolute_path_that_exists(tmp_path):
    touch(tmp_path, "set/annotations/x.json", "outside/a.png")
    outside = str(tmp_path / "outside/a.png")
    finder = ImageFinder(Folder(tmp_path / "set", allow_outside=True), "annotations/x.json", [])
    assert finder.find(outside) == finder.find("../outside/a.png").resolve() == tmp_path / "outside/a.png"
    for name in (outside, "../outside/a.png", "..\\outside\\a.png"):
        with pytest.raises(UnusableImageError, match=r"outside/a\.png: file outside .*data\.allow_outside=true"):
            ImageFinder(Folder(tmp_path / "set"), "annotations/x.json", []).find(name)


@pytest.mark.parametrize("file_name", ["gone.png", "", ".", "..", "/", "a\0b.png"])
def test_image_finder__nowhere(tmp_path, file_name):
    touch(tmp_path, "images/a.png", "annotations/x.json")
    assert ImageFinder(Folder(tmp_path), "annotations/x.json", []).find(file_name) is None


def test_image_finder__never_takes_a_mask_for_an_image(tmp_path):
    touch(tmp_path, "annotations/panoptic_train/a.png", "masks/a.png", "annotations/x.json")
    assert ImageFinder(Folder(tmp_path), "annotations/x.json", ["train"]).find("a.png") is None


@pytest.mark.parametrize("name", ["x" * 5000 + ".png", "\ud800.png", "a\0.png"])
def test_image_finder__name_that_cannot_be(tmp_path, name):
    touch(tmp_path, "annotations/a.json")
    assert ImageFinder(Folder(tmp_path), "annotations/a.json", ["train"]).find(name) is None


OWN_FOLDERS = [
    ("images/train", "images/val", "annotations/instances_train.json", "train"),
    ("train", "val", "annotations/instances_train.json", "train"),
    ("train/images", "val/images", "annotations/instances_train.json", "train"),
    ("Train", "Val", "annotations/train.json", "train"),
    ("train2017", "val2017", "annotations/instances_train2017.json", "train2017"),
    ("train2017", "val2017", "annotations/instances_train.json", "train"),
    ("images/training", "images/validation", "annotations/train.json", "train"),
    ("train", "valid", "train/_annotations.coco.json", "train"),
    ("data/cam1", "data/cam2", "cam1.json", "cam1"),
    ("photos/2024/train", "photos/2024/val", "train.json", "train"),
    ("images/default", "images/other", "annotations/instances_default.json", "default"),
    ("images/train", "images", "annotations/instances_train.json", "train"),
    ("images/train", "", "annotations/instances_train.json", "train"),
]


@pytest.mark.parametrize(("own", "other", "annotations", "subset"), OWN_FOLDERS)
def test_image_finder__own_folder_and_no_other(tmp_path, own, other, annotations, subset):
    touch(tmp_path, f"{own}/a.png", f"{own}/deep/b.png", f"{other}/gone.png".lstrip("/"), annotations)
    finder = ImageFinder(Folder(tmp_path), annotations, [subset], ["a.png", "b.png", "gone.png"])
    assert finder.find("a.png") == tmp_path / own / "a.png"
    assert finder.find("b.png") == finder.find("deep/b.png") == tmp_path / own / "deep/b.png"
    assert finder.find("gone.png") is finder.find("images/gone.png" if other != "images" else "x/gone.png") is None


def test_image_finder__own_folder_that_is_empty(tmp_path):
    touch(tmp_path, "images/val/a.png", "annotations/train.json")
    (tmp_path / "images/train").mkdir()
    assert ImageFinder(Folder(tmp_path), "annotations/train.json", ["train"]).find("a.png") is None


@pytest.mark.parametrize("name", ["val/a.png", "images/val/a.png", "http://host/x/val/a.png", "/elsewhere/val/a.png"])
def test_image_finder__another_splits_folder_that_is_named(tmp_path, name):
    touch(tmp_path, "images/train/b.png", "images/val/a.png", "annotations/train.json")
    finder = ImageFinder(Folder(tmp_path), "annotations/train.json", ["train"], [name])
    assert finder.find(name) == tmp_path / "images/val/a.png"


def test_image_finder__no_own_folder(tmp_path):
    touch(tmp_path, "images/a.png", "images/train/b.png", "images/train/c.png", "annotations/val.json")
    folder = Folder(tmp_path)
    finder = ImageFinder(folder, "annotations/val.json", ["val"], ["b.png", "a.png"])
    assert finder.find("a.png") == tmp_path / "images/a.png"
    assert finder.find("b.png") is None  # val has its images in images/
    listed = ImageFinder(folder, "annotations/val.json", ["val"], ["b.png", "c.png"])
    assert listed.find("b.png") == tmp_path / "images/train/b.png"  # val is a list of images that lie in train/


ADDRESSES = [
    ("images/my%20photo.png", "images/my photo.png"),
    ("/data/local-files/?d=a.png", "images/a.png"),
    ("/data/local-files/?d=set%2Fimages/my%20photo.png", "images/my photo.png"),
    ("/data/local-files/?d=a+b.png", "images/a+b.png"),
    ("/data/upload/4/1a2b3c4d-a.png", "images/a.png"),
    ("http://localhost:8080/data/upload/1/1a2b3c4d-a.png", "images/1a2b3c4d-a.png"),
    ("images/5f6e7d8c__a.png", "images/a.png"),
    ("https://host/0b0c3d4e-1111-2222-3333-444455556666-a.png", "images/a.png"),
    ("https://bucket.s3.amazonaws.com/x/a.png?X-Amz-Date=1&X-Amz-Signature=ab", "images/a.png"),
    ("s3://bucket/deep/a.png", "images/a.png"),
    ("gs://bucket/my%20photo.png", "images/my photo.png"),
    ("azure-blob://container/a.png", "images/a.png"),
    ("file:///home/someone/a.png#page=1", "images/a.png"),
    ("https://host/get?file=images/a.png&size=100", "images/a.png"),
    ("a.png?v=2", "images/a.png"),
    ("..\\..\\label-studio\\media\\upload\\4\\a.png", "images/a.png"),
    ("C:\\Users\\me\\a.png", "images/a.png"),
    ("http://[::1/a.png", "images/a.png"),
    ("50%.png", "images/50%.png"),
    ("a%20b.png", "images/a%20b.png"),
    ("what?.png", "images/what?.png"),
]


@pytest.mark.parametrize(("name", "file"), ADDRESSES)
def test_image_finder__addresses(tmp_path, name, file):
    touch(tmp_path, file, "images/other.png", "result.json")
    assert ImageFinder(Folder(tmp_path), "result.json", ["result"]).find(name) == tmp_path / file


def test_image_finder__dates_are_no_prefixes_of_uploads(tmp_path):
    touch(tmp_path, "images/1.png", "result.json")
    assert ImageFinder(Folder(tmp_path), "result.json", ["result"]).find("20240131-1.png") is None


def test_list_meanings__as_it_stands_first():
    assert list(list_meanings("a/../my%20b.png")) == ["my%20b.png", "my b.png"]
    assert list(list_meanings("s\\a.png")) == ["s\\a.png", "s/a.png"]  # an archive of Windows, unpacked elsewhere
    assert list(list_meanings("/")) == list(list_meanings("")) == []


@pytest.mark.parametrize(("named", "kept"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
@pytest.mark.parametrize("folder", ["images", "bündel/tief"])
def test_image_finder__accents_in_either_form(tmp_path, named, kept, folder):
    file = normalize(kept, f"{folder}/Größe é.png")
    touch(tmp_path, file, "result.json")
    finder = ImageFinder(Folder(tmp_path), "result.json", ["result"])
    assert finder.find(normalize(named, "Größe é.png")) == tmp_path / file
    assert finder.find(normalize(named, f"{folder}/größe É.PNG")) == tmp_path / file


def test_image_finder__links_that_lead_outside(tmp_path):
    touch(tmp_path, "elsewhere/a.png", "elsewhere/deep/b.png", "set/images/c.png", "set/other/a.png", "set/x.json")
    (tmp_path / "set/images/a.png").symlink_to(tmp_path / "elsewhere/a.png")
    (tmp_path / "set/images/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/images/inside.png").symlink_to("c.png")
    finder = ImageFinder(Folder(tmp_path / "set"), "x.json", [])
    for name in ("a.png", "more/a.png", "more/deep/b.png", "b.png"):
        with pytest.raises(UnusableImageError, match=r"data\.allow_outside=true"):
            finder.find(name)
    assert finder.find("inside.png") == tmp_path / "set/images/inside.png"
    allowed = ImageFinder(Folder(tmp_path / "set", allow_outside=True), "x.json", [])
    assert allowed.find("a.png") == tmp_path / "set/images/a.png"
    assert allowed.find("more/deep/b.png") == allowed.find("b.png") == tmp_path / "set/images/more/deep/b.png"


def test_image_finder__a_missing_file_is_not_what_another_name_means(tmp_path):
    touch(tmp_path, "images/train/left/a.png", "images/train/old/b.png", "images/train/train/c.png")
    finder = ImageFinder(Folder(tmp_path), "annotations/train.json", ["train"], iter(["a.png", "left/a.png", "b.png"]))
    assert finder.find("left/a.png") == tmp_path / "images/train/left/a.png"
    assert finder.find("a.png") is None
    assert finder.find("b.png") == tmp_path / "images/train/old/b.png"
    touch(tmp_path, "images/val/d.png", "images/val/images/e.png", "images/val/images/f.png")
    other = ImageFinder(Folder(tmp_path), "annotations/val.json", ["val"], ["d.png", "train/c.png"])
    assert other.find("train/c.png") is None
    names = ["e.png", "images/e.png", "f.png"]
    assert [ImageFinder(Folder(tmp_path), "annotations/val.json", ["val"], names).find(name) for name in names] == [
        None,
        tmp_path / "images/val/images/e.png",
        tmp_path / "images/val/images/f.png",
    ]
