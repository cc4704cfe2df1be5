import json
import os
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image, ImageFilter

from vpexp.data.folder import Folder
from vpexp.data.readers.semantic import SemanticReader
from vpexp.data.skipped import SkipCounts
from vpexp.errors import DataError

CLASSES_HW = np.zeros((10, 20), dtype=np.uint8)
CLASSES_HW[1:4, 1:5] = 1
CLASSES_HW[6:9, 10:15] = 1
CLASSES_HW[6:9, 16:18] = 2
CLASSES_HW[0, :] = 255
META = {"label_map": {"0": "background", "1": "cat", "2": "dog"}}


def write_pair(root, name="a", classes=CLASSES_HW, *, image="images/{}.jpg", mask="masks/{}.png"):
    for path, pixels in ((image, np.zeros((10, 20, 3), dtype=np.uint8)), (mask, classes)):
        target = root / path.format(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(target)


def write_meta(root, content=META):
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_meta.json").write_text(json.dumps(content))


def components(folder):
    return SemanticReader(folder, "components")


def classes(folder):
    return SemanticReader(folder, "classes")


def names(subset):
    return [[subset.categories[label] for label in image.labels_N] for image in subset.images]


def test_semantic_reader__components_or_classes(tmp_path, read_subset):
    write_meta(tmp_path)
    write_pair(tmp_path)
    by_part, skips = read_subset(components, tmp_path, "default")
    by_class, _ = read_subset(classes, tmp_path, "default")
    assert names(by_part) == [["cat", "cat", "dog"]]
    assert by_part.images[0].boxes_N4.tolist() == [[1, 1, 5, 4], [10, 6, 15, 9], [16, 6, 18, 9]]
    assert names(by_class) == [["cat", "dog"]]
    assert by_class.images[0].boxes_N4.tolist() == [[1, 1, 15, 9], [16, 6, 18, 9]]
    assert by_part.images[0].image_id == "a.jpg"
    assert skips.counts == {}


def test_semantic_reader__label_map_that_counts_from_one(tmp_path, read_subset):
    write_meta(tmp_path, {"label_map": {"1": "Rectangle"}})
    write_pair(tmp_path, classes=(CLASSES_HW == 1).astype(np.uint8))
    subset, _ = read_subset(components, tmp_path, "default")
    assert names(subset) == [["Rectangle", "Rectangle"]]


def test_semantic_reader__undeclared_values_are_counted(tmp_path, read_subset):
    write_meta(tmp_path, {"label_map": {"0": "background", "1": "cat"}})
    write_pair(tmp_path)
    subset, skips = read_subset(components, tmp_path, "default")
    assert names(subset) == [["cat", "cat"]]
    assert skips.counts == {"undeclared pixel value": 1}
    assert "value 2" in skips.examples["undeclared pixel value"]


def test_semantic_reader__colours(tmp_path, read_subset):
    table = np.zeros((256, 3), dtype=np.uint8)
    table[1], table[2], table[255] = (255, 0, 0), (0, 0, 255), (1, 2, 3)
    write_meta(tmp_path, {**META, "segmentation_colors": [[0, 0, 0], [255, 0, 0], [0, 0, 255]]})
    write_pair(tmp_path, classes=table[CLASSES_HW])
    subset, skips = read_subset(components, tmp_path, "default")
    assert names(subset) == [["cat", "cat", "dog"]]
    assert skips.counts == {"undeclared colour": 1}
    assert "colour 1, 2, 3" in skips.examples["undeclared colour"]


def test_semantic_reader__subset_folders(tmp_path, read_subset):
    for split in ("train", "val"):
        write_meta(tmp_path / "deep" / split)
        write_pair(tmp_path / "deep" / split)
    assert list(components(Folder(tmp_path)).list_subsets()) == ["train", "val"]
    subset, _ = read_subset(components, tmp_path, "val")
    assert subset.images[0].path == tmp_path / "deep/val/images/a.jpg"


def test_semantic_reader__one_meta_file_for_all(tmp_path, read_subset):
    write_meta(tmp_path)
    for split in ("training", "test"):
        write_pair(tmp_path, image=f"{split}/images/{{}}.jpg", mask=f"{split}/masks/{{}}.png")
    subset, _ = read_subset(components, tmp_path, "test")
    assert names(subset) == [["cat", "cat", "dog"]]


def test_semantic_reader__subsets_inside_images_and_masks(tmp_path, read_subset):
    write_meta(tmp_path)
    for split in ("train", "val"):
        write_pair(tmp_path, image=f"images/{split}/{{}}.jpg", mask=f"masks/{split}/{{}}.png")
    assert list(components(Folder(tmp_path)).list_subsets()) == ["train", "val"]
    subset, _ = read_subset(components, tmp_path, "train")
    assert subset.images[0].image_id == "a.jpg"


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/image_{}.jpg", "masks/gt_{}.png"),
        ("images/{}.jpg", "masks/{}_mask.png"),
        ("images/{}_rgb.jpg", "masks/{}_gt.png"),
        ("images/{}.jpg", "masks/{}.png"),
    ],
)
def test_semantic_reader__names_with_beginnings_and_ends(tmp_path, read_subset, image, mask):
    write_meta(tmp_path)
    for name in ("0001", "0002"):
        write_pair(tmp_path, name, image=image, mask=mask)
    subset, skips = read_subset(components, tmp_path, "default")
    assert len(subset.images) == 2
    assert skips.counts == {}
    assert "0001" in subset.images[0].image_id


