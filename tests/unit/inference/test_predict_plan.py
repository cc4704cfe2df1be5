"""What there is to do is known, and mistakes are said, before a model is loaded."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vpexp.data.annotations import AnnotatedDataset, AnnotatedImage, Split
from vpexp.data.image_source import find_images
from vpexp.data.masks import encode_mask
from vpexp.data.skipped import SkipCounts
from vpexp.errors import DataError
from vpexp.inference.predict_plan import plan_dataset, plan_images, plan_prompts

BOX = {"boxes": [[1, 1, 5, 5]]}


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "left").mkdir(parents=True)
    for name in ("a.png", "b.png", "left/c.png"):
        Image.new("RGB", (20, 10)).save(folder / name)
    return folder


@pytest.fixture
def plan(photos, tmp_path):
    """Plan what a file of prompts says; return the plan and what was skipped."""

    def run_plan(content, strict=False):
        path = tmp_path / "p.json"
        path.write_text(json.dumps(content))
        skips = SkipCounts(strict=strict)
        return plan_prompts(find_images(str(photos)), path, skips), skips

    return run_plan


def test_plan_images__every_image(photos):
    plan = plan_images(find_images(str(photos)))
    assert [task.image.name for task in plan.tasks] == ["a.png", "b.png", "left/c.png"]
    assert all(task.prompts is None for task in plan.tasks)
    assert plan.categories == ("object",)


def test_plan_prompts__in_the_order_of_the_source_whatever_the_file_has(plan):
    planned, _ = plan({"c.png": BOX, "a.png": {**BOX, "labels": ["leaf"]}})
    assert [(task.image.number, task.image.name) for task in planned.tasks] == [(1, "a.png"), (3, "left/c.png")]
    assert planned.categories == ("leaf", "object")
    assert planned.without_prompts == 1
    assert planned.warnings == ()


def test_plan_prompts__empty_lists_are_no_prompts(plan):
    planned, _ = plan({"a.png": BOX, "b.png": {"boxes": []}})
    assert len(planned.tasks) == 1
    assert planned.without_prompts == 2


def test_plan_prompts__names_that_no_image_has_are_said(plan):
    planned, _ = plan({"a.png": BOX, "bb.png": BOX})
    (line,) = planned.warnings
    assert line.endswith("p.json: no image is called 'bb.png'; did you mean 'b.png'?")
    planned, _ = plan({"a.png": BOX, **{f"{number:09}": BOX for number in range(10)}})
    assert len(planned.warnings) == 4
    assert planned.warnings[0].endswith("no image is called '000000000'")
    assert planned.warnings[-1].endswith("7 more names are no image of the source")


def test_plan_prompts__nothing_fits_is_an_error(plan):
    with pytest.raises(
        DataError, match=r"has no prompt for any of the 3 images .* called 'aa\.png'; did you mean 'a\.png'"
    ):
        plan({"aa.png": BOX})
    with pytest.raises(DataError, match=r"has no prompt for any of the 3 images of the source$"):
        plan({"a.png": {}})
    with pytest.raises(DataError, match="has no prompt for any"):
        plan({})


def test_plan_prompts__boxes_are_checked_against_the_image(plan):
    with pytest.raises(
        DataError, match=r"p\.json: 'left/c\.png': boxes\[0\] .* lies outside of the image, which is 20 x 10"
    ):
        plan({"left/c.png": {"boxes": [[1, 10, 5, 15]]}})
    planned, _ = plan({"a.png": {"boxes": [[-3, 5, 30, 15]]}})
    assert planned.tasks[0].prompts.prompts.coords_NP2.tolist() == [[[0, 5], [20, 10]]]


def test_plan_prompts__the_image_is_as_viewers_show_it(plan, photos):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: 10 wide, 20 high
    Image.fromarray(np.zeros((10, 20, 3), np.uint8)).save(photos / "turned.jpg", exif=exif)
    planned, _ = plan({"turned.jpg": {"boxes": [[1, 15, 5, 19]]}})
    assert len(planned.tasks) == 1
    with pytest.raises(DataError, match="which is 10 x 20"):
        plan({"turned.jpg": {"boxes": [[15, 1, 19, 5]]}})


def test_plan_prompts__damaged_images_are_counted(plan, photos):
    (photos / "b.png").write_bytes((photos / "a.png").read_bytes()[:40])
    (photos / "d.jpg").write_bytes(b"nothing")
    planned, skips = plan({"a.png": BOX, "b.png": BOX, "d.jpg": BOX})
    assert [task.image.name for task in planned.tasks] == ["a.png"]
    assert sum(skips.counts.values()) == 2
    with pytest.raises(DataError, match=r"b\.png: .*\(data\.strict=false skips and counts it\)"):
        plan({"a.png": BOX, "b.png": BOX}, strict=True)


def make_image(name, split_box_only, folder):
    masks = tuple(encode_mask(np.eye(10, 20, k=shift, dtype=bool)) for shift in (0, 3))
    boxes_N4 = np.array([[0, 0, 10, 10], [2.5, 1.25, 13, 9]], np.float32)
    box_only_N = None if split_box_only is None else np.array(split_box_only)
    return AnnotatedImage(name, folder / name, 10, 20, masks, boxes_N4, np.array([1, 0]), ("7", "8"), False, box_only_N)


@pytest.fixture
def dataset(tmp_path):
    train = (make_image("a.png", None, tmp_path), make_image("b.png", [False, True], tmp_path))
    test = (make_image("b.png", [True, True], tmp_path / "other"), *train[:1])
    splits = {name: Split(name, name, images, {}, {}) for name, images in (("train", train), ("test", test))}
    return AnnotatedDataset("coco", tmp_path, ("grape", "leaf"), splits, ())


def test_plan_dataset__boxes_without_a_mask(dataset):
    plan = plan_dataset(dataset, keep_annotated=True)

    assert [(task.image.name, task.split, len(task.prompts)) for task in plan.tasks] == [
        ("a.png", "train", 0),
        ("b.png", "train", 1),
        ("test/b.png", "test", 2),
    ]
    assert plan.annotated == 1
    assert plan.categories == ("grape", "leaf")
    one = plan.tasks[1]
    assert one.prompts.labels == ("grape",)
    assert one.prompts.prompts.coords_NP2.tolist() == [[[2.5, 1.25], [13, 9]]]
    assert one.annotated.object_ids == ("7",)
    assert one.annotated.labels_N.tolist() == [1]
    assert len(plan.tasks[0].annotated) == 2


def test_plan_dataset__all_anew(dataset):
    plan = plan_dataset(dataset, keep_annotated=False)

    assert [len(task.prompts) for task in plan.tasks] == [2, 2, 2]
    assert [len(task.annotated) for task in plan.tasks] == [0, 0, 0]


def test_plan_dataset__nothing_to_do(dataset):
    done = replace(
        dataset, splits={"train": replace(dataset.splits["train"], images=dataset.splits["train"].images[:1])}
    )
    with pytest.raises(
        DataError, match=r"all objects have masks, .*; predict\.keep_annotated=false predicts them anew"
    ):
        plan_dataset(done, keep_annotated=True)
