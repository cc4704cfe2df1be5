import numpy as np
import pytest
from PIL import Image

from vpexp.config.schema import DataConfig
from vpexp.data.dataset import load_dataset
from vpexp.errors import DataError

READING = ("seed", "splits", "keep_boxes", "keep_empty", "cache_dir")


def fill(coco, count=1, *, prefix="", folder="images", objects=1):
    """Start a COCO file anew with some images of some objects."""
    coco.content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cell"}]}
    for number in range(count):
        image_id = coco.image(f"{prefix}{number:02}.png", folder=folder)
        for _ in range(objects):
            coco.object(image_id=image_id)
    return coco


def load(root, **options):
    reading = {name: options.pop(name) for name in READING if name in options}
    return load_dataset(DataConfig(**{"format": "coco", "root": root, **options}), **reading)


def test_load_dataset__three_splits(coco):
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        fill(coco, count, prefix=split).save(f"annotations/instances_{split}.json")
    dataset = load(coco.root)
    assert {name: len(split.images) for name, split in dataset.splits.items()} == {"train": 3, "val": 2, "test": 1}
    assert list(dataset.splits) == ["train", "val", "test"]
    assert [image.image_id for image in dataset.splits["train"].images] == ["train00.png", "train01.png", "train02.png"]
    assert dataset.splits["val"].object_count == 2
    assert dataset.categories == ("cell",)
    assert dataset.notes == ()
    assert dataset.format == "coco"


def test_load_dataset__one_unnamed_file(coco):
    fill(coco, 10).save("annotations/instances_default.json")
    dataset = load(coco.root, val_fraction=0.3)
    ids = {name: {image.image_id for image in split.images} for name, split in dataset.splits.items()}
    assert (len(ids["train"]), len(ids["val"])) == (7, 3)
    assert not ids["train"] & ids["val"]
    assert ids["test"] == ids["val"]
    assert dataset.notes == (
        "no val split: a seeded part of 'default' is set aside",
        "no test split: testing on val",
    )
    again = load(coco.root, val_fraction=0.3)
    assert {image.image_id for image in again.splits["val"].images} == ids["val"]
    only_test = load(coco.root, val_fraction=0.3, splits=("test",))
    assert {image.image_id for image in only_test.splits["test"].images} == ids["val"]
    other = load(coco.root, val_fraction=0.3, seed=7)
    assert {image.image_id for image in other.splits["val"].images} != ids["val"]


def test_load_dataset__images_without_objects_are_kept_and_divided(coco, tmp_path):
    fill(coco, 4)
    for number in range(4):
        coco.image(f"empty{number}.png")
    coco.save("annotations/instances_default.json")
    assert load(coco.root).splits["train"].skipped == {"image without annotations": 4}
    for _ in range(2):  # read, then as it was kept
        dataset = load(coco.root, unannotated="keep", val_fraction=0.25, cache_dir=tmp_path / "cache")
        assert {name: [len(image) for image in split.images] for name, split in dataset.splits.items()} == {
            "train": [1, 1, 1, 0, 0, 0], "val": [1, 0], "test": [1, 0]
        }  # fmt: skip
    assert "4 images of 'default' without objects: the prompter learns from them, the decoder does not" in dataset.notes


def test_load_dataset__a_test_split_without_annotations_is_none_though_such_images_are_kept(coco):
    fill(coco, 3).save("annotations/instances_train.json")
    fill(coco, 2, prefix="test", objects=0).save("annotations/instances_test.json")
    dataset = load(coco.root, unannotated="keep")
    assert "'test' has no annotations: it is not used as test" in dataset.notes
    assert dataset.splits["test"].object_count == 1


def test_load_dataset__skipped_is_counted_once(coco):
    fill(coco, 10)
    coco.object([], image_id=1)
    dataset = load(coco.save("all.json"))
    assert [split.skipped for split in dataset.splits.values()] == [{"box only, no mask": 1}, {}, {}]
    assert "annotation 11" in dataset.splits["train"].examples["box only, no mask"]
    alone = load(coco.root, splits=("val",))
    assert alone.splits["val"].skipped == {"box only, no mask": 1}


def test_load_dataset__test_needs_no_train(coco):
    fill(coco, 1).save("annotations/instances_test.json")
    coco.content["annotations"] = []
    coco.save("annotations/instances_train.json")
    assert list(load(coco.root, splits=("test",)).splits) == ["test"]
    with pytest.raises(DataError, match="nothing to learn from in split train"):
        load(coco.root)


def test_load_dataset__reads_only_what_is_needed(coco):
    fill(coco, 1).save("annotations/instances_test.json")
    (coco.root / "annotations/instances_train.json").write_text('{"images": [], "annotations": [')
    assert len(load(coco.root, splits=("test",)).splits["test"].images) == 1
    with pytest.raises(DataError, match="no readable JSON"):
        load(coco.root)


