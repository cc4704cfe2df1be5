from dataclasses import replace
from pathlib import Path

import pytest

from tests.references.surveys import build_image, build_split, build_survey
from vpexp.data.image_files import DAMAGED_IMAGE
from vpexp.data.skipped import BOX_ONLY, CROWD, MISSING_IMAGE, NO_ANNOTATIONS
from vpexp.survey.duplicates import ALIKE, SAME_FILE, SAME_PICTURE, Duplicates, Member, Pair
from vpexp.survey.findings import find_findings
from vpexp.survey.measure import SplitMeasures, compute_sides
from vpexp.survey.survey import DamagedFile, Finding

WIDE, HIGH = ((20, 20, 60, 40), 0), ((70, 10, 90, 60), 1)


def build_good_split(name: str, count: int = 12) -> SplitMeasures:
    """Images about which nothing is odd but that their masks are boxes."""
    return build_split(name, [build_image(Path(f"{name}_{i}.png"), [WIDE, HIGH]) for i in range(count)])


def find(*splits, **more) -> list[Finding]:
    """Find what there is beside the boxes that all masks here are."""
    more = {"duplicates": Duplicates((), {}, {}), **more}
    found = find_findings(build_survey(*splits, categories=("cat", "dog"), **more))
    return [finding for finding in found if "filled boxes" not in finding.text]


def get_texts(findings: list[Finding]) -> list[str]:
    return [f"{finding.level}: {finding.text}" for finding in findings]


def test_find_findings__nothing_where_all_is_well():
    assert find(build_good_split("train"), build_good_split("val")) == []


def test_find_findings__masks_that_are_boxes():
    boxes, unread = find_findings(build_survey(build_good_split("train"), categories=("cat", "dog")))

    assert (boxes.level, boxes.text) == ("warning", "most masks are filled boxes: 100 % of train")
    assert (unread.level, unread.text) == ("note", "copies and damaged images were not looked for")


def test_find_findings__leaks_come_first_and_name_each_pair():
    members = [Member(split, f"{split}.jpg", f"/x/{split}.jpg", 20, 10, 3) for split in ("train", "val")]
    larger = Member("train", "again.jpg", "/x/again.jpg", 40, 20, 2)
    pairs = (Pair(members[0], members[1], SAME_FILE), Pair(members[0], larger, SAME_PICTURE))
    duplicates = Duplicates(pairs, {("train", "val"): 1}, {"train": 1})

    leak, repeated = find(build_good_split("train"), build_good_split("val"), duplicates=duplicates)

    assert get_texts([leak]) == ["error: the same picture in two splits: 1 of 12 images of val also in train"]
    assert leak.examples == ("train train.jpg = val val.jpg (same file)",)
    assert repeated.level == "warning"
    assert repeated.text.endswith("of the copies 1 has another number of objects than that one")
    assert repeated.examples == ("train train.jpg = train again.jpg (same picture, saved again, 20x10 and 40x20)",)


def test_find_findings__frames_of_one_video_and_a_val_split_that_vpexp_made():
    members = [Member(split, f"{split}.jpg", f"/x/{split}.jpg", 20, 10, 3) for split in ("train", "val")]
    alike = Duplicates((), {}, {}, (Pair(*members, ALIKE),))
    copies = Duplicates((Pair(*members, SAME_FILE),), {("train", "val"): 1}, {})
    train = build_good_split("train")
    own = build_split("val", build_good_split("val").images, source="train")

    (frames,) = find(train, build_good_split("val"), duplicates=alike)
    (divided,) = find(train, own, duplicates=alike)
    (leak,) = find(train, own, duplicates=copies)

    text = "this looks like frames of one video in two splits: 1 of 12 images of val nearly alike one of train"
    cause = " (the data set has no val split: vpexp set it aside from 'train' at random)"
    assert get_texts([frames, divided]) == [f"warning: {text}", f"warning: {text}{cause}"]
    assert frames.examples == ("train train.jpg ~ val val.jpg (nearly alike, as frames of one video are)",)
    assert get_texts([leak]) == [f"error: the same picture in two splits: 1 of 12 images of val also in train{cause}"]
    assert "give the data set a val split of whole scenes" in divided.advice
    assert "give the data set a val split of whole scenes" in leak.advice


def test_find_findings__specks_of_class_masks_lead_to_one_object_a_class():
    specks = [((x, 40, x + 3, 43), 0) for x in range(0, 100, 10)]
    split = build_split("train", [build_image(Path(f"{i}.png"), [*specks, HIGH]) for i in range(12)])
    survey = build_survey(split, categories=("cat", "dog"))

    def advise(format_: str) -> str:
        return next(one.advice for one in find_findings(replace(survey, format=format_)) if "fewer than 16" in one.text)

    assert "data.instances=classes" in advise("common_semantic_segmentation")
    assert "data.instances" not in advise("coco")


