"""Results in files that pycocotools reads, whole whatever happens."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from vpexp.data.masks import decode_rle, encode_mask
from vpexp.data.prompts import Prompts
from vpexp.inference.coco_results import CocoResultWriter, build_result, describe_prompt

IMAGES = [
    {"id": 3, "file_name": "left/a.jpg", "width": 9, "height": 7},
    {"id": 5, "file_name": "grün.jpg", "width": 9, "height": 7},
]


def make_mask(seed):
    mask_HW = np.zeros((7, 9), dtype=bool)
    mask_HW[1 : 3 + seed, 2:7] = np.random.default_rng(seed).random((2 + seed, 5)) < 0.7
    return mask_HW


def make_results(image, count, category_id=1):
    return [
        build_result(encode_mask(make_mask(seed)), 0.25 * seed, image=image, category_id=category_id)
        for seed in range(count)
    ]


def load(folder):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "images.json"))
        return coco, coco.loadRes(str(folder / "predictions.json"))


def test_writer__pycocotools_reads_masks_boxes_and_scores(tmp_path):
    with CocoResultWriter(tmp_path, ["berry", "leaf"]) as writer:
        writer.add(IMAGES[0], make_results(IMAGES[0], 3))
        writer.add(IMAGES[1], make_results(IMAGES[1], 1, category_id=2))
    coco, results = load(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.json", "predictions.json"]
    assert [entry["name"] for entry in coco.loadCats([1, 2])] == ["berry", "leaf"]
    assert coco.loadImgs([5])[0]["file_name"] == "grün.jpg"
    assert len(results.anns) == 4
    for seed, annotation in enumerate(results.loadAnns(results.getAnnIds(imgIds=[3]))):
        mask_HW = make_mask(seed)
        assert (results.annToMask(annotation) == mask_HW).all()
        rows, columns = np.nonzero(mask_HW)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert annotation["bbox"] == box
        assert annotation["score"] == 0.25 * seed
        assert isinstance(annotation["segmentation"]["counts"], str)
    assert results.loadAnns(results.getAnnIds(imgIds=[5]))[0]["category_id"] == 2
    assert {entry["file_name"] for entry in json.loads((tmp_path / "predictions.json").read_text())} == {
        "left/a.jpg",
        "grün.jpg",
    }


def test_writer__images_without_masks_are_listed(tmp_path):
    with CocoResultWriter(tmp_path, ["object"]) as writer:
        writer.add(IMAGES[0], [])
        writer.add(IMAGES[1], make_results(IMAGES[1], 1))
    coco, results = load(tmp_path)
    assert sorted(coco.imgs) == [3, 5]
    assert len(results.anns) == 1


def test_writer__no_mask_at_all_is_an_empty_list(tmp_path):
    with CocoResultWriter(tmp_path, ["object"]) as writer:
        writer.add(IMAGES[0], [])
    assert json.loads((tmp_path / "predictions.json").read_text()) == []
    assert len(json.loads((tmp_path / "images.json").read_text())["images"]) == 1


def test_writer__nothing_is_visible_before_the_end(tmp_path):
    with CocoResultWriter(tmp_path, ["object"]) as writer:
        writer.add(IMAGES[0], make_results(IMAGES[0], 2))
        assert not writer.predictions.exists()
        assert not writer.image_list.exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, ValueError])
def test_writer__what_was_added_is_written_when_stopped(tmp_path, stop):
    def write():
        with CocoResultWriter(tmp_path, ["object"]) as writer:
            writer.add(IMAGES[0], make_results(IMAGES[0], 2))
            raise stop

    with pytest.raises(stop):
        write()
    coco, results = load(tmp_path)
    assert len(results.anns) == 2
    assert sorted(coco.imgs) == [3]
    assert len(list(tmp_path.iterdir())) == 2


def test_writer__an_image_that_was_being_added_when_stopped_leaves_no_trace(tmp_path):
    class Stopping(list):
        def append(self, value):
            raise KeyboardInterrupt

    def write():
        with CocoResultWriter(tmp_path, ["object"]) as writer:
            writer.add(IMAGES[0], make_results(IMAGES[0], 2))
            writer.images = Stopping(writer.images)
            writer.add(IMAGES[1], make_results(IMAGES[1], 3))

    with pytest.raises(KeyboardInterrupt):
        write()
    coco, results = load(tmp_path)
    assert len(results.anns) == 2
    assert sorted(coco.imgs) == [3]


def test_writer__nothing_added_leaves_no_file(tmp_path):
    with CocoResultWriter(tmp_path, ["object"]):
        pass
    assert list(tmp_path.iterdir()) == []


def test_build_result__score_that_is_no_number_is_no_json(tmp_path):
    result = build_result(encode_mask(make_mask(0)), float("nan"), image=IMAGES[0], category_id=1)
    with CocoResultWriter(tmp_path, ["object"]) as writer, pytest.raises(ValueError):
        writer.add(IMAGES[0], [result])
    assert list(tmp_path.iterdir()) == []


def test_build_result__mask_comes_back():
    result = build_result(encode_mask(make_mask(2)), 1 / 3, image=IMAGES[0], category_id=7)
    assert (decode_rle(result["segmentation"]) == make_mask(2)).all()
    assert result["score"] == 0.333333
    assert (result["image_id"], result["category_id"]) == (3, 7)


def test_describe_prompt__as_the_file_of_prompts_writes_it():
    prompts = Prompts(
        np.array(
            [
                [[1, 2], [3.5, 4], [0, 0]],
                [[5, 6], [0, 0], [0, 0]],
                [[5, 6], [7, 8], [9, 1]],
                [[8, 8], [1, 2], [3.5, 4]],
            ],
            np.float32,
        ),
        np.array([[2, 3, -1], [1, -1, -1], [1, 0, 1], [0, 2, 3]], np.float32),
    )
    assert describe_prompt(prompts, 0) == {"index": 0, "box": [1, 2, 3.5, 4]}
    assert describe_prompt(prompts, 1) == {"index": 1, "points": [[5, 6]], "point_labels": [1]}
    assert describe_prompt(prompts, 2) == {"index": 2, "points": [[5, 6], [7, 8], [9, 1]], "point_labels": [1, 0, 1]}
    together = {"index": 3, "box": [1, 2, 3.5, 4], "points": [[8, 8]], "point_labels": [0]}
    assert describe_prompt(prompts, 3) == together  # wherever the box stands among the points