def test_load_dataset__published_test_without_annotations(coco):
    for split in ("train", "val"):
        fill(coco, 2, prefix=split).save(f"annotations/instances_{split}.json")
    fill(coco, 2, prefix="test", objects=0).save("annotations/instances_test.json")
    dataset = load(coco.root)
    assert dataset.splits["test"].source == "val"
    assert dataset.notes == (
        "'test' has no annotations: it is not used as test",
        "no test split: testing on val",
    )
    coco.save("annotations/unlabelled.json")
    message = r"nothing to measure in split test \('unlabelled'\): all 2 images have no annotations"
    with pytest.raises(DataError, match=message):
        load(coco.root, test_split="unlabelled")


def test_load_dataset__named_splits(coco):
    for split in ("day", "night", "dusk"):
        fill(coco, 2, prefix=split).save(f"annotations/instances_{split}.json")
    dataset = load(coco.root, train_split="day", val_split="night", test_split="dusk")
    assert [split.source for split in dataset.splits.values()] == ["day", "night", "dusk"]
    with pytest.raises(DataError, match=r"data\.train_split=dawn: .*'day', 'dusk', 'night'"):
        load(coco.root, train_split="dawn")


def test_load_dataset__categories_are_joined_by_name(coco):
    fill(coco, 2, prefix="train")
    coco.content["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    coco.save("annotations/instances_train.json")
    fill(coco, 1, prefix="val")
    coco.content["categories"] = [{"id": 5, "name": "owl"}, {"id": 1, "name": "dog"}]
    coco.object(image_id=1, category_id=5)
    coco.save("annotations/instances_val.json")
    dataset = load(coco.root)
    assert dataset.categories == ("cat", "dog", "owl")
    assert dataset.splits["val"].images[0].labels_N.tolist() == [1, 2]
    assert dataset.splits["val"].images[0].labels_N.dtype == np.int64
    assert "the splits declare different categories (train 2, val 2): joined by name to 3" in dataset.notes


def test_load_dataset__same_categories_in_another_order_are_no_news(coco):
    for split, ids in (("train", (1, 2)), ("val", (2, 1))):
        fill(coco, 1, prefix=split)
        coco.content["categories"] = [{"id": key, "name": name} for key, name in zip(ids, ("a", "b"), strict=True)]
        coco.save(f"annotations/instances_{split}.json")
    dataset = load(coco.root)
    assert [split.images[0].labels_N.tolist() for split in dataset.splits.values()] == [[0], [1], [1]]
    assert dataset.notes == ("no test split: testing on val",)


def test_load_dataset__same_image_in_two_splits(coco):
    for split in ("train", "val"):
        fill(coco, 2).save(f"annotations/instances_{split}.json")
    dataset = load(coco.root)
    assert "in both train and val: 2 of the images (such as 00.png)" in dataset.notes


def test_load_dataset__wide_images_are_announced(coco):
    from PIL import Image

    fill(coco, 2)
    Image.fromarray(np.zeros((10, 20), dtype=np.uint16)).save(coco.root / "images/00.png")
    assert load(coco.save()).notes[-1].startswith("1 of the images have more than 8 bits")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"segmentation": []},
            r"nothing to learn from in split train \('train'\): all 3 objects are boxes without masks; vpexp learns from masks",
        ),
        ({"iscrowd": 1}, "all 3 objects are crowd regions"),
        ({"category_id": 9}, "all 3 objects are of undeclared categories"),
        ({"image_id": 9}, "3 annotations belong to undeclared images, 3 skipped: image without annotations"),
        ({"segmentation": [[1, 1, 2, 2]]}, "all 3 skipped: polygon with fewer than 3 points"),
        ({"segmentation": [[50, 50, 60, 60, 50, 60]]}, "all 3 masks have no pixel inside the image"),
    ],
)
def test_load_dataset__nothing_to_learn_from_names_the_cause(coco, change, message):
    fill(coco, 3)
    for entry in coco.content["annotations"]:
        entry.update(change)
    with pytest.raises(DataError, match=message) as caught:
        load(coco.save())
    assert "\n" not in str(caught.value)
    assert "first: " in str(caught.value)


def test_load_dataset__images_are_elsewhere(coco):
    for number in range(3):
        coco.image(f"{number}.png", save=False)
        coco.object(image_id=number + 1)
    with pytest.raises(DataError, match=r"all 3 image files are missing; put them in images/ .*first: 0\.png"):
        load(coco.save())


def test_load_dataset__no_images_declared(coco):
    with pytest.raises(DataError, match="the folder holds no image files"):
        load(coco.save())


@pytest.mark.parametrize("name", ["coco", "voc", "datumaro", "common_semantic_segmentation", "auto"])
def test_load_dataset__wrong_or_missing_folder(tmp_path, name):
    with pytest.raises(DataError, match="no such folder"):
        load_dataset(DataConfig(format=name, root=tmp_path / "gone"))
    with pytest.raises(DataError, match="the folder is empty"):
        load_dataset(DataConfig(format=name, root=tmp_path))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"no known format|no COCO|no Pascal|no Datumaro|no common"):
        load_dataset(DataConfig(format=name, root=tmp_path))


def test_load_dataset__unknown_format(tmp_path):
    with pytest.raises(DataError, match=r"data\.format=yolo: expected one of coco, voc"):
        load_dataset(DataConfig(format="yolo", root=tmp_path))


