import base64
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from vpexp.data.tiles import Tiling
from vpexp.deploy.serving import answer
from vpexp.errors import DataError
from vpexp.inference import segment
from vpexp.inference.instances import find_instances
from vpexp.inference.load import load_predictor


@pytest.fixture(scope="module")
def predictor(debug_ir):
    return load_predictor(debug_ir)


@pytest.fixture(scope="module")
def image_HW3():
    return np.random.default_rng(0).integers(0, 256, (48, 72, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def image(image_HW3):
    content = BytesIO()
    Image.fromarray(image_HW3).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


BOXES = [[3, 4, 40, 30], [10, 10, 60, 44]]


def decode(reply):
    return np.stack([coco_mask.decode(rle) for rle in reply["masks"]]).astype(bool)


def test_answer__has_the_predictors_masks_boxes_first(predictor, image, image_HW3, monkeypatch):
    monkeypatch.setattr(segment, "CHUNK_PROMPTS", 2)  # so that three prompts need two calls
    record = {"image": image, "points": [[[20, 20], [5, 5]]], "point_labels": [[1, 0]], "boxes": BOXES}

    reply = answer(predictor, record, "row 0")

    embedding = predictor.embed(image_HW3)
    by_box = predictor.decode(embedding, boxes=np.array(BOXES, np.float32))
    by_point = predictor.decode(
        embedding, points=np.array([[[20, 20], [5, 5]]], np.float32), point_labels=np.array([[1, 0]], np.float32)
    )
    np.testing.assert_array_equal(decode(reply), np.concatenate([by_box.masks, by_point.masks]))
    np.testing.assert_allclose(reply["iou"], [*by_box.iou, *by_point.iou], atol=1e-5)
    assert len(reply["boxes"]) == 3
    assert all(type(value) is float for box in reply["boxes"] for value in box)


def test_answer__takes_what_a_table_makes_of_json(predictor, image):
    plain = answer(predictor, {"image": image, "boxes": BOXES}, "row 0")

    table = {"image": image, "boxes": np.array(BOXES), "points": float("nan"), "point_labels": None}
    assert answer(predictor, table, "row 0") == plain
    assert answer(predictor, {"image": f"data:image/png;base64,{image}\n", "boxes": BOXES}, "row 0") == plain


@pytest.mark.parametrize("tile", [None, 40])
def test_answer__an_image_alone_gives_what_the_model_finds(instance_ir, image, image_HW3, tile):
    finder = load_predictor(instance_ir)
    finder.metadata = replace(finder.metadata, tile=tile)

    reply = answer(finder, {"image": image, "boxes": None}, "row 0")

    _, found = find_instances(finder, image_HW3, tile and Tiling(tile, finder.metadata.tile_overlap))
    assert len(found.masks) > 1
    np.testing.assert_array_equal(decode(reply), [coco_mask.decode(mask.rle).astype(bool) for mask in found.masks])
    np.testing.assert_allclose(reply["scores"], [mask.score for mask in found.masks], atol=1e-5)
    assert reply["iou"] == reply["scores"]
    assert reply["labels"] == [mask.label for mask in found.masks]
    assert len(reply["boxes"]) == len(found.masks)
    assert answer(finder, {"image": image, "boxes": BOXES}, "row 0").keys() == {"masks", "iou", "boxes"}


def test_answer__empty_lists_are_no_prompts(predictor, image):
    assert answer(predictor, {"image": image, "boxes": []}, "row 0") == {"masks": [], "iou": [], "boxes": []}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"boxes": BOXES}, "'row 7': image is missing: give the base64 text of an image file"),
        ({"image": "", "boxes": BOXES}, "'row 7': image is missing"),
        ({"image": 3, "boxes": BOXES}, "'row 7': image is missing"),
        ({"image": "ä", "boxes": BOXES}, "'row 7': image is no base64 text"),
        ({"image": "aGVsbG8=", "boxes": BOXES}, "'row 7': image cannot be read: no image, or its header is damaged"),
        ({"image": ...}, "'row 7': give boxes, points, or both: this model has no prompter"),
        ({"image": ..., "point_labels": [[1]]}, "'row 7': give boxes, points, or both"),
        ({"image": ..., "boxes": [[1, 2, 3]]}, "'row 7': boxes[0] must be [x1, y1, x2, y2], not [1, 2, 3]"),
        ({"image": ..., "boxes": [[9, 2, 3, 5]]}, "'row 7': boxes[0] [9, 2, 3, 5] is empty"),
        ({"image": ..., "boxes": [[80, 2, 90, 9]]}, "lies outside of the image, which is 72 x 48 (width x height)"),
        ({"image": ..., "boxes": [["a", 2, 9, 9]]}, "'row 7': boxes[0] holds \"a\", which is no number"),
        ({"image": ..., "boxes": [[float("nan"), 2, 9, 9]]}, "'row 7': boxes[0] holds null, which is no number"),
        ({"image": ..., "points": [[3, 4]]}, "'row 7': points[0] must be a list of points"),
        ({"image": ..., "points": [[[3, 400]]]}, "'row 7': points[0] [3.0, 400.0] has a point outside of the image"),
    ],
)
def test_answer__says_what_is_wrong(predictor, image, record, message):
    given = {key: image if value is ... else value for key, value in record.items()}

    with pytest.raises(DataError) as caught:
        answer(predictor, given, "row 7")

    assert message in str(caught.value)