def test_find_findings__boxes_alone_are_an_error_with_the_way_out():
    empty, boxes, without = find(build_split("train", [], {BOX_ONLY: 7, NO_ANNOTATIONS: 1}), build_good_split("val"))[
        :3
    ]

    assert get_texts([empty]) == [
        "error: train: nothing to learn from, no object has a mask (box only, no mask: 7, image without annotations: 1)"
    ]
    assert get_texts([boxes]) == ["warning: 7 objects are boxes without masks"]
    assert "stage=predict data=coco data.root=pets" in boxes.advice
    assert "prompts=dataset" in boxes.advice
    assert without.text == "1 image without objects is left out"


def test_find_findings__one_empty_source_is_said_once():
    splits = [build_split(name, [], {CROWD: 2}, source="all") for name in ("train", "val")]

    assert [text for text in get_texts(find(*splits)) if text.startswith("error")] == [
        "error: train (all): nothing to learn from, no object has a mask (crowd region: 2)"
    ]


def test_find_findings__damaged_files_are_named_once():
    train = build_good_split("train")
    skipped = {DAMAGED_IMAGE: 1, MISSING_IMAGE: 2}
    damaged = (DamagedFile(Path("a.jpg"), DAMAGED_IMAGE),)
    measured = build_split("train", train.images, skipped)

    texts = get_texts(find(measured, damaged=damaged))

    assert texts == ["warning: 1 image file cannot be read", "warning: left out, image file is missing: 2"]


def test_find_findings__small_objects_and_what_a_larger_model_leaves():
    small = ((10, 10, 22, 22), 0)  # 12 px of 200: 6 px at 100, 61 px at 1024
    split = build_split("train", [build_image(Path(f"{i}.png"), [small, HIGH]) for i in range(12)])

    (finding,) = find(split)

    assert finding.level == "warning"
    assert finding.text.endswith("(sam_small), and SAM hardly sees them: 50 % of train")
    assert finding.advice.startswith("at 1024 px (model=sam_tiny_vit) 0 % of all objects are so small")


def test_find_findings__tiles_in_which_small_objects_are_seen():
    size, specks = (1200, 1600), [((x, 40, x + 40, 80), 0) for x in range(0, 1000, 100)]
    images = [build_image(Path(f"{i}.png"), specks, size) for i in range(12)]
    survey = build_survey(build_split("train", images), categories=("cat",))
    advice = "data.tile=192 cuts the images into tiles in which the typical object measures 21 px"  # 40 * 100 / 192
    assert next(finding.advice for finding in find_findings(survey) if "hardly sees" in finding.text).count(advice) == 1
    tiled = build_survey(build_split("train", images), categories=("cat",), tile=192)
    assert compute_sides(tiled.splits[0], 100, 192).tolist() == pytest.approx([40 * 100 / 192] * 120)
    assert tiled.shown == "tile of 192 px"
    small = build_survey(build_split("train", [build_image(Path("a.png"), [((0, 0, 5, 5), 0)], (50, 50))]))
    assert not any("data.tile=" in finding.advice for finding in find_findings(small)), "nothing to gain"


def test_find_findings__classes_that_are_missing_and_a_strong_imbalance():
    train = build_split(
        "train",
        [build_image(Path(f"{i}.png"), [WIDE, WIDE] if i else [WIDE, HIGH]) for i in range(12)],
    )
    val = build_split("val", [build_image(Path(f"{i}.png"), [WIDE]) for i in range(12)])

    survey = build_survey(train, val)
    texts = get_texts(find_findings(survey))

    assert "warning: val has no object of: dog" in texts
    assert "note: declared, but no object: eel" in texts
    assert "note: train: cat has 23 times as many objects as dog (23 and 1)" in texts


@pytest.mark.parametrize(
    ("box", "text"),
    [
        ((0, 0, 200, 99), "warning: 1 object nearly as large as the whole image"),
        ((5, 5, 8, 8), "note: 1 object of fewer than 16 pixels"),
    ],
)
def test_find_findings__odd_masks_are_named(box, text):
    images = [*build_good_split("train").images, build_image(Path("odd.png"), [(box, 0)])]

    (finding,) = find(build_split("train", images))

    assert get_texts([finding]) == [text]
    assert finding.examples == ("train odd.png",)


def test_find_findings__few_images_and_splits_that_are_not_alike():
    large = ((0, 0, 150, 90), 0)
    val = build_split("val", [build_image(Path(f"{i}.png"), [large, (large[0], 1)]) for i in range(3)])

    texts = get_texts(find(build_good_split("train"), val))

    assert texts[0] == "note: val: only 3 images to measure on: numbers will jump from run to run"
    assert texts[1].startswith("note: the typical object of val measures 58 px and that of train 1")


def test_find_findings__a_class_called_background():
    found = find_findings(
        build_survey(build_good_split("train"), categories=("cat", "Background"), duplicates=Duplicates((), {}, {}))
    )

    assert "warning: a class is called Background" in get_texts(found)