def test_load_dataset__auto_says_what_it_found(coco):
    fill(coco, 2).save()
    dataset = load(coco.root, format="auto")
    assert dataset.format == "coco"
    assert dataset.notes[0] == "format: COCO (found annotations/instances_train.json)"


def test_load_dataset__root_may_be_the_annotation_file(coco):
    fill(coco, 2).save("annotations/a.json")
    fill(coco, 3).save("annotations/b.json")
    dataset = load(coco.root / "annotations/b.json", format="auto", splits=("train",))
    assert len(dataset.splits["train"].images) == 3
    assert dataset.root == coco.root


def test_load_dataset__strict(coco):
    fill(coco, 2)
    coco.object([[1, 1, 2, 2]])
    with pytest.raises(DataError, match=r"00\.png, annotation 3 .*fewer than 3 points"):
        load(coco.save(), strict=True)


def test_load_dataset__unreadable_file_of_a_split(coco):
    fill(coco, 4).save("annotations/instances_train.json")
    (coco.root / "annotations/instances_val.json").write_text("")
    with pytest.raises(
        DataError, match=r"instances_val\.json: no annotations for val: the file is empty; mend or remove"
    ):
        load(coco.root)
    with pytest.raises(DataError, match=r"instances_val\.json"):
        load(coco.root, splits=("test",))
    notes = load(coco.root, splits=("train",)).notes
    assert "not read as annotations: annotations/instances_val.json (the file is empty)" in notes


def test_load_dataset__unreadable_file_beside_a_good_one(coco):
    for split in ("train", "val"):
        fill(coco, 1, prefix=split).save(f"annotations/{split}.json")
    (coco.root / "annotations/val_info.json").write_text('{"author": "?"}')
    notes = load(coco.root).notes
    assert (
        "not read as annotations: annotations/val_info.json (it holds neither 'images' nor 'items', but author)"
        in notes
    )


@pytest.mark.parametrize("name", ["auto", "coco", "datumaro"])
def test_load_dataset__only_an_unreadable_file(coco, name):
    coco.image()
    (coco.root / "annotations").mkdir()
    (coco.root / "annotations/instances_train.json").write_text("")
    with pytest.raises(
        DataError, match=r"; not read as annotations: annotations/instances_train\.json \(the file is empty"
    ):
        load(coco.root, format=name)


def test_load_dataset__orientation_that_no_size_settles(coco):
    for image_id, (orientation, size) in enumerate([(3, (20, 10)), (6, (10, 10)), (6, (20, 10)), (1, (10, 10))], 1):
        coco.image(f"{image_id}.jpg", width=size[0], height=size[1], save=False)
        exif = Image.Exif()
        exif[0x0112] = orientation
        (coco.root / "images").mkdir(exist_ok=True)
        Image.new("RGB", size).save(coco.root / f"images/{image_id}.jpg", exif=exif)
        coco.object(image_id=image_id)
    assert (
        "2 of the images have an EXIF orientation that their annotation's size cannot settle: turned as viewers show them"
        in load(coco.save()).notes
    )


def test_load_dataset__keeps_a_split_without_objects_where_asked(coco, tmp_path):
    coco.image()
    coco.object([], image_id=1)
    root, cache = coco.save(), tmp_path / "cache"

    dataset = load_dataset(DataConfig(format="coco", root=root), splits=("train",), cache_dir=cache, keep_empty=True)

    train = dataset.splits["train"]
    assert (len(train.images), train.object_count) == (0, 0)
    assert train.skipped == {"box only, no mask": 1, "image left without objects": 1}
    assert dataset.categories == ("cell",)
    with pytest.raises(DataError, match="the only object is a box without a mask"):
        load_dataset(DataConfig(format="coco", root=root), splits=("train",), cache_dir=cache)


def test_load_dataset__crowds_name_the_key_and_the_tool(coco):
    coco.image()
    coco.object(iscrowd=1)
    coco.object(iscrowd=1)
    coco.object()
    root = coco.save()
    dataset = load_dataset(DataConfig(format="coco", root=root), splits=["train"])
    (note,) = (note for note in dataset.notes if "crowd" in note)
    assert note.startswith("2 of the 3 objects of 'train' are crowd regions: data.crowd=keep")
    assert "CVAT" in note
    kept = load_dataset(DataConfig(format="coco", root=root, crowd="keep"), splits=["train"])
    assert len(kept.splits["train"].images[0]) == 3
    assert not any("crowd" in note for note in kept.notes)


def test_load_dataset__files_outside_where_they_are_allowed(coco, tmp_path):
    coco.image("a.png", folder="elsewhere")
    coco.object()
    coco.content["images"][0]["file_name"] = "../elsewhere/a.png"
    coco.save("set/annotations/train.json")
    with pytest.raises(DataError, match=r"only file lies outside the given folder; data\.allow_outside=true uses"):
        load_dataset(DataConfig(format="coco", root=tmp_path / "set"), splits=["train"])
    dataset = load_dataset(DataConfig(format="coco", root=tmp_path / "set", allow_outside=True), splits=["train"])
    assert dataset.splits["train"].images[0].path.samefile(tmp_path / "elsewhere/a.png")
