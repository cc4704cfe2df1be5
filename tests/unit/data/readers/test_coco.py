import numpy as np
import pytest
from pycocotools import mask as coco_mask

from vpexp.data.folder import Folder
from vpexp.data.masks import decode_rle, encode_mask
from vpexp.data.readers.coco import CocoReader
from vpexp.data.skipped import SkipCounts
from vpexp.errors import DataError


def read_one(read_subset, root, **options):
    """Read the train subset, expecting one image."""
    subset, skips = read_subset(CocoReader, root, **options)
    (image,) = subset.images
    return image, skips


def test_coco_reader__polygon_as_pycocotools_draws_it(coco, read_subset):
    polygon = [2.254, 2.5, 9.751, 2.503, 8.0, 8.25]
    coco.image()
    coco.object([polygon])
    image, skips = read_one(read_subset, coco.save())
    (expected,) = coco_mask.frPyObjects([polygon], 10, 20)
    assert image.masks == (expected,)
    assert image.boxes_N4.dtype == np.float32
    assert image.labels_N.tolist() == [0]
    assert (image.height, image.width, image.exif_transpose) == (10, 20, False)
    assert image.image_id == "a.png"
    assert skips.counts == {}


def test_coco_reader__box_is_from_the_mask_not_as_declared(coco, read_subset):
    coco.image()
    coco.object(bbox=[0, 0, 1, 1])
    image, _ = read_one(read_subset, coco.save())
    assert image.boxes_N4.tolist() == [[2, 2, 8, 8]]


def test_coco_reader__parts_of_an_object_stay_together(coco, read_subset):
    coco.image()
    coco.object([[1, 1, 4, 1, 4, 4, 1, 4], [10, 5, 14, 5, 14, 9, 10, 9]])
    image, _ = read_one(read_subset, coco.save())
    assert len(image) == 1
    assert image.boxes_N4.tolist() == [[1, 1, 14, 9]]
    assert decode_rle(image.masks[0]).sum() == 9 + 16


def test_coco_reader__rle_of_either_form(coco, read_subset):
    mask_HW = np.zeros((10, 20), dtype=bool)
    mask_HW[3:6, 4:9] = True
    rle = encode_mask(mask_HW)
    coco.image()
    coco.object({"size": [10, 20], "counts": rle["counts"].decode()})
    flat = mask_HW.ravel(order="F").astype(int)
    changes = np.flatnonzero(np.diff(flat)) + 1
    coco.object({"size": [10, 20], "counts": np.diff([0, *changes, flat.size]).tolist()})
    coco.object([{"size": [10, 20], "counts": rle["counts"].decode()}])
    image, _ = read_one(read_subset, coco.save())
    assert image.masks == (rle, rle, rle)


def test_coco_reader__missing_iscrowd_and_bbox_are_fine(coco, read_subset):
    coco.image()
    coco.object(drop=("iscrowd", "bbox", "area"))
    image, skips = read_one(read_subset, coco.save())
    assert len(image) == 1
    assert skips.counts == {}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"segmentation": []}, "box only, no mask"),
        ({"segmentation": [[]]}, "box only, no mask"),
        ({"segmentation": None}, "box only, no mask"),
        ({"drop": ("segmentation",)}, "box only, no mask"),
        ({"segmentation": {}}, "box only, no mask"),
        ({"segmentation": [], "bbox": []}, "neither mask nor box"),
        ({"iscrowd": 1}, "crowd region"),
        ({"iscrowd": "1"}, "crowd region"),
        ({"iscrowd": True, "segmentation": {"size": [10, 20], "counts": [200]}}, "crowd region"),
        ({"category_id": 7}, "undeclared category"),
        ({"category_id": None}, "undeclared category"),
        ({"drop": ("category_id",)}, "undeclared category"),
        ({"image_id": 99}, "annotation of an undeclared image"),
        ({"drop": ("image_id",)}, "annotation of an undeclared image"),
        ({"segmentation": [[2, 2, 8, 8]]}, "polygon with fewer than 3 points"),
        ({"segmentation": [[2, 2, 8, 8, 3]]}, "polygon with an odd number of values"),
        ({"segmentation": [[2, 2, 8, 8, 3, "x"]]}, "polygon with values that are no numbers"),
        ({"segmentation": [[2, 2, 8, 8, 3, 1e12]]}, "polygon far outside the image"),
        ({"segmentation": [[30, 30, 40, 30, 40, 40]]}, "no pixel of the mask inside the image"),
        ({"segmentation": [[3, 3, 3, 3, 3, 3]]}, "no pixel of the mask inside the image"),
        ({"segmentation": {"size": [10, 20], "counts": [200]}}, "no pixel of the mask inside the image"),
        ({"segmentation": {"size": [20, 10], "counts": [200]}}, "RLE size differs from the image's"),
        ({"segmentation": {"size": [10, 20], "counts": [20]}}, "damaged RLE"),
        ({"segmentation": "polygon"}, "segmentation of unknown kind"),
        ({"segmentation": 7}, "segmentation of unknown kind"),
    ],
)
def test_coco_reader__bad_object_is_skipped_and_counted(coco, read_subset, fields, reason):
    coco.image()
    coco.object()
    coco.object(**fields)
    coco.object()
    image, skips = read_one(read_subset, coco.save())
    assert len(image) == 2
    assert skips.counts == {reason: 1}
    assert "annotation 2" in skips.examples[reason] or "object 2" in skips.examples[reason]


