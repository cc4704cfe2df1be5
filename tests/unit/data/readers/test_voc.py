import os

import numpy as np
import pytest
from PIL import Image

from vpexp.data.folder import Folder
from vpexp.data.masks import decode_rle, encode_mask
from vpexp.data.readers.label_images import build_voc_colors
from vpexp.data.readers.voc import VocReader
from vpexp.errors import DataError

INSTANCES_HW = np.zeros((10, 20), dtype=np.uint8)
INSTANCES_HW[1:4, 1:5] = 1
INSTANCES_HW[6:9, 10:15] = 2
INSTANCES_HW[0, :] = 255
CLASSES_HW = np.where(INSTANCES_HW == 1, 1, np.where(INSTANCES_HW == 2, 2, INSTANCES_HW)).astype(np.uint8)
LABELS = "background:0,0,0::\ncat:128,0,0::\ndog:0,128,0::\n"

XML = "<annotation><size><width>20</width><height>10</height></size>{}</annotation>"
OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


class VocBuilder:
    def __init__(self, root):
        self.root = root
        self.ids = []

    def write(self, name, data):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(data, str):
            path.write_text(data)
        else:
            image = data if isinstance(data, Image.Image) else Image.fromarray(data)
            image.save(path)

    def palette(self, values_HW):
        image = Image.fromarray(values_HW)
        image.putpalette([channel for color in build_voc_colors() for channel in color])
        return image

    def image(self, image_id="a", *, suffix="jpg", instances=INSTANCES_HW, classes=CLASSES_HW, objects=None):
        self.ids.append(image_id)
        self.write(f"JPEGImages/{image_id}.{suffix}", np.zeros((10, 20, 3), dtype=np.uint8))
        if instances is not None:
            self.write(f"SegmentationObject/{image_id}.png", self.palette(instances))
        if classes is not None:
            self.write(f"SegmentationClass/{image_id}.png", self.palette(classes))
        if objects is not None:
            self.write(f"Annotations/{image_id}.xml", XML.format("".join(OBJECT.format(*one) for one in objects)))

    def save(self, *, labels=LABELS, lists=True):
        if labels:
            self.write("labelmap.txt", labels)
        if lists:
            self.write("ImageSets/Segmentation/train.txt", "\n".join(self.ids))
        return self.root


@pytest.fixture
def voc(tmp_path):
    return VocBuilder(tmp_path)


def components(folder):
    return VocReader(folder, "components")


def classes(folder):
    return VocReader(folder, "classes")


def test_voc_reader__instances_with_their_classes(voc, read_subset):
    voc.image()
    subset, skips = read_subset(components, voc.save())
    (image,) = subset.images
    assert subset.categories == ("cat", "dog")
    assert image.labels_N.tolist() == [0, 1]
    assert image.object_ids == ("1", "2")
    assert image.boxes_N4.tolist() == [[1, 1, 5, 4], [10, 6, 15, 9]]
    np.testing.assert_array_equal(decode_rle(image.masks[1]), INSTANCES_HW == 2)
    assert skips.counts == {}


def test_voc_reader__void_is_no_object(voc, read_subset):
    voc.image(instances=np.where(INSTANCES_HW == 255, 255, 0).astype(np.uint8))
    subset, skips = read_subset(components, voc.save())
    assert subset.images == ()
    assert skips.counts == {"image without annotations": 1}
    subset, skips = read_subset(components, voc.root, keep_unannotated=True)
    assert [len(image) for image in subset.images] == [0]
    assert skips.counts == {}


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_voc_reader__masks_in_grey_or_colour(voc, read_subset, mode):
    voc.image()
    for name, values in (("SegmentationObject", INSTANCES_HW), ("SegmentationClass", CLASSES_HW)):
        image = Image.fromarray(values) if mode == "L" else voc.palette(values).convert("RGB")
        voc.write(f"{name}/a.png", image)
    subset, _ = read_subset(components, voc.save())
    assert subset.images[0].labels_N.tolist() == [0, 1]
    assert subset.images[0].object_ids == ("1", "2")


def test_voc_reader__more_than_255_instances(voc, read_subset):
    voc.image()
    wide_HW = INSTANCES_HW.astype(np.uint16)
    wide_HW[5, 5] = 300
    wide_HW[5, 6] = 65535
    voc.write("SegmentationObject/a.png", wide_HW)
    (voc.root / "SegmentationClass/a.png").unlink()
    subset, _ = read_subset(components, voc.save())
    assert subset.images[0].object_ids == ("1", "2", "255", "300")


