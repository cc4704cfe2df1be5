import json

import numpy as np
import pytest
from PIL import Image

from vpexp.data.folder import Folder
from vpexp.data.masks import encode_mask, polygons_to_rle
from vpexp.data.readers.datumaro import DatumaroReader
from vpexp.data.skipped import SkipCounts
from vpexp.errors import DataError

SQUARE = [2, 2, 8, 2, 8, 8, 2, 8]


class DatumaroBuilder:
    def __init__(self, root):
        self.root = root
        labels = [{"name": name, "parent": "", "attributes": []} for name in ("cat", "dog", "background")]
        self.content = {
            "dm_format_version": "1.0",
            "media_type": 2,
            "infos": {},
            "categories": {"label": {"labels": labels, "label_groups": [], "attributes": []}},
            "items": [],
        }

    def image(
        self, *annotations, item_id="a", suffix="png", save=True, path=None, size=(10, 20), folder="images/train"
    ):
        if save:
            target = self.root / folder / f"{item_id}.{suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((10, 20, 3), dtype=np.uint8)).save(target)
        image = {"path": path or f"{item_id}.{suffix}"} | ({"size": list(size)} if size else {})
        self.content["items"].append({"id": item_id, "annotations": list(annotations), "attr": {}, "image": image})

    def save(self, name="annotations/train.json"):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.content))
        return self.root


def annotation(kind, *, number=1, group=None, label=0, crowd=False, **fields):
    return {
        "id": number,
        "type": kind,
        "attributes": {"is_crowd": crowd},
        "group": number if group is None else group,
        "label_id": label,
        "z_order": 0,
        **fields,
    }


def polygon(points=SQUARE, **fields):
    return annotation("polygon", points=points, **fields)


def box(x=2, y=2, width=6, height=6, **fields):
    return annotation("bbox", bbox=[x, y, width, height], **fields)


@pytest.fixture
def dm(tmp_path):
    return DatumaroBuilder(tmp_path)


def test_datumaro_reader__polygon_and_its_box_are_one_object(dm, read_subset):
    dm.image(polygon(), box())
    subset, skips = read_subset(DatumaroReader, dm.save())
    (image,) = subset.images
    assert subset.categories == ("cat", "dog", "background")
    assert image.masks == (polygons_to_rle([SQUARE], 10, 20),)
    assert image.boxes_N4.tolist() == [[2, 2, 8, 8]]
    assert image.image_id == "a.png"
    assert skips.counts == {}


def test_datumaro_reader__points_are_rounded_back_from_float32(dm, read_subset):
    points = [2.1, 2.3, 9.7, 2.3, 9.7, 7.9, 2.1, 7.9]
    dm.image(polygon(np.array(points, dtype=np.float32).tolist()))
    subset, _ = read_subset(DatumaroReader, dm.save())
    assert subset.images[0].masks == (polygons_to_rle([points], 10, 20, decimals=None),)


def test_datumaro_reader__parts_of_a_group_are_one_object(dm, read_subset):
    dm.image(polygon(), polygon([10, 2, 14, 2, 14, 5, 10, 5]), box(2, 2, 12, 6))
    subset, _ = read_subset(DatumaroReader, dm.save())
    assert subset.images[0].boxes_N4.tolist() == [[2, 2, 14, 8]]


def test_datumaro_reader__repeated_ids_stay_two_objects(dm, read_subset):
    dm.image(polygon(), box(), polygon([10, 2, 14, 2, 14, 5, 10, 5]), box(10, 2, 4, 3))
    subset, _ = read_subset(DatumaroReader, dm.save())
    assert subset.images[0].boxes_N4.tolist() == [[2, 2, 8, 8], [10, 2, 14, 5]]
    assert subset.images[0].object_ids == ("1", "1#2")


def test_datumaro_reader__no_group_means_one_object_each(dm, read_subset):
    dm.image(polygon(group=0, number=1), polygon([10, 2, 14, 2, 14, 5, 10, 5], group=0, number=2))
    subset, _ = read_subset(DatumaroReader, dm.save())
    assert len(subset.images[0]) == 2