@pytest.mark.parametrize("segmentation", [[], [[2, 2, 8, 8]], [[30, 30, 40, 30, 40, 40]]])
def test_coco_reader__strict_names_file_and_object(coco, read_subset, segmentation):
    coco.image()
    coco.object()
    coco.object(segmentation)
    with pytest.raises(DataError, match=r"a\.png, (annotation|object) 2") as caught:
        read_subset(CocoReader, coco.save(), strict=True)
    assert "\n" not in str(caught.value)


def test_coco_reader__image_without_annotations_is_kept_as_one_without_objects(coco, read_subset):
    coco.image("empty.png")
    image, skips = read_one(read_subset, coco.save(), keep_unannotated=True)
    assert (len(image), image.boxes_N4.shape, image.height, image.width) == (0, (0, 4), 10, 20)
    assert skips.counts == {}


def test_coco_reader__strict_lets_crowds_pass(coco, read_subset):
    coco.image()
    coco.object()
    coco.object(iscrowd=1)
    coco.image("empty.png")
    image, skips = read_one(read_subset, coco.save(), strict=True)
    assert len(image) == 1
    assert skips.counts == {"crowd region": 1, "image without annotations": 1}


def test_coco_reader__good_parts_of_an_object_are_kept(coco, read_subset):
    coco.image()
    coco.object([[1, 1, 4, 1, 4, 4, 1, 4], [10, 5, 14, 5], []])
    image, skips = read_one(read_subset, coco.save())
    assert image.boxes_N4.tolist() == [[1, 1, 4, 4]]
    assert skips.counts == {"polygon part dropped": 1}


def test_coco_reader__polygon_without_the_list_around_it(coco, read_subset):
    coco.image()
    coco.object([2, 2, 8, 2, 8, 8, 2, 8])
    image, _ = read_one(read_subset, coco.save())
    assert image.boxes_N4.tolist() == [[2, 2, 8, 8]]


def test_coco_reader__polygon_is_cut_at_the_border(coco, read_subset):
    coco.image()
    coco.object([[15, 5, 40, 5, 40, 40, 15, 40]])
    image, _ = read_one(read_subset, coco.save())
    assert image.boxes_N4.tolist() == [[15, 5, 20, 10]]


def test_coco_reader__repeated_annotation_ids_stay_two_objects(coco, read_subset):
    coco.image()
    coco.object(id=5)
    coco.object([[10, 2, 16, 2, 16, 8, 10, 8]], id=5)
    image, _ = read_one(read_subset, coco.save())
    assert image.object_ids == ("5", "5#2")
    assert image.boxes_N4.tolist() == [[2, 2, 8, 8], [10, 2, 16, 8]]