def test_voc_reader__instances_without_class_masks(voc, read_subset):
    voc.image("a", classes=None)
    voc.image("b", classes=None, objects=[("grape", 2, 2, 5, 4), ("leaf", 11, 7, 15, 9)])
    subset, _ = read_subset(components, voc.save())
    names = [[subset.categories[label] for label in image.labels_N] for image in subset.images]
    assert names == [["object", "object"], ["grape", "leaf"]]


def test_voc_reader__xml_names_count_where_no_labels_are_declared(voc, read_subset):
    voc.image(objects=[("grape", 2, 2, 5, 4), ("leaf", 11, 7, 15, 9)])
    subset, _ = read_subset(components, voc.save(labels=None))
    assert [subset.categories[label] for label in subset.images[0].labels_N] == ["grape", "leaf"]


def test_voc_reader__pascal_voc_labels_without_xml(voc, read_subset):
    voc.image()
    subset, _ = read_subset(components, voc.save(labels=None))
    assert [subset.categories[label] for label in subset.images[0].labels_N] == ["aeroplane", "bicycle"]


def test_voc_reader__class_masks_alone(voc, read_subset):
    both_HW = CLASSES_HW.copy()
    both_HW[6:8, 17:19] = 1
    voc.image(instances=None, classes=both_HW)
    root = voc.save()
    by_part, _ = read_subset(components, root)
    by_class, _ = read_subset(classes, root)
    assert by_part.images[0].labels_N.tolist() == [0, 0, 1]
    assert by_class.images[0].labels_N.tolist() == [0, 1]


def test_voc_reader__instance_of_void_or_undeclared_class(voc, read_subset):
    classes_HW = np.where(INSTANCES_HW == 1, 255, CLASSES_HW).astype(np.uint8)
    voc.image("void", classes=classes_HW)
    voc.image("unknown", classes=np.where(INSTANCES_HW == 1, 9, CLASSES_HW).astype(np.uint8))
    subset, skips = read_subset(components, voc.save())
    assert [image.labels_N.tolist() for image in subset.images] == [[1], [1]]
    assert skips.counts == {"void region": 1, "undeclared category": 1}


def test_voc_reader__class_of_most_pixels_that_are_no_background(voc, read_subset):
    classes_HW = CLASSES_HW.copy()
    classes_HW[1:4, 1:4] = 0
    voc.image(classes=classes_HW)
    subset, _ = read_subset(components, voc.save())
    assert subset.images[0].labels_N.tolist() == [0, 1]


def test_voc_reader__boxes_without_masks(voc, read_subset):
    voc.image("a")
    voc.image("b", instances=None, classes=None, objects=[("cat", 1, 1, 5, 5), ("dog", 2, 2, 6, 6)])
    voc.image("c", objects=[("cat", 2, 2, 5, 4), ("dog", 11, 7, 15, 9), ("cat", 1, 1, 20, 10)])
    subset, skips = read_subset(components, voc.save())
    assert [image.image_id for image in subset.images] == ["a", "c"]
    assert skips.counts == {"box only, no mask": 3}


def test_voc_reader__keeps_boxes_where_they_are_wanted(voc, read_subset):
    voc.image("b", instances=None, classes=None, objects=[("cat", 1, 1, 5, 5), ("dog", 2, 2, 6, 6)])
    voc.image("c", objects=[("cat", 2, 2, 5, 4), ("dog", 11, 7, 15, 9), ("cat", 1, 1, 20, 10)])
    subset, skips = read_subset(components, voc.save(), keep_boxes=True)
    b, c = subset.images
    assert b.box_only_N.tolist() == [True, True]
    assert b.boxes_N4.tolist() == [[0, 0, 5, 5], [1, 1, 6, 6]]
    assert [subset.categories[label] for label in b.labels_N] == ["cat", "dog"]
    assert c.box_only_N.tolist() == [False, False, True]
    assert c.boxes_N4[2].tolist() == [0, 0, 20, 10]
    assert skips.counts == {}


def test_voc_reader__damaged_files(voc, read_subset):
    for name in ("good", "image", "mask", "xml", "size", "gone"):
        voc.image(name, objects=[("cat", 2, 2, 5, 4), ("dog", 11, 7, 15, 9)])
    for name in ("JPEGImages/image.jpg", "SegmentationObject/mask.png"):
        path = voc.root / name
        path.write_bytes(path.read_bytes()[:-100])
    voc.write("Annotations/xml.xml", "<annotation><object>")
    voc.write("SegmentationClass/size.png", voc.palette(CLASSES_HW[:5]))
    (voc.root / "JPEGImages/gone.jpg").unlink()
    subset, skips = read_subset(components, voc.save())
    assert [image.image_id for image in subset.images] == ["good", "xml"]
    assert skips.counts == {
        "image file is truncated or damaged": 1,
        "mask file is truncated or damaged": 1,
        "XML file is damaged": 1,
        "mask size differs from image": 1,
        "image file is missing": 1,
    }


