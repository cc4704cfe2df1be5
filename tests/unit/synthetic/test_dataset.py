import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from vpexp.config.schema import DataConfig, SyntheticConfig
from vpexp.data.dataset import load_dataset
from vpexp.errors import DataError
from vpexp.synthetic import SCENES
from vpexp.synthetic.dataset import MANIFEST, write_synthetic_dataset

SIDE = 96
SIZE = (SIDE, SIDE)
SMALL = {"scene": "shapes", "image_size": 48, "train": 1, "val": 1, "test": 1, "seed": 0}


@pytest.fixture(scope="module", params=sorted(SCENES))
def scene(request):
    return request.param


@pytest.fixture(scope="module")
def folder(scene, tmp_path_factory):
    root = tmp_path_factory.mktemp(scene)
    return write_synthetic_dataset(root, SyntheticConfig(scene=scene, image_size=SIDE, train=6, val=2, test=3, seed=5))


def _hash_files(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _read_annotations(folder, split):
    return json.loads((folder / "annotations" / f"instances_{split}.json").read_text())


def test_write_synthetic_dataset__same_parameters_same_bytes(scene, folder, tmp_path):
    again = write_synthetic_dataset(
        tmp_path, SyntheticConfig(scene=scene, image_size=SIDE, train=6, val=2, test=3, seed=5)
    )
    assert _hash_files(again) == _hash_files(folder)


def test_write_synthetic_dataset__more_training_images_change_no_other(scene, folder, tmp_path):
    other = write_synthetic_dataset(
        tmp_path, SyntheticConfig(scene=scene, image_size=SIDE, train=1, val=2, test=3, seed=5)
    )
    ours, theirs = _hash_files(folder), _hash_files(other)
    shared = [name for name in theirs if name != MANIFEST and "instances_train" not in name]
    assert len(shared) == 1 + 2 + 3 + 2
    assert all(ours[name] == theirs[name] for name in shared)


def test_write_synthetic_dataset__splits_differ(folder):
    hashes = _hash_files(folder)
    images = [value for name, value in hashes.items() if name.endswith(".jpg")]
    assert len(images) == len(set(images)) == 11


def test_write_synthetic_dataset__masks_are_those_of_the_scene(scene, folder, capsys):
    for split_index, split in enumerate(("train", "val", "test")):
        coco = COCO(folder / "annotations" / f"instances_{split}.json")
        for image_index, image in enumerate(coco.loadImgs(sorted(coco.imgs))):
            stream = np.random.SeedSequence(entropy=5, spawn_key=(split_index, image_index))
            drawn = SCENES[scene].draw(np.random.default_rng(stream), *SIZE)
            annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
            assert [annotation["category_id"] - 1 for annotation in annotations] == drawn.labels
            for annotation, mask in zip(annotations, drawn.masks, strict=True):
                np.testing.assert_array_equal(coco.annToMask(annotation).astype(bool), mask)


def test_write_synthetic_dataset__files_are_a_sound_coco_data_set(scene, folder):
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        content = _read_annotations(folder, split)
        assert len(content["images"]) == count
        assert [category["name"] for category in content["categories"]] == list(SCENES[scene].categories)
        assert [category["id"] for category in content["categories"]] == list(range(1, len(content["categories"]) + 1))
        assert len({annotation["id"] for annotation in content["annotations"]}) == len(content["annotations"])
        for image in content["images"]:
            with Image.open(folder / "images" / image["file_name"]) as file:
                assert (file.height, file.width) == SIZE == (image["height"], image["width"])
        for annotation in content["annotations"]:
            rle = _encode(annotation["segmentation"])
            assert annotation["area"] == coco_mask.area(rle)
            assert annotation["bbox"] == coco_mask.toBbox(rle).tolist()
            assert annotation["iscrowd"] == 0


def test_write_synthetic_dataset__polygons_and_run_lengths_occur(tmp_path):
    folder = write_synthetic_dataset(
        tmp_path, SyntheticConfig(scene="shapes", image_size=128, train=6, val=0, test=0, seed=0)
    )
    segmentations = [annotation["segmentation"] for annotation in _read_annotations(folder, "train")["annotations"]]
    run_lengths = [segmentation for segmentation in segmentations if isinstance(segmentation, dict)]
    assert 0 < len(run_lengths) < len(segmentations)
    assert all(isinstance(segmentation["counts"], str) for segmentation in run_lengths)
    assert any(len(segmentation) > 1 for segmentation in segmentations if isinstance(segmentation, list))


def _encode(segmentation):
    if isinstance(segmentation, dict):
        return segmentation
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, *SIZE))


def test_write_synthetic_dataset__coco_reader_gets_every_object(scene, folder):
    dataset = load_dataset(DataConfig(format="coco", root=folder))
    assert dataset.categories == SCENES[scene].categories
    for name, split in dataset.splits.items():
        annotations = _read_annotations(folder, name)["annotations"]
        assert sum(len(image.masks) for image in split.images) == len(annotations)
        assert sum(coco_mask.area(rle) for image in split.images for rle in image.masks) == sum(
            annotation["area"] for annotation in annotations
        )
        assert not split.skipped


def test_write_synthetic_dataset__finished_folder_is_kept(tmp_path):
    folder = write_synthetic_dataset(tmp_path, SyntheticConfig(**SMALL))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_synthetic_dataset(str(tmp_path), SyntheticConfig(**SMALL)) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_write_synthetic_dataset__other_parameters_have_their_own_folder(tmp_path):
    folders = {
        write_synthetic_dataset(tmp_path, SyntheticConfig(**{**SMALL, **change}))
        for change in ({}, {"seed": 1}, {"test": 2})
    }
    assert len(folders) == 3


def test_write_synthetic_dataset__several_at_once(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: write_synthetic_dataset(tmp_path, SyntheticConfig(**SMALL)), range(4)))
    assert len(set(folders)) == 1
    assert list(tmp_path.iterdir()) == folders[:1]
    assert len(_read_annotations(folders[0], "train")["images"]) == 1


def test_write_synthetic_dataset__split_of_no_images_has_no_file(tmp_path):
    folder = write_synthetic_dataset(tmp_path, SyntheticConfig(**{**SMALL, "val": 0}))
    assert sorted(path.name for path in (folder / "annotations").iterdir()) == [
        "instances_test.json",
        "instances_train.json",
    ]


def test_write_synthetic_dataset__never_touches_what_it_did_not_draw(tmp_path):
    folder = write_synthetic_dataset(tmp_path / "a", SyntheticConfig(**SMALL))
    foreign = tmp_path / "b" / folder.name
    foreign.mkdir(parents=True)
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="not drawn by vpexp"):
        write_synthetic_dataset(tmp_path / "b", SyntheticConfig(**SMALL))
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    assert list((tmp_path / "b").iterdir()) == [foreign]


def test_write_synthetic_dataset__empty_folder_of_that_name_is_refused(tmp_path):
    folder = write_synthetic_dataset(tmp_path / "a", SyntheticConfig(**SMALL))
    (tmp_path / "b" / folder.name).mkdir(parents=True)
    with pytest.raises(DataError, match="not drawn by vpexp"):
        write_synthetic_dataset(tmp_path / "b", SyntheticConfig(**SMALL))


def test_write_synthetic_dataset__root_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        write_synthetic_dataset(tmp_path / "file", SyntheticConfig(**SMALL))


def test_write_synthetic_dataset__failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vpexp.synthetic.dataset._write_json", fail)
    with pytest.raises(DataError, match="No space left"):
        write_synthetic_dataset(tmp_path, SyntheticConfig(**SMALL))
    assert not list(tmp_path.iterdir())