def test_datumaro_reader__mask(dm, read_subset):
    mask_HW = np.zeros((10, 20), dtype=bool)
    mask_HW[3:6, 4:9] = True
    rle = encode_mask(mask_HW)
    dm.image(annotation("mask", rle={"counts": rle["counts"].decode(), "size": [10, 20]}, label=1))
    subset, _ = read_subset(DatumaroReader, dm.save())
    assert subset.images[0].masks == (rle,)
    assert subset.images[0].labels_N.tolist() == [1]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (polygon(number=2, crowd=True), "crowd region"),
        (polygon(number=2, label=7), "undeclared category"),
        (polygon(number=2, label=None), "undeclared category"),
        (polygon(number=2, label=2), "void region"),
        (polygon([2, 2, 8, 8], number=2), "polygon with fewer than 3 points or an odd number of values"),
        (polygon([2, 2, 8, 8, 3, 3, 1], number=2), "polygon with fewer than 3 points or an odd number of values"),
        (polygon([30, 30, 40, 30, 40, 40], number=2), "no pixel of the mask inside the image"),
        (annotation("mask", number=2, rle={"counts": "PPYo1", "size": [20, 10]}), "RLE size differs from the image's"),
        (annotation("mask", number=2, rle={"counts": "zz", "size": [10, 20]}), "damaged RLE"),
        (annotation("mask", number=2), "entry that is no annotation"),
        (annotation("hologram", number=2), "entry that is no annotation"),
        (annotation("points", number=2, points=[1, 1], visibility=[2]), "annotation type without a mask"),
        (box(12, 2, number=2), "box only, no mask"),
    ],
)
def test_datumaro_reader__bad_object_is_skipped_and_counted(dm, read_subset, bad, reason):
    dm.image(polygon(), bad, polygon([10, 2, 14, 2, 14, 5, 10, 5], number=3))
    subset, skips = read_subset(DatumaroReader, dm.save())
    assert [len(image) for image in subset.images] == [2]
    assert skips.counts == {reason: 1}


def test_datumaro_reader__keeps_boxes_where_they_are_wanted(dm, read_subset):
    dm.image(polygon(), box(12, 2, number=2), box(1, 1, number=3, label=7))
    subset, skips = read_subset(DatumaroReader, dm.save(), keep_boxes=True)
    (image,) = subset.images
    assert image.box_only_N.tolist() == [False, True]
    assert image.boxes_N4[1, :2].tolist() == [12, 2]
    assert skips.counts == {"undeclared category": 1}


@pytest.mark.parametrize("bad", [polygon([2, 2, 8, 8], number=2), box(12, 2, number=2)])
def test_datumaro_reader__strict_names_file_and_object(dm, read_subset, bad):
    dm.image(polygon(), bad)
    with pytest.raises(DataError, match=r"annotation 2"):
        read_subset(DatumaroReader, dm.save(), strict=True)


def test_datumaro_reader__box_in_another_group_is_the_objects_own(dm, read_subset):
    # as Datumaro writes Pascal VOC: groups of boxes count from 0, those of masks from 1
    dm.image(polygon(group=1), box(group=0))
    _, skips = read_subset(DatumaroReader, dm.save())
    assert skips.counts == {}


def test_datumaro_reader__labels_of_the_whole_image_are_no_objects(dm, read_subset):
    dm.image(annotation("label"), annotation("caption", caption="a cat"))
    dm.image(annotation("label"), polygon(), item_id="b")
    subset, skips = read_subset(DatumaroReader, dm.save())
    assert [image.image_id for image in subset.images] == ["b.png"]
    assert skips.counts == {"image without annotations": 1}
    subset, skips = read_subset(DatumaroReader, dm.root, keep_unannotated=True)
    assert [len(image) for image in subset.images] == [0, 1]
    assert skips.counts == {}


def test_datumaro_reader__same_stem_with_two_endings(dm, read_subset):
    dm.image(polygon(), suffix="png")
    dm.image(polygon(), suffix="jpg")
    subset, _ = read_subset(DatumaroReader, dm.save())
    assert sorted(image.image_id for image in subset.images) == ["a.jpg", "a.png"]


def test_datumaro_reader__missing_image(dm, read_subset):
    dm.image(polygon())
    dm.image(polygon(), item_id="gone", save=False)
    subset, skips = read_subset(DatumaroReader, dm.save())
    assert len(subset.images) == 1
    assert skips.counts == {"image file is missing": 1}
    assert "gone.png" in skips.examples["image file is missing"]


def test_datumaro_reader__size_not_given_or_wrong(dm, read_subset):
    dm.image(polygon(), size=None)
    dm.image(polygon(), item_id="b", size=(11, 20))
    dm.image(polygon(), item_id="c", size=(0, 20))
    subset, skips = read_subset(DatumaroReader, dm.save())
    assert [image.image_id for image in subset.images] == ["a.png"]
    assert skips.counts == {"image size differs from annotation": 1, "entry that is no annotation": 1}


def test_datumaro_reader__point_clouds_are_no_images(dm, read_subset):
    dm.image(polygon())
    dm.content["items"].append({"id": "cloud", "annotations": [polygon()], "point_cloud": {"path": "x.pcd"}})
    dm.content["media_type"] = 1
    _, skips = read_subset(DatumaroReader, dm.save())
    assert skips.counts == {"item without an image": 1}