@pytest.mark.parametrize("form", [float, str, lambda number: f"{number}.0"])
def test_coco_reader__ids_as_floats_or_strings(coco, read_subset, form):
    coco.content["categories"] = [{"id": form(1), "name": "cell"}]
    coco.image(image_id=3)
    coco.object(image_id=form(3), category_id=1, id=form(9))
    image, skips = read_one(read_subset, coco.save())
    assert len(image) == 1
    assert skips.counts == {}


def test_coco_reader__ids_that_are_names(coco, read_subset):
    coco.content["categories"] = [{"id": "c", "name": "cell"}]
    coco.image(image_id="picture one")
    coco.object(image_id="picture one", category_id="c")
    assert len(read_one(read_subset, coco.save())[0]) == 1


def test_coco_reader__category_id_zero(coco, read_subset):
    coco.content["categories"] = [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]
    coco.image()
    coco.object(category_id=0)
    coco.object(category_id=1)
    image, _ = read_one(read_subset, coco.save())
    assert image.labels_N.tolist() == [0, 1]


@pytest.mark.parametrize("categories", [None, []])
def test_coco_reader__no_categories_means_one(coco, categories):
    coco.content["categories"] = categories
    coco.image()
    coco.object(category_id=3)
    reader = CocoReader(Folder(coco.save()))
    from vpexp.data.skipped import SkipCounts

    subset = reader.read_subset("train", SkipCounts())
    assert subset.categories == ("object",)
    assert subset.images[0].labels_N.tolist() == [0]
    assert "declares no categories" in reader.notes[0]


def test_coco_reader__two_ids_of_one_name_are_one_category(coco, read_subset):
    coco.content["categories"] = [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}, {"id": 2, "name": "a"}]
    coco.image()
    coco.object(category_id=2)
    subset, _ = read_subset(CocoReader, coco.save())
    assert subset.categories == ("a",)


def test_coco_reader__contradictory_categories(coco, read_subset):
    coco.content["categories"] = [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]
    coco.image()
    coco.object()
    with pytest.raises(
        DataError, match=r"instances_train\.json: category id 1 is declared twice, as 'cat' and as 'dog'"
    ):
        read_subset(CocoReader, coco.save())


def test_coco_reader__same_stem_with_two_endings(coco, read_subset):
    coco.image("a.png")
    coco.image("a.jpg")
    coco.object(image_id=1)
    coco.object(image_id=2)
    subset, _ = read_subset(CocoReader, coco.save())
    assert sorted(image.image_id for image in subset.images) == ["a.jpg", "a.png"]


def test_coco_reader__image_file_missing_or_truncated(coco, read_subset):
    for place, name in enumerate(("good.jpg", "gone.jpg", "cut.jpg"), start=1):
        coco.image(name, save=name != "gone.jpg", width=64, height=64)
        coco.object(image_id=place)
    cut = coco.root / "images/cut.jpg"
    cut.write_bytes(cut.read_bytes()[:-500])
    image, skips = read_one(read_subset, coco.save())
    assert image.image_id == "good.jpg"
    assert skips.counts == {"image file is missing": 1, "image file is truncated or damaged": 1}
    assert "gone.jpg" in skips.examples["image file is missing"]


def test_coco_reader__image_of_another_size(coco, read_subset):
    coco.image()
    coco.object()
    coco.image("other.png")
    coco.content["images"][1]["width"] = 40
    coco.object(image_id=2)
    _, skips = read_one(read_subset, coco.save())
    assert skips.counts == {"image size differs from annotation": 1}
    assert "is 20x10, annotated as 40x10" in skips.examples["image size differs from annotation"]


@pytest.mark.parametrize(
    "size", [{}, {"width": None, "height": None}, {"width": 0, "height": 0}, {"width": "x", "height": float("inf")}]
)
def test_coco_reader__size_not_declared(coco, read_subset, size):
    coco.image()
    entry = coco.content["images"][0]
    del entry["width"], entry["height"]
    entry.update(size)
    coco.object()
    image, _ = read_one(read_subset, coco.save())
    assert (image.height, image.width) == (10, 20)


