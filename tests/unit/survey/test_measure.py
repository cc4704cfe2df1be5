from pathlib import Path

import numpy as np
import pytest

from tests.references.surveys import build_image, build_split
from vpexp.data.annotations import AnnotatedDataset, Split
from vpexp.survey.measure import measure_dataset

IMAGE = build_image(Path("a.png"), [((10, 10, 20, 30), 1), ((0, 0, 5, 5), 0)])


def test_measure_split__columns_of_all_objects():
    split = build_split("train", [IMAGE, build_image(Path("b.png"), [((1, 1, 3, 3), 2)])])

    assert (split.image_count, split.object_count) == (2, 3)
    assert split.areas_M.tolist() == [200, 25, 4]
    assert split.labels_M.tolist() == [1, 0, 2]
    assert split.image_of_M.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(split.boxes_M4[0], [10, 10, 20, 30])


@pytest.mark.parametrize(("source", "names"), [("val", ["train", "val"]), ("test", ["train", "val", "test"])])
def test_measure_dataset__a_stand_in_does_not_count_twice(source, names):
    splits = {
        name: Split(name, of, [IMAGE], {}, {}) for name, of in (("train", "train"), ("val", "val"), ("test", source))
    }
    dataset = AnnotatedDataset("coco", Path(), ("x", "y"), splits, ())

    assert [split.name for split in measure_dataset(dataset)] == names