@pytest.mark.parametrize("elsewhere", [True, False])
def test_datumaro_reader__export_without_its_media(dm, read_subset, elsewhere):
    folder = "elsewhere" if elsewhere else "images/default"
    target = dm.root / folder / "a.png"
    dm.image(polygon(), folder=folder, path=str(target) if elsewhere else "/home/someone/else/a.png")
    subset, _ = read_subset(DatumaroReader, dm.save("set/annotations/train.json") if elsewhere else dm.save())
    assert subset.images[0].path == target


def test_datumaro_reader__export_of_the_library(tmp_path, read_subset):
    import datumaro

    mask_HW = np.zeros((10, 20), dtype=bool)
    mask_HW[3:6, 4:9] = True
    items = [
        datumaro.DatasetItem(
            "deep/a",
            subset="train",
            media=datumaro.Image.from_numpy(np.zeros((10, 20, 3), dtype=np.uint8)),
            annotations=[
                datumaro.Polygon([2.1, 2.3, 9.7, 2.3, 9.7, 7.9], label=0, id=1, group=1),
                datumaro.Mask(mask_HW, label=1, id=2, group=2),
            ],
        )
    ]
    dataset = datumaro.Dataset.from_iterable(items, categories=["cat", "dog"], media_type=datumaro.Image)
    dataset.export(str(tmp_path / "set"), "datumaro", save_media=True)
    subset, skips = read_subset(DatumaroReader, tmp_path / "set")
    (image,) = subset.images
    assert image.masks == (polygons_to_rle([[2.1, 2.3, 9.7, 2.3, 9.7, 7.9]], 10, 20), encode_mask(mask_HW))
    assert skips.counts == {}


def test_datumaro_reader__no_labels_declared(dm):
    dm.content["categories"] = {}
    dm.image(polygon(label=None))
    reader = DatumaroReader(Folder(dm.save()))
    subset = reader.read_subset("train", SkipCounts())
    assert subset.categories == ("object",)
    assert subset.images[0].labels_N.tolist() == [0]
    assert "declares no categories" in reader.notes[0]


def test_datumaro_reader__file_that_datumaro_cannot_read(dm, read_subset):
    dm.image(polygon())
    dm.content["items"][0]["attr"] = 7
    with pytest.raises(DataError, match=r"train\.json: Datumaro cannot read it"):
        read_subset(DatumaroReader, dm.save())