@pytest.mark.parametrize("second", ["a.png", "images/a.png", "./a.png", "other/../a.png"])
def test_coco_reader__image_declared_twice(coco, read_subset, second):
    coco.image("a.png", image_id=1)
    coco.image(second, image_id=1, save=False)
    coco.object()
    image, skips = read_one(read_subset, coco.save())
    assert image.image_id == "a.png"
    assert skips.counts == {"image declared twice": 1}


@pytest.mark.parametrize("is_there", [True, False])
def test_coco_reader__one_id_of_several_files(coco, read_subset, is_there):
    coco.image("a.png", image_id=1)
    coco.image("b.png", image_id=1.0, save=is_there)
    coco.image("a.png", image_id=1, save=False)
    coco.image("c.png", image_id=2)
    for image_id in (1, "1", 2, 1):
        coco.object(image_id=image_id)
    image, skips = read_one(read_subset, coco.save())
    assert (image.image_id, len(image)) == ("c.png", 1)
    assert skips.counts == {"image id of several files": 3, "annotation of an image id of several files": 3}
    assert skips.examples["image id of several files"] == "instances_train.json: image id 1 is a.png and b.png"


OTHER_IDS = [
    ["1_12", "11_2", 112],
    ["1", "01", "+1"],
    ["7", "\uff17", "\u0667", "\u096d"],
    ["7", " 7", "7 "],
    ["7", "7.00", "7e0", "0x7", "0b111"],
    [1, "True", "1_0", "1_000"],
    [7, 7.5, "7.5.0"],
    ["a", "A", "\uff41"],
    [2**53, 2**53 + 1, 2**63 + 2**10],
    ["1e3", "1E3", 1000],
    ["-1", "\u22121", 1],
    ["inf", "nan", "None", "null"],
]


@pytest.mark.parametrize("ids", OTHER_IDS)
def test_coco_reader__ids_are_compared_as_they_stand(coco, read_subset, ids):
    coco.content["categories"] = [{"id": one, "name": f"class {place}"} for place, one in enumerate(ids)]
    for place, one in enumerate(ids):
        coco.image(f"{place}.png", image_id=one)
        coco.object(image_id=one, category_id=one, id=place)
    subset, skips = read_subset(CocoReader, coco.save())
    assert skips.counts == {}
    read = sorted((image.image_id, *image.object_ids, *image.labels_N.tolist()) for image in subset.images)
    assert read == [(f"{place}.png", str(place), place) for place in range(len(ids))]


@pytest.mark.parametrize("form", ["3", "3.0", "+3", "03", 3.0])
def test_coco_reader__digits_mean_the_number(coco, read_subset, form):
    coco.image(image_id=3)
    coco.object(image_id=form)
    coco.object(image_id=f"{form}_", id=2)
    image, skips = read_one(read_subset, coco.save())
    assert len(image) == 1
    assert skips.counts == {"annotation of an undeclared image": 1}


def test_coco_reader__digits_that_mean_two_images(coco, read_subset):
    coco.image("a.png", image_id="3")
    coco.image("b.png", image_id="03")
    coco.object(image_id=3)
    coco.object(image_id="3")
    image, skips = read_one(read_subset, coco.save())
    assert image.image_id == "a.png"
    assert skips.counts == {"annotation of an undeclared image": 1, "image without annotations": 1}


@pytest.mark.parametrize("image_id", [True, float("nan"), float("inf"), None, "", " ", [1], {}])
def test_coco_reader__ids_that_are_none(coco, read_subset, image_id):
    coco.image("a.png", image_id=1)
    coco.object()
    coco.image("b.png", image_id=7)
    coco.content["images"][1]["id"] = image_id
    coco.object(image_id=image_id)
    image, skips = read_one(read_subset, coco.save())
    assert image.image_id == "a.png"
    assert skips.counts == {"entry that is no annotation": 1, "annotation of an undeclared image": 1}


@pytest.mark.parametrize("size", ["2_0", "\uff12\uff10", True, 20.5, "20.5", " 20"])
def test_coco_reader__size_that_is_no_number_is_not_declared(coco, read_subset, size):
    coco.image(width=20, height=20)
    coco.content["images"][0] |= {"width": size, "height": size}
    coco.object()
    image, _ = read_one(read_subset, coco.save())
    assert (image.height, image.width) == (20, 20)