def test_voc_reader__mask_of_another_size_than_its_image(voc, read_subset):
    voc.image()
    voc.write("JPEGImages/a.jpg", np.zeros((10, 30, 3), dtype=np.uint8))
    _, skips = read_subset(components, voc.save())
    assert skips.counts == {"image size differs from annotation": 1}


def test_voc_reader__two_images_of_one_name(voc, read_subset):
    voc.image("a")
    voc.write("JPEGImages/a.png", np.zeros((10, 20, 3), dtype=np.uint8))
    voc.image("b", suffix="png")
    voc.write("JPEGImages/b.bmp", np.zeros((10, 20, 3), dtype=np.uint8))
    subset, skips = read_subset(components, voc.save())
    assert [image.path.name for image in subset.images] == ["a.jpg"]
    assert skips.counts == {"several image files of this name": 1}


def test_voc_reader__strict(voc, read_subset):
    voc.image("a")
    voc.image("b")
    (voc.root / "JPEGImages/b.jpg").unlink()
    with pytest.raises(DataError, match=r"b in .*: image file is missing"):
        read_subset(components, voc.save(), strict=True)


def test_voc_reader__devkit_with_two_years(voc):
    voc.image()
    voc.save()
    for year in ("VOC2007", "VOC2012"):
        for part in ("JPEGImages", "SegmentationObject", "ImageSets"):
            (voc.root / "VOCdevkit" / year).mkdir(parents=True, exist_ok=True)
            (voc.root / "VOCdevkit" / year / part).symlink_to(voc.root / part)
    subsets = components(Folder(voc.root / "VOCdevkit", allow_outside=True)).list_subsets()
    assert list(subsets) == ["VOC2007/train", "VOC2012/train"]


def test_voc_reader__no_voc(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="no Pascal VOC; looked for JPEGImages"):
        components(Folder(tmp_path))


def test_voc_reader__listed_image_without_any_file(voc, read_subset):
    voc.image()
    voc.ids.append("gone")
    subset, skips = read_subset(components, voc.save())
    assert len(subset.images) == 1
    assert skips.counts == {"image file is missing": 1}


def test_voc_reader__old_layout_of_labelme(voc, tmp_path, read_subset):
    for name in "ab":
        voc.image(name)
    voc.save()
    for part in ("SegmentationObject", "SegmentationClass"):
        (tmp_path / part).rename(tmp_path / f"{part}PNG")
        (tmp_path / part).mkdir()
        for name in "ab":
            np.save(tmp_path / part / f"{name}.npy", INSTANCES_HW)
    subset, skips = read_subset(lambda folder: VocReader(folder, "components"), tmp_path)
    assert [len(image) for image in subset.images] == [2, 2]
    assert skips.counts == {}
    for name in "ab":
        (tmp_path / f"SegmentationObjectPNG/{name}.png").unlink()
    subset, skips = read_subset(lambda folder: VocReader(folder, "components"), tmp_path)
    assert skips.counts == {"mask: file type not read (.npy)": 2}
    assert skips.examples["mask: file type not read (.npy)"] == str(tmp_path / "SegmentationObject/a.npy")


def test_voc_reader__instances_of_any_number(voc, tmp_path, read_subset, write_tiff):
    voc.image(instances=None)
    voc.save()
    instances_HW = np.select([INSTANCES_HW == 1, INSTANCES_HW == 2, INSTANCES_HW == 255], [255, 70_000, -1])
    (tmp_path / "SegmentationObject").mkdir()
    write_tiff(tmp_path / "SegmentationObject/a.tif", instances_HW.astype(np.float64))
    subset, skips = read_subset(lambda folder: VocReader(folder, "components"), tmp_path)
    assert subset.images[0].object_ids == ("255", "70000")
    assert skips.counts == {}


NOT_OPENED = "no regular file, so it is not opened"
OUTSIDE = "file outside the given folder (data.allow_outside=true uses it)"


@pytest.mark.parametrize(
    "name", ["JPEGImages/b.jpg", "SegmentationObject/b.png", "SegmentationClass/b.png", "Annotations/b.xml"]
)
def test_voc_reader__files_that_are_not_opened(voc, read_subset, tmp_path, name):
    box = ("cat", 2, 2, 5, 4)
    voc.root = tmp_path / "set"
    voc.image(objects=[box])
    voc.image("b", objects=[box])
    file = voc.save() / name
    file.symlink_to(file.rename(tmp_path / file.name))
    subset, skips = read_subset(components, voc.root)
    assert ([image.image_id for image in subset.images], skips.counts) == (["a"], {OUTSIDE: 1})
    file.unlink()
    os.mkfifo(file)
    subset, skips = read_subset(components, voc.root)
    assert ([image.image_id for image in subset.images], skips.counts) == (["a"], {NOT_OPENED: 1})


