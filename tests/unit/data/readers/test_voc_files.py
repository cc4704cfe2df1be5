from unicodedata import normalize

import pytest

from vpexp.data.folder import Folder
from vpexp.data.readers.voc_files import VocFolder, find_voc_folders, read_xml_file
from vpexp.errors import DataError


def write(root, name, text="x"):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def list_sets(root):
    folder = Folder(root)
    (home,) = find_voc_folders(folder)
    return VocFolder(folder, home).list_sets()


def test_list_sets__comments_and_empty_lines(tmp_path):
    write(tmp_path, "JPEGImages/a.jpg")
    write(tmp_path, "ImageSets/Segmentation/train.txt", "\n# a comment\n a \n\na\n")
    assert list_sets(tmp_path) == {"train": ["a"]}


def test_list_sets__segmentation_before_main(tmp_path):
    write(tmp_path, "ImageSets/Segmentation/train.txt", "a")
    write(tmp_path, "ImageSets/Main/train.txt", "a\nb")
    assert list_sets(tmp_path) == {"train": ["a"]}


def test_list_sets__main_where_segmentation_is_empty(tmp_path):
    write(tmp_path, "ImageSets/Segmentation/train.txt", "")
    write(tmp_path, "ImageSets/Main/train.txt", "a\nb")
    write(tmp_path, "ImageSets/Main/cat_train.txt", "a  1\nb -1")
    assert list_sets(tmp_path) == {"train": ["a", "b"]}


@pytest.mark.parametrize(
    "line",
    [
        "deep/a",
        "deep/a.jpg",
        "/JPEGImages/deep/a.jpg /SegmentationClass/deep/a.png",
        "JPEGImages/deep/a.jpg",
        "deep/a 1",
    ],
)
def test_list_sets__forms_of_a_line(tmp_path, line):
    write(tmp_path, "JPEGImages/deep/a.jpg")
    write(tmp_path, "ImageSets/Segmentation/train.txt", line)
    assert list_sets(tmp_path) == {"train": ["deep/a"]}


def test_list_sets__names_with_spaces_and_dots(tmp_path):
    write(tmp_path, "JPEGImages/my photo.v2.jpg")
    write(tmp_path, "ImageSets/Segmentation/train.txt", "my photo.v2")
    assert list_sets(tmp_path) == {"train": ["my photo.v2"]}


def test_list_sets__none(tmp_path):
    write(tmp_path, "JPEGImages/b.jpg")
    write(tmp_path, "SegmentationObject/a.png")
    assert list_sets(tmp_path) == {"": ["a", "b"]}


def test_find_voc_folders__nested(tmp_path):
    write(tmp_path, "VOCdevkit/VOC2012/JPEGImages/a.jpg")
    write(tmp_path, "VOCdevkit/VOC2012/ImageSets/Main/train.txt")
    assert find_voc_folders(Folder(tmp_path)) == ["VOCdevkit/VOC2012"]


def test_read_xml_file__boxes_count_from_one(tmp_path):
    box = "<bndbox><xmin>1</xmin><ymin>2.0</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>"
    text = f"<annotation><object><name> cat </name>{box}</object><object><name>x</name></object><object>{box}</object></annotation>"
    xml = read_xml_file(write(tmp_path, "a.xml", text))
    (only,) = xml.objects
    assert (xml.bad, xml.boxless, xml.size) == (1, 1, None)
    assert only.name == "cat"
    assert only.box == (0, 1, 3, 4)


def test_read_xml_file__damaged(tmp_path):
    with pytest.raises(DataError, match=r"a\.xml"):
        read_xml_file(write(tmp_path, "a.xml", "<annotation>"))


@pytest.mark.parametrize("line", ['""', "/", "JPEGImages", "''  1"])
def test_list_sets__line_without_a_name(tmp_path, line):
    write(tmp_path, "JPEGImages/a.jpg")
    write(tmp_path, "ImageSets/Segmentation/train.txt", f"{line}\na")
    assert list_sets(tmp_path) == {"train": [line, "a"]}


@pytest.mark.parametrize("encoding", ["nonsense-8", "big5-hkscs", "utf-7"])
def test_read_xml_file__unknown_encoding(tmp_path, encoding):
    path = write(tmp_path, "a.xml", f'<?xml version="1.0" encoding="{encoding}"?><annotation/>')
    with pytest.raises(DataError, match=r"a\.xml: "):
        read_xml_file(path)


@pytest.mark.parametrize(
    ("line", "images", "expected"),
    [
        ("img_1.5", ["img_1.jpg"], "img_1.5"),
        ("cell 2", ["cell.jpg"], "cell 2"),
        ("train/0", ["0.jpg", "train/1.jpg"], "train/0"),
        ("JPEGImages/train/0.jpg", ["0.jpg", "train/1.jpg"], "JPEGImages/train/0.jpg"),
        ("elsewhere/0.jpg", ["0.jpg"], "0"),
        ("/VOC2012/JPEGImages/0.jpg /VOC2012/SegmentationClass/0.png", ["0.jpg"], "0"),
        ("img_1.5.jpg", ["img_1.5.jpg"], "img_1.5"),
    ],
)
def test_list_sets__a_missing_image_is_no_other_image(tmp_path, line, images, expected):
    for name in images:
        write(tmp_path, f"JPEGImages/{name}")
    write(tmp_path, "ImageSets/Segmentation/train.txt", f"{line}\nx y")
    assert list_sets(tmp_path) == {"train": [expected, "x y"]}


def test_list_sets__names_with_spaces_before_flags_and_paths_of_windows(tmp_path):
    for name in ("two words", "b", "c"):
        write(tmp_path, f"JPEGImages/{name}.jpg")
    write(tmp_path, "ImageSets/Main/train.txt", "two words 1\nb -1")
    write(tmp_path, "ImageSets/Main/val.txt", "C:\\data\\JPEGImages\\c.jpg")
    assert list_sets(tmp_path) == {"train": ["two words", "b"], "val": ["c"]}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])  # PowerShell writes UTF-16
def test_list_sets__encodings(tmp_path, encoding):
    write(tmp_path, "JPEGImages/a.jpg")
    write(tmp_path, "ImageSets/Main/train.txt")
    (tmp_path / "ImageSets/Main/train.txt").write_bytes("a\r\nno such image\r\n".encode(encoding))
    assert list_sets(tmp_path) == {"train": ["a", "no such image"]}


@pytest.mark.parametrize(("listed", "kept"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_list_sets__accents_in_either_form(tmp_path, listed, kept):
    write(tmp_path, normalize(kept, "JPEGImages/größe.jpg"))
    write(tmp_path, "ImageSets/Segmentation/train.txt", normalize(listed, "größe"))
    home = VocFolder(Folder(tmp_path), "")
    (image_id,) = home.list_sets()["train"]
    assert [normalize("NFC", path.name) for path in home.images[image_id]] == ["größe.jpg"]


@pytest.mark.parametrize("side", ["1_0", "\uff11", "nan", "inf", "", "ten"])
def test_read_xml_file__boxes_that_are_no_numbers(tmp_path, side):
    box = "<bndbox><xmin>{}</xmin><ymin> 2.0\n</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>"
    entries = "".join(f"<object><name>cat</name>{box.format(one)}</object>" for one in (" 1 ", side))
    xml = read_xml_file(write(tmp_path, "a.xml", f"<annotation>{entries}</annotation>"))
    assert [one.box for one in xml.objects] == [(0, 1, 3, 4)]
    assert xml.bad == 1