def test_datumaro_reader__no_file(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(DataError, match="no Datumaro annotations; looked for"):
        DatumaroReader(Folder(tmp_path))


def test_datumaro_reader__missing_image_is_not_another_splits(dm, read_subset):
    dm.image(polygon())
    dm.image(polygon(), item_id="gone", folder="images/val")
    subset, skips = read_subset(DatumaroReader, dm.save())
    assert [image.image_id for image in subset.images] == ["a.png"]
    assert skips.counts == {"image file is missing": 1}


def test_datumaro_reader__images_outside_of_the_folder(dm, read_subset, tmp_path):
    (tmp_path / "set").mkdir()
    inside = DatumaroBuilder(tmp_path / "set")
    inside.image(polygon())
    for place, path in enumerate(("../../../b.png", str(tmp_path / "b.png"), "../../../../b.png")):
        inside.image(polygon(), item_id=f"b{place}", path=path, save=False)
    dm.image(item_id="b", folder="")
    subset, skips = read_subset(DatumaroReader, inside.save())
    assert [image.image_id for image in subset.images] == ["a.png"]
    assert sum(skips.counts.values()) == 3
    assert skips.counts["file outside the given folder (data.allow_outside=true uses it)"] >= 1


GROUPS = [(-1, "x"), ("1_12", "11_2"), (1.25, 1.5), ("a", "b"), ("1", "\uff11"), (True, 1), (2**40, 2**40 + 1)]


@pytest.mark.parametrize("groups", GROUPS)
def test_datumaro_reader__groups_are_compared_as_they_stand(dm, read_subset, groups):
    dm.image(*(polygon(group=one, number=7) for one in groups), polygon([10, 2, 16, 2, 16, 8], group=groups[0]))
    subset, skips = read_subset(DatumaroReader, dm.save())
    assert (len(subset.images[0]), skips.counts) == (2 if groups[0] is not True else 3, {})


@pytest.mark.parametrize("label", ["1_0", "\uff11", True, 0.5, "cat", [0]])
def test_datumaro_reader__labels_that_are_no_numbers(dm, read_subset, label):
    dm.image(polygon(), polygon(label=label, number=2), polygon(label="1", number=3), polygon(label=1.0, number="x"))
    subset, skips = read_subset(DatumaroReader, dm.save())
    assert subset.images[0].labels_N.tolist() == [0, 1, 1]
    assert skips.counts == {"undeclared category": 1}


def test_datumaro_reader__crowds_are_kept_where_they_are_wanted(dm, read_subset):
    dm.image(polygon(), polygon(number=2, crowd=True))
    _, skips = read_subset(DatumaroReader, dm.save())
    assert skips.counts == {"crowd region": 1}
    subset, skips = read_subset(DatumaroReader, dm.root, keep_crowds=True)
    assert (len(subset.images[0]), skips.counts) == (2, {})


def test_datumaro_reader__a_bad_entry_does_not_end_the_file(dm, read_subset):
    dm.image(polygon(), None, "x")
    dm.content["items"] += [None, {"id": "b", "annotations": None, "image": {"path": "b.png"}}]
    subset, skips = read_subset(DatumaroReader, dm.save())
    assert [len(image) for image in subset.images] == [1]
    assert skips.counts == {"entry that is no annotation": 3, "image without annotations": 1}


@pytest.mark.parametrize("media_type", [None, "image", 3, 4, 99])
def test_datumaro_reader__media_of_any_type(dm, read_subset, media_type):
    dm.image(polygon())
    dm.image(polygon(), item_id="b")
    dm.content["items"][1]["media"] = dm.content["items"][1].pop("image")
    dm.content["media_type"] = media_type
    subset, skips = read_subset(DatumaroReader, dm.save())
    assert ([image.image_id for image in subset.images], skips.counts) == (["a.png", "b.png"], {})


def test_datumaro_reader__labels_of_one_name_are_one_category(dm, read_subset):
    skeletons = [{"name": name, "parent": parent} for parent in ("hand", "foot") for name in ("1", "2")]
    dm.content["categories"]["label"]["labels"] = [{"name": "hand"}, *skeletons, "foot", {"parent": "x"}]
    dm.image(*(polygon(number=label, label=label) for label in range(7)))
    subset, skips = read_subset(DatumaroReader, dm.save())
    assert subset.categories == ("hand", "1", "2", "foot")
    assert subset.images[0].labels_N.tolist() == [0, 1, 2, 1, 2, 3]
    assert skips.counts == {"undeclared category": 1}


def test_datumaro_reader__run_lengths_as_a_list(dm, read_subset):
    dm.image(
        annotation("mask", rle={"counts": [100, 50, 50], "size": [10, 20]}),
        annotation("mask", number=2, rle={"counts": [100, 50, 50], "size": [20, 10]}),
        annotation("mask", number=3, rle={"counts": [100, 5], "size": [10, 20]}),
    )
    subset, skips = read_subset(DatumaroReader, dm.save())
    assert [mask["counts"] for mask in subset.images[0].masks] == [
        encode_mask(np.arange(200).reshape(20, 10).T // 50 == 2)["counts"]
    ]
    assert skips.counts == {"RLE size differs from the image's": 1, "entry that is no annotation": 1}


@pytest.mark.parametrize(("value", "is_crowd"), [("0", False), ("false", False), (0, False), ("1", True), (1, True)])
def test_datumaro_reader__crowds_in_whatever_way_they_are_written(dm, read_subset, value, is_crowd):
    dm.image(polygon(), polygon(number=2, crowd=value))
    _, skips = read_subset(DatumaroReader, dm.save())
    assert skips.counts == ({"crowd region": 1} if is_crowd else {})


def test_datumaro_reader__files_that_several_items_name_are_noted(dm):
    dm.image(polygon())
    dm.image(polygon(), item_id="b", path="a.png")
    reader = DatumaroReader(Folder(dm.save()))
    assert len(reader.read_subset("train", SkipCounts()).images) == 2
    assert reader.notes == ["train.json: 1 of the images are files that another image names too"]


def test_datumaro_reader__items_of_any_name(dm, read_subset):
    names = ["", "c:x", "/abs/b", "../up", 7, "back\\slash"]
    for place, name in enumerate(names):
        dm.image(polygon(), item_id=f"{place}")
        dm.content["items"][-1]["id"] = name
    dm.image(polygon(), item_id="bad", size=(0, 20))
    subset, skips = read_subset(DatumaroReader, dm.save())
    assert [image.image_id for image in subset.images] == [f"{name}.png".replace("\\", "/") for name in names]
    assert [image.path.name for image in subset.images] == [f"{place}.png" for place in range(len(names))]
    assert skips.counts == {"entry that is no annotation": 1}
    assert "train.json: item bad (" in skips.examples["entry that is no annotation"]