@pytest.mark.parametrize("name", ["ImageSets/Segmentation/train.txt", "labelmap.txt"])
def test_voc_reader__lists_that_are_not_opened(voc, read_subset, name):
    voc.image()
    file = voc.save() / name
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DataError, match=rf"{file.name}: {NOT_OPENED}"):
        read_subset(components, voc.root)


def test_voc_reader__boxes_that_are_no_numbers_are_counted(voc, read_subset):
    voc.image(objects=[("cat", 2, 2, 5, 4), ("dog", "1_1", 7, 15, 9)])
    _, skips = read_subset(components, voc.save())
    assert skips.counts == {"entry that is no annotation": 1}


def test_voc_reader__the_xml_files_size_says_which_way_up(voc, read_subset):
    size = "<size><width>{}</width><height>{}</height></size>"
    for name, *sides in (("turned", 10, 20), ("stored", 20, 10), ("other", 40, 20), ("none", 0, 0)):
        voc.image(name, instances=None, classes=None)
        text = f"<annotation>{size.format(*sides)}{OBJECT.format('cat', 3, 3, 8, 8)}</annotation>"
        voc.write(f"Annotations/{name}.xml", text)
        exif = Image.Exif()
        exif[274] = 6
        Image.new("RGB", (20, 10)).save(voc.root / f"JPEGImages/{name}.jpg", exif=exif)
    subset, skips = read_subset(components, voc.save(), keep_boxes=True)
    read = {image.image_id: (image.height, image.width, image.exif_transpose) for image in subset.images}
    assert read == {"turned": (20, 10, True), "stored": (10, 20, False), "none": (20, 10, True)}
    assert skips.counts == {"image size differs from annotation": 1}


def test_voc_reader__objects_with_neither_mask_nor_box_are_counted(voc, read_subset):
    voc.image()
    voc.image("b", instances=None, classes=None)
    outline = "<object><name>cat</name><polygon><x1>1</x1><y1>1</y1></polygon></object>"
    voc.write("Annotations/b.xml", XML.format(outline))
    voc.write("Annotations/a.xml", XML.format(outline))  # its masks are what counts
    _, skips = read_subset(components, voc.save())
    assert skips.counts == {"neither mask nor box": 1, "image left without objects": 1}


@pytest.mark.parametrize("part", ["SegmentationObject", "SegmentationClass"])
def test_voc_reader__several_masks_of_one_image(voc, read_subset, part):
    voc.image()
    voc.image("b")
    voc.write(f"{part}/a.tif", CLASSES_HW)
    voc.write(f"{part}/b.jpg", CLASSES_HW)  # a picture of the mask
    subset, skips = read_subset(components, voc.save())
    assert [image.image_id for image in subset.images] == ["b"]
    assert skips.counts == {"several mask files of this name": 1}
    assert skips.examples["several mask files of this name"] == f"{part}/a.png and {part}/a.tif"


def test_voc_reader__instances_of_one_colour_stay_apart(voc, read_subset):
    voc.image(classes=None)
    picture = Image.fromarray(INSTANCES_HW)
    picture.putpalette([0, 0, 0] + [128, 0, 0] * 254 + [224, 224, 192])  # each in the colour of its class
    voc.write("SegmentationObject/a.png", picture)
    subset, skips = read_subset(components, voc.save())
    assert [mask["counts"] for mask in subset.images[0].masks] == [
        encode_mask(value == INSTANCES_HW)["counts"] for value in (1, 2)
    ]
    assert skips.remarks[next(iter(skips.remarks))].total == 2  # nothing names their class


@pytest.mark.parametrize(
    "labels", ["cat:128,0,0::\ndog:0,128,0::\n", "dog:0,128,0::\ncat:128,0,0::\nbackground:0,0,0::\n"]
)
def test_voc_reader__black_is_background_whatever_label_comes_first(voc, read_subset, labels):
    voc.image(instances=None)
    subset, skips = read_subset(classes, voc.save(labels=labels))
    read = {
        subset.categories[label]: decode_rle(mask).sum()
        for label, mask in zip(subset.images[0].labels_N, subset.images[0].masks, strict=True)
    }
    assert (read, skips.counts) == ({"cat": 12, "dog": 15}, {})