@pytest.mark.parametrize(
    "bbox", [["1_0", 2, 6, 4], [1, 2, True, 4], ["nan", 2, 6, 4], [1, 2, 3], {"x": 1}, [1, 2, 3, None]]
)
def test_coco_reader__boxes_that_are_no_numbers(coco, read_subset, bbox):
    coco.image()
    coco.object([], bbox=bbox)
    coco.object([], bbox=["1", 2.0, "6.0", "4e0"])
    subset, skips = read_subset(CocoReader, coco.save(), keep_boxes=True)
    assert subset.images[0].boxes_N4.tolist() == [[1, 2, 7, 6]]
    assert skips.counts == {"entry that is no annotation": 1}


def test_coco_reader__names_from_addresses(coco, read_subset):
    coco.image("a.png", coco_url="http://host/train2017/b.png")
    coco.image("b.png")
    coco.content["images"][1] |= {"file_name": None, "coco_url": "http://host/train2017/b.png"}
    coco.object(image_id=1)
    coco.object(image_id=2)
    subset, skips = read_subset(CocoReader, coco.save())
    assert sorted(image.path.name for image in subset.images) == ["a.png", "b.png"]
    assert skips.counts == {}


def test_coco_reader__crowds_are_kept_where_they_are_wanted(coco, read_subset):
    coco.image()
    coco.object(id=1)
    coco.object({"size": [10, 20], "counts": [25, 5, 170]}, id=2, iscrowd=1)
    root = coco.save()
    image, skips = read_one(read_subset, root)
    assert (image.object_ids, skips.counts) == (("1",), {"crowd region": 1})
    image, skips = read_one(read_subset, root, keep_crowds=True)
    assert (image.object_ids, skips.counts) == (("1", "2"), {})
    assert [int(coco_mask.area(mask)) for mask in image.masks] == [36, 5]


def test_coco_reader__one_file_as_two_images(coco, read_subset):
    coco.image("a.png")
    coco.image("a.png")
    coco.object(image_id=1)
    coco.object(image_id=2)
    subset, _ = read_subset(CocoReader, coco.save())
    assert sorted(image.image_id for image in subset.images) == ["a.png", "a.png#2"]


def test_coco_reader__entries_that_are_nonsense(coco, read_subset):
    coco.image()
    coco.object()
    coco.content["images"] += [7, {"id": 5}, {"file_name": "x.png"}]
    coco.content["annotations"] += [7, None]
    coco.content["categories"] += [7, {"id": 4}]
    _, skips = read_one(read_subset, coco.save())
    assert skips.counts == {"entry that is no annotation": 5, "annotation of an undeclared image": 2}


@pytest.mark.parametrize(
    ("annotations", "folder", "subset"),
    [
        ("annotations/instances_train.json", "images", "train"),
        ("annotations/train.json", "images/train", "train"),
        ("train.json", "train", "train"),
        ("train/_annotations.coco.json", "train", "train"),
        ("labels.json", "data", "labels"),
        ("annotations/instances_default.json", "images/default", "default"),
        ("instances_train_trashcan.json", "train", "train_trashcan"),
        ("coco_annotations/train_polygons_instances.json", "data", "train_polygons"),
        ("nested/set/annotations/instances_train2017.json", "nested/set/train2017", "train2017"),
    ],
)
def test_coco_reader__layouts(coco, read_subset, annotations, folder, subset):
    coco.image(folder=folder)
    coco.object()
    root = coco.save(annotations)
    assert list(CocoReader(Folder(root)).list_subsets()) == [subset]
    read, _ = read_subset(CocoReader, root, subset)
    assert read.images[0].path == root / folder / "a.png"


def test_coco_reader__instances_before_keypoints_and_stuff(coco):
    coco.image()
    coco.object()
    for task in ("person_keypoints", "stuff", "instances"):
        coco.save(f"annotations/{task}_train.json")
    coco.save("annotations/person_keypoints_val.json")
    coco.save("annotations/stuff_val.json")
    coco.content["annotations"] = [{"id": 1, "image_id": 1, "caption": "a photo"}]
    coco.save("annotations/captions_train.json")
    coco.content["annotations"] = [{"image_id": 1, "segments_info": [{"id": 1, "bbox": [0, 0, 1, 1]}]}]
    coco.save("annotations/panoptic_train.json")
    subsets = CocoReader(Folder(coco.root)).list_subsets()
    assert {name: files[0] for name, files in subsets.items()} == {
        "train": "instances_train",
        "val": "person_keypoints_val",
    }