def test_semantic_reader__images_and_masks_without_a_partner(tmp_path, read_subset):
    write_meta(tmp_path)
    for name in "abc":
        write_pair(tmp_path, name)
    (tmp_path / "images/b.jpg").unlink()
    (tmp_path / "masks/c.png").unlink()
    _, skips = read_subset(components, tmp_path, "default")
    assert skips.counts == {"image file is missing": 1, "image without annotations": 1}
    subset, _ = read_subset(components, tmp_path, "default", keep_unannotated=True)
    assert [image.image_id for image in subset.images] == ["a.jpg"]  # nobody says that there is nothing on c


def test_semantic_reader__damaged_and_odd_files(tmp_path, read_subset):
    write_meta(tmp_path)
    for name in ("good", "cut", "size", "twice", "empty"):
        write_pair(tmp_path, name)
    (tmp_path / "masks/cut.png").write_bytes((tmp_path / "masks/cut.png").read_bytes()[:-30])
    Image.fromarray(CLASSES_HW[:5]).save(tmp_path / "masks/size.png")
    Image.fromarray(CLASSES_HW * 0).save(tmp_path / "masks/empty.png")
    Image.fromarray(CLASSES_HW).save(tmp_path / "images/twice.bmp")
    subset, skips = read_subset(components, tmp_path, "default")
    assert [image.image_id for image in subset.images] == ["good.jpg"]
    assert skips.counts == {
        "mask file is truncated or damaged": 1,
        "image size differs from annotation": 1,
        "several image files of this name": 1,
        "image without annotations": 1,
    }
    subset, _ = read_subset(components, tmp_path, "default", keep_unannotated=True)
    assert {image.image_id: len(image) > 0 for image in subset.images} == {"empty.jpg": False, "good.jpg": True}


def test_semantic_reader__strict(tmp_path, read_subset):
    write_meta(tmp_path, {"label_map": {"1": "cat"}})
    write_pair(tmp_path)
    with pytest.raises(DataError, match=r"masks/a\.png: value 2: undeclared pixel value"):
        read_subset(components, tmp_path, "default", strict=True)


def test_semantic_reader__only_background(tmp_path, read_subset):
    write_meta(tmp_path)
    write_pair(tmp_path, classes=np.where(CLASSES_HW, 255, 0).astype(np.uint8))
    with pytest.raises(
        DataError, match=r"only background and void \(pixel values 0, 255\); .* 1 \('cat'\), 2 \('dog'\)"
    ):
        read_subset(components, tmp_path, "default")


