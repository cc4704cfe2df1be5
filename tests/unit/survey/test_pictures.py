import re
from dataclasses import replace
from pathlib import Path

from PIL import Image

from tests.references.surveys import build_image, build_split, build_survey
from vpexp.reporting.page import shrink
from vpexp.survey.page import DrawnImage, build_page, choose_images, draw_images

BOX = (10, 10, 40, 40)


def build_train(folder: Path = Path()):
    """Nine images of a frequent class and one of a rare one."""
    labels = [0] * 9 + [1]
    return build_split("train", [build_image(folder / f"{i}.png", [(BOX, label)]) for i, label in enumerate(labels)])


def test_choose_images__splits_take_turns_and_rare_classes_are_seen():
    train, val = build_train(), build_split("val", [build_image(Path("v.png"), [(BOX, 0)])])

    chosen = choose_images([train, val], 4)

    assert [split.name for split, _ in chosen] == ["train", "train", "train", "val"]
    assert 9 in [row for split, row in chosen if split is train]
    assert chosen == choose_images([train, val], 4)


def test_choose_images__each_once_and_no_more_than_there_are():
    train = build_train()

    assert [row for _, row in choose_images([train], 100)] == list(range(10))
    assert choose_images([train], 0) == []
    assert choose_images([build_split("train", [])], 5) == []


def test_draw_images__a_damaged_one_is_passed_over(tmp_path):
    train = build_train(tmp_path)
    for path in train.paths[:2]:
        Image.new("RGB", (200, 100), (90, 90, 90)).save(path)
    train.paths[2].write_text("damaged")

    drawn = draw_images([(train, row) for row in range(3)], ["cat", "dog"], tmp_path / "overlays")

    assert [(one.split, one.name, one.picture.caption, one.picture.link) for one in drawn] == [
        ("train", "0.png", "1 cat, 200x100", "overlays/train_0.png"),
        ("train", "1.png", "1 cat, 200x100", "overlays/train_1.png"),
    ]
    assert sorted(path.name for path in (tmp_path / "overlays").iterdir()) == ["train_0.png", "train_1.png"]
    with Image.open(tmp_path / "overlays" / "train_0.png") as picture:
        assert picture.getpixel((10, 40)) == (90, 90, 90)
        assert picture.getpixel((75, 90)) != (90, 90, 90)


def test_build_page__images_split_after_split_in_their_own_order():
    picture = shrink(Image.new("RGB", (20, 10)), "1 cat")
    drawn = [
        DrawnImage(split, f"{split}.png", replace(picture, link=f"overlays/{split}.png"))
        for split in ("train", "val", "test")
    ]

    page = build_page(build_survey(build_train()), (), (), drawn)

    assert re.findall("Images of (\\w+)", page) == ["train", "val", "test"]
    assert re.findall(r'<a href="(overlays/.+?)">', page) == [one.picture.link for one in drawn], (
        "they open in full size"
    )
    assert len(re.findall(r'<i style="background: #\w{6}"></i>', page)) == 2, (
        "one legend of the classes that have objects"
    )
    assert re.findall(r"<figcaption><b>(\w+)\.png</b> 1 cat", page) == ["train", "val", "test"]
