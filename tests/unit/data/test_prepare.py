import json
import os

import pytest
from PIL import Image

from vpexp.config.schema import DataConfig
from vpexp.data.dataset import load_dataset
from vpexp.data.prepare import main, prepare_trashcan, prepare_wgisd
from vpexp.errors import DataError

POLYGON = [[2, 2, 8, 2, 8, 8, 2, 8]]


def write_coco(path, names, *, with_masks):
    """Write a COCO file whose images have a mask if they are in ``with_masks``, and a box otherwise."""
    images = [{"id": n, "file_name": name, "width": 20, "height": 10} for n, name in enumerate(names)]
    annotations = [
        {
            "id": n,
            "image_id": n,
            "category_id": 1,
            "bbox": [2, 2, 6, 6],
            "iscrowd": 0,
            "segmentation": POLYGON if name in with_masks else [],
            "area": 36 if name in with_masks else 0,
        }
        for n, name in enumerate(names)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    categories = [{"id": 1, "name": "Chardonnay"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def write_images(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (20, 10)).save(folder / name)


@pytest.fixture
def clone(tmp_path):
    root = tmp_path / "wgisd"
    train, test = [f"CDY_{n}.jpg" for n in range(4)], [f"SYH_{n}.jpg" for n in range(3)]
    write_images(root / "data", train + test)
    for part, names in (("train", train), ("test", test)):
        masked = names[:2]
        write_coco(root / f"coco_annotations/{part}_polygons_instances.json", masked, with_masks=masked)
        write_coco(root / f"coco_annotations/{part}_bbox_instances.json", names, with_masks=masked)
    return root


@pytest.fixture
def trashcan(tmp_path):
    root = tmp_path / "trashcan"
    for version in ("instance", "material"):
        home = root / "dataset" / f"{version}_version"
        for part, count in (("train", 9), ("val", 3)):
            names = [f"vid_{n:03}.jpg" for n in range(count)]
            write_images(home / part, names)
            write_coco(home / f"instances_{part}_trashcan.json", names, with_masks=names)
    return root


def counts(dataset):
    return {name: len(split.images) for name, split in dataset.splits.items()}


def test_prepare_wgisd__polygons(clone, tmp_path):
    out = tmp_path / "out"
    assert prepare_wgisd(clone, out) == {"train": 2, "val": 2, "test": 2}
    assert sorted(path.name for path in (out / "annotations").iterdir()) == [
        f"instances_{split}.json" for split in ("test", "train", "val")
    ]
    dataset = load_dataset(DataConfig(format="coco", root=out))
    assert counts(dataset) == {"train": 2, "val": 2, "test": 2}
    assert dataset.splits["train"].images[0].path == out / "images/CDY_0.jpg"
    assert dataset.notes == ("in both val and test: 2 of the images (such as SYH_0.jpg)",)


def test_prepare_wgisd__boxes_train_on_the_masked_images(clone, tmp_path):
    out = tmp_path / "out"
    assert prepare_wgisd(clone, out, annotations="bbox") == {"train": 4, "val": 3, "test": 3}
    dataset = load_dataset(DataConfig(format="coco", root=out))
    assert counts(dataset) == {"train": 2, "val": 2, "test": 2}
    assert dataset.splits["train"].skipped == {"box only, no mask": 2, "image left without objects": 2}


def test_prepare_wgisd__again_changes_nothing(clone, tmp_path):
    out = tmp_path / "out"
    prepare_wgisd(clone, out)
    image = out / "images/CDY_0.jpg"
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    first = image.stat().st_ino
    prepare_wgisd(clone, out)
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    assert image.stat().st_ino == first == (clone / "data/CDY_0.jpg").stat().st_ino


def test_prepare_wgisd__half_written_image_is_replaced(clone, tmp_path):
    prepare_wgisd(clone, tmp_path / "out")
    image = tmp_path / "out/images/CDY_0.jpg"
    image.unlink()
    image.write_bytes(b"half")
    prepare_wgisd(clone, tmp_path / "out")
    assert image.read_bytes() == (clone / "data/CDY_0.jpg").read_bytes()


def test_prepare_wgisd__copies_where_links_are_not_possible(clone, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError

    monkeypatch.setattr(os, "link", refuse)
    prepare_wgisd(clone, tmp_path / "out")
    assert (tmp_path / "out/images/CDY_0.jpg").read_bytes() == (clone / "data/CDY_0.jpg").read_bytes()


def test_prepare_wgisd__no_clone(clone, tmp_path):
    with pytest.raises(DataError, match="data: no such folder; a clone of WGISD"):
        prepare_wgisd(tmp_path, tmp_path / "out")
    (clone / "coco_annotations/test_polygons_instances.json").unlink()
    with pytest.raises(DataError, match=r"test_polygons_instances\.json: no such file"):
        prepare_wgisd(clone, tmp_path / "out")


def test_prepare_wgisd__missing_images(clone, tmp_path):
    (clone / "data/CDY_1.jpg").unlink()
    with pytest.raises(DataError, match=r"CDY_1\.jpg: image file is missing \(1 of 4 are\)"):
        prepare_wgisd(clone, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_prepare_wgisd__links_that_lead_out_of_the_clone(clone, tmp_path):
    image = clone / "data/CDY_1.jpg"
    image.symlink_to(image.rename(tmp_path / "private.jpg"))
    with pytest.raises(DataError, match=r"CDY_1\.jpg: a link that leads out of"):
        prepare_wgisd(clone, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../escape.jpg", "/escape.jpg", 7])
def test_prepare_wgisd__file_names_that_lead_elsewhere(clone, tmp_path, name):
    path = clone / "coco_annotations/train_polygons_instances.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="without a usable file_name"):
        prepare_wgisd(clone, tmp_path / "out")


@pytest.mark.parametrize("inner", ["", "dataset", "dataset/instance_version"])
def test_prepare_trashcan__from_any_of_its_folders(trashcan, tmp_path, inner):
    out = tmp_path / "out"
    assert prepare_trashcan(trashcan / inner, out) == {"train": 9, "val": 3, "test": 3}
    dataset = load_dataset(DataConfig(format="coco", root=out))
    assert counts(dataset) == {"train": 9, "val": 3, "test": 3}
    assert dataset.splits["test"].images[0].path == out / "images/val/vid_000.jpg"


def test_prepare_trashcan__sample(trashcan, tmp_path):
    def sample(name, **options):
        prepare_trashcan(trashcan, tmp_path / name, **options)
        content = json.loads((tmp_path / name / "annotations/instances_train.json").read_text())
        assert len(content["annotations"]) == len(content["images"])
        return [image["file_name"] for image in content["images"]]

    assert len(sample("a", limit=4)) == 4
    assert sample("b", limit=4) == sample("c", limit=4)
    assert sample("d", limit=4, seed=3) != sample("e", limit=4)
    assert len(sample("f", limit=0)) == len(sample("g", limit=100)) == 9
    assert len(list((tmp_path / "a/images/train").iterdir())) == 4


def test_prepare_trashcan__no_trashcan(trashcan, tmp_path):
    with pytest.raises(DataError, match=r"no instance_version/instances_train_trashcan\.json"):
        prepare_trashcan(tmp_path / "gone", tmp_path / "out")
    with pytest.raises(DataError, match="no instance_version"):
        prepare_trashcan(trashcan / "dataset/material_version", tmp_path / "out")


def test_main__lays_out_and_says_how_to_go_on(clone, tmp_path, capsys):
    assert main(["wgisd", str(clone), str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert "images of train 2, val 2, test 2" in output
    assert f"python -m vpexp data=wgisd data.root={tmp_path / 'out'} stage=train" in output


def test_main__default_folder(trashcan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["trashcan", str(trashcan), "--limit", "2"]) == 0
    assert len(list((tmp_path / "data/trashcan/images/train").iterdir())) == 2


def test_main__error_is_one_line(tmp_path, capsys):
    assert main(["wgisd", str(tmp_path / "gone")]) == 2
    output = capsys.readouterr().out
    assert output.startswith("error: ")
    assert output.count("\n") == 1