def test_semantic_reader__without_meta_file(tmp_path):
    write_pair(tmp_path)
    reader = components(Folder(tmp_path))
    subset = reader.read_subset("default", SkipCounts())
    assert names(subset) == [["class 1", "class 1", "class 2"]]
    reader.read_subset("default", SkipCounts())
    assert reader.notes == [
        "no dataset_meta.json: the classes are named after their pixel values",
        "mask value 255 is taken as void, not as a class; a dataset_meta.json can say otherwise",
    ]


def test_semantic_reader__black_and_white_without_meta_file(tmp_path, read_subset):
    write_pair(tmp_path, classes=np.where(CLASSES_HW == 1, 255, 0).astype(np.uint8))
    subset, _ = read_subset(components, tmp_path, "default")
    assert names(subset) == [["class 255", "class 255"]]


def test_semantic_reader__colours_without_meta_file(tmp_path, read_subset):
    write_pair(tmp_path, classes=np.random.default_rng(0).integers(0, 255, (10, 20, 3), dtype=np.uint8))
    with pytest.raises(DataError, match=r"the masks are coloured, and no dataset_meta\.json"):
        read_subset(components, tmp_path, "default")


def test_semantic_reader__nothing(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.txt").write_text("x")
    with pytest.raises(DataError, match="no common semantic segmentation; looked for masks/ beside images/"):
        components(Folder(tmp_path))


def test_semantic_reader__blurred_or_jpeg_masks_without_meta_file(tmp_path, read_subset):
    big_HW = np.kron(np.where(CLASSES_HW == 1, 255, 0), np.ones((4, 4))).astype(np.uint8)
    blurred = Image.fromarray(big_HW).filter(ImageFilter.GaussianBlur(2))
    write_pair(tmp_path / "blurred", classes=blurred)
    write_pair(tmp_path / "jpeg", classes=Image.fromarray(big_HW), mask="masks/{}.jpg")
    with pytest.raises(DataError, match=r"masks: mask values look blurred or compressed; save masks as lossless PNG"):
        read_subset(components, tmp_path / "blurred", "default")
    with pytest.raises(DataError, match=r"masks/a\.jpg: mask values look blurred or compressed"):
        read_subset(components, tmp_path / "jpeg", "default")


def test_semantic_reader__numbers_above_255_make_255_one_of_them(tmp_path, read_subset):
    numbers_HW = np.kron(np.arange(300).reshape(15, 20), np.ones((2, 2))).astype(np.uint16)
    numbers_HW[0, 2] = 65535
    write_pair(tmp_path, classes=numbers_HW)
    Image.new("RGB", (40, 30)).save(tmp_path / "images/a.jpg")
    subset, skips = read_subset(components, tmp_path, "default")
    assert len(subset.images[0]) == 299
    assert "class 255" in subset.categories
    assert skips.counts == {}


def test_semantic_reader__mask_numbers_that_are_refused_or_void(tmp_path, read_subset):
    values_HW = np.where(CLASSES_HW == 255, 0, CLASSES_HW)
    write_pair(tmp_path, "a", values_HW.astype(np.float32), mask="masks/{}.tif")
    write_pair(tmp_path, "b", values_HW / np.float32(3), mask="masks/{}.tif")
    write_pair(tmp_path, "c", np.where(values_HW == 2, -1, values_HW.astype(np.int32)), mask="masks/{}.tif")
    skips = SkipCounts()
    reader = components(Folder(tmp_path))
    subset = reader.read_subset("default", skips)
    assert names(subset) == [["class 1", "class 1", "class 2"], ["class 1", "class 1"]]
    assert skips.counts == {"mask values are no whole numbers": 1}
    assert skips.examples["mask values are no whole numbers"].endswith("masks/b.tif")
    assert any(note.startswith("mask value -1 is taken as void") for note in reader.notes)


def test_semantic_reader__mask_names_with_an_addition(tmp_path, read_subset):
    for name in ("p1_001", "p1_002"):
        write_pair(tmp_path, name, mask="masks/{}_masks.png")
    write_pair(tmp_path, "p2_001", mask="elsewhere/{}.png")
    skips = SkipCounts()
    reader = components(Folder(tmp_path))
    subset = reader.read_subset("default", skips)
    assert [image.image_id for image in subset.images] == ["p1_001.jpg", "p1_002.jpg"]
    assert skips.counts == {"image without annotations": 1}
    assert "masks are named as their images, with '_masks' behind them" in reader.notes


def test_semantic_reader__file_types_that_are_not_read(tmp_path, read_subset):
    write_meta(tmp_path)
    for name in "abc":
        write_pair(tmp_path, name)
    (tmp_path / "images/a.dng").write_bytes(b"raw")  # beside a.jpg: that is taken
    (tmp_path / "masks/a.npy").write_bytes(b"numbers")
    (tmp_path / "images/b.jpg").rename(tmp_path / "images/b.heic")
    (tmp_path / "images/b.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "images/c.jpg").rename(tmp_path / "images/c")
    (tmp_path / "images/README").write_text("no image")
    subset, skips = read_subset(components, tmp_path, "default")
    assert [image.image_id for image in subset.images] == ["a.jpg", "c"]
    assert skips.counts == {"file type not read (.heic)": 1}


@pytest.mark.parametrize("name", ["images/b.jpg", "masks/b.png"])
def test_semantic_reader__files_that_are_not_opened(tmp_path, read_subset, name):
    root = tmp_path / "set"
    write_meta(root)
    write_pair(root)
    write_pair(root, "b")
    file = root / name
    file.symlink_to(file.rename(tmp_path / file.name))
    subset, skips = read_subset(components, root, "default")
    assert [image.image_id for image in subset.images] == ["a.jpg"]
    assert skips.counts == {"file outside the given folder (data.allow_outside=true uses it)": 1}
    file.unlink()
    os.mkfifo(file)
    subset, skips = read_subset(components, root, "default")
    assert [image.image_id for image in subset.images] == ["a.jpg"]
    assert skips.counts == {"no regular file, so it is not opened": 1}
    meta = root / "dataset_meta.json"
    meta.symlink_to(meta.rename(tmp_path / "meta.json"))
    with pytest.raises(DataError, match=r"dataset_meta\.json: file outside the given folder"):
        read_subset(components, root, "default")


@pytest.mark.parametrize(("one", "other"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_semantic_reader__accents_in_either_form(tmp_path, read_subset, one, other):
    write_meta(tmp_path)
    write_pair(
        tmp_path, "größe", image=f"images/{normalize(one, 'größe')}.jpg", mask=f"masks/{normalize(other, 'größe')}.png"
    )
    write_pair(tmp_path, "plain")
    subset, skips = read_subset(components, tmp_path, "default")
    assert (len(subset.images), skips.counts) == (2, {})


def test_semantic_reader__masks_named_by_the_whole_name_of_their_image(tmp_path, read_subset):
    write_meta(tmp_path)
    for image in ("a.jpg", "a.png", "b.tiff", "s/c.JPG"):
        write_pair(tmp_path, image, image="images/{}", mask="masks/{}.png")
    subset, skips = read_subset(classes, tmp_path, "default")
    assert sorted(image.image_id for image in subset.images) == ["a.jpg", "a.png", "b.tiff", "s/c.JPG"]
    assert skips.counts == {}


def test_semantic_reader__several_masks_of_one_image(tmp_path, read_subset):
    write_meta(tmp_path)
    for name, suffix in (("a", "png"), ("a", "tif"), ("b", "png"), ("b", "jpg")):  # a JPEG is a picture of the mask
        write_pair(tmp_path, name, mask=f"masks/{{}}.{suffix}")
    subset, skips = read_subset(classes, tmp_path, "default")
    assert [image.image_id for image in subset.images] == ["b.jpg"]
    assert skips.counts == {"several mask files of this name": 1}
    assert skips.examples["several mask files of this name"] == "masks/a.png and masks/a.tif"