def test_coco_reader__only_captions(coco):
    coco.image()
    coco.save("annotations/captions_train.json")
    with pytest.raises(DataError, match=r"only COCO files without object masks \(captions_train\.json\)"):
        CocoReader(Folder(coco.root))


@pytest.mark.parametrize("name", ["labels_my-project_2025-01-02.json", "captions_of_cells.json", "panoptic_x.json"])
def test_coco_reader__tasks_are_judged_by_content(coco, read_subset, name):
    coco.image()
    coco.object()
    subset, _ = read_subset(CocoReader, coco.save(name), next(iter(CocoReader(Folder(coco.root)).list_subsets())))
    assert len(subset.images) == 1


def test_coco_reader__no_file(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="no COCO annotations; looked for"):
        CocoReader(Folder(tmp_path))


def test_coco_reader__two_files_of_one_name_are_told_apart(coco):
    coco.image()
    coco.save("one/instances_train.json")
    coco.save("two/instances_train.json")
    assert sorted(CocoReader(Folder(coco.root)).list_subsets()) == ["one/instances_train", "two/instances_train"]


def test_coco_reader__broken_json(coco, read_subset):
    coco.image()
    path = coco.save() / "annotations/instances_train.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DataError, match=r"instances_train\.json: no readable JSON"):
        read_subset(CocoReader, coco.root)


def test_coco_reader__annotations_that_are_no_list(coco, read_subset):
    coco.content["annotations"] = {"a": 1}
    with pytest.raises(DataError, match=r"instances_train\.json: expected a list under 'annotations', found dict"):
        read_subset(CocoReader, coco.save())


def test_coco_reader__one_file_under_two_ids(coco):
    coco.image()
    coco.image()
    coco.object()
    coco.object(image_id=2)
    reader = CocoReader(Folder(coco.save()))
    assert len(reader.read_subset("train", SkipCounts()).images) == 2
    assert reader.notes == ["instances_train.json: 1 of the images are files that another image names too"]


@pytest.mark.parametrize("name", ["\ud800.png", "x" * 5000])
def test_coco_reader__name_that_no_file_can_have(coco, read_subset, name):
    coco.image(name, save=False)
    coco.object()
    _, skips = read_subset(CocoReader, coco.save())
    assert skips.counts == {"image file is missing": 1}
    assert skips.examples["image file is missing"].encode("utf-8")


@pytest.mark.parametrize("image_id", ["²", "².0", "9" * 5000, "7.0"])
def test_coco_reader__odd_digits_in_ids(coco, read_subset, image_id):
    coco.image(image_id=image_id)
    coco.object(image_id=image_id)
    subset, _ = read_subset(CocoReader, coco.save())
    assert len(subset.images) == 1


def test_coco_reader__keeps_boxes_where_they_are_wanted(coco, read_subset):
    coco.image()
    coco.object()
    coco.object([], bbox=[1.25, 2.5, 6, 4.25])
    coco.object([], bbox=[15, 5, 20, 20])
    coco.object([], bbox=[40, 5, 5, 5])
    coco.object([], bbox=["a", 5, 5, 5])
    coco.object([], drop=("bbox",))
    image, skips = read_one(read_subset, coco.save(), keep_boxes=True)
    assert image.box_only_N.tolist() == [False, True, True]
    assert image.boxes_N4.tolist() == [[2, 2, 8, 8], [1.25, 2.5, 7.25, 6.75], [15, 5, 20, 10]]
    assert decode_rle(image.masks[1])[2:7, 1:7].all()
    assert decode_rle(image.masks[1]).sum() == 5 * 6
    assert skips.counts == {
        "no pixel of the mask inside the image": 1,
        "entry that is no annotation": 1,
        "neither mask nor box": 1,
    }
