from array import array

import pytest

from vpexp.data.readers.json_files import compact_annotation

POLYGON = [1.5, 2, 3.25, 4, 5, 6]


def annotate(**fields):
    return {"id": 1, "image_id": 2, "category_id": 3, "area": 5.0, "bbox": [1, 2, 3, 4], **fields}


def test_compact_annotation__keeps_what_is_read():
    compact = compact_annotation(annotate(segmentation=[POLYGON, []], iscrowd=0, keypoints=[1, 2, 3]))
    assert compact == {"id": 1, "image_id": 2, "category_id": 3, "segmentation": [array("d", POLYGON), []]}
    rle = {"size": [2, 3], "counts": [6]}
    assert compact_annotation(annotate(segmentation=rle, iscrowd=1)) == {
        "id": 1,
        "image_id": 2,
        "category_id": 3,
        "segmentation": rle,
        "iscrowd": 1,
    }


@pytest.mark.parametrize("part", [[1, "2"], [1, None], [[1, 2]], [10**400, 1], "text", 7, None, {"counts": "x"}])
def test_compact_annotation__what_is_no_polygon_is_judged_later(part):
    assert compact_annotation(annotate(segmentation=[part]))["segmentation"] == [part]


@pytest.mark.parametrize("segmentation", [[[]], [[], []]])
def test_compact_annotation__box_of_an_object_without_mask(segmentation):
    assert compact_annotation(annotate(segmentation=segmentation))["bbox"] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "entry",
    [
        annotate(segmentation=[]),
        annotate(segmentation="text"),
        annotate(segmentation=7),
        annotate(),
        {"id": 1, "file_name": "a.png", "segmentation": [POLYGON], "image_id": 1, "width": 3},
        {"segmentation": [POLYGON], "name": "cell"},
    ],
)
def test_compact_annotation__other_objects_stay(entry):
    assert compact_annotation(dict(entry)) == entry
