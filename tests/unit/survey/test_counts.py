from pathlib import Path

from tests.references.surveys import build_image, build_split
from vpexp.data.skipped import BOX_ONLY, NO_ANNOTATIONS, NOTHING_USABLE
from vpexp.survey.measure import (
    count_images_by_class,
    count_images_without_objects,
    count_objects_by_class,
    order_classes,
)

BOX = (10, 10, 20, 20)


def test_counts__objects_and_images_of_each_class():
    split = build_split(
        "train",
        [build_image(Path("a.png"), [(BOX, 2), (BOX, 2), (BOX, 0)]), build_image(Path("b.png"), [(BOX, 2)])],
    )

    assert count_objects_by_class(split, 4).tolist() == [1, 0, 3, 0]
    assert count_images_by_class(split, 4).tolist() == [1, 0, 2, 0]
    assert order_classes([split], 4) == [2, 0, 1, 3]


def test_counts__of_an_empty_split_are_zero():
    split = build_split("train", [], {NO_ANNOTATIONS: 3, NOTHING_USABLE: 1, BOX_ONLY: 7})

    assert count_objects_by_class(split, 2).tolist() == [0, 0]
    assert count_images_by_class(split, 2).tolist() == [0, 0]
    assert count_images_without_objects(split) == 4
