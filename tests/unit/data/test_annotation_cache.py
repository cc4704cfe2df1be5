"""What is kept equals what is read, and is used only as long as nothing changed."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from vpexp.config.schema import DataConfig
from vpexp.data import annotation_cache as kept_module
from vpexp.data import dataset as load_module
from vpexp.data.annotation_cache import KeptAnnotations
from vpexp.data.dataset import load_dataset
from vpexp.data.folder import Folder
from vpexp.errors import DataError

NUCLEI = Path(__file__).resolve().parents[4] / "shared" / "data" / "nuclei"
FORMATS = ("coco", "voc", "datumaro", "common_semantic_segmentation")


@pytest.fixture(autouse=True)
def keep_all(monkeypatch):
    monkeypatch.setattr(load_module, "WORTH_KEEPING_SECONDS", 0)


@pytest.fixture
def reads(monkeypatch):
    """Count how often a data set's own files are read."""
    calls = []
    read = load_module._read_dataset
    monkeypatch.setattr(load_module, "_read_dataset", lambda *args, **kw: calls.append(1) or read(*args, **kw))
    return calls


def describe(dataset):
    """Everything that a data set holds and tells, as plain values."""
    return {
        "format": dataset.format,
        "root": str(dataset.root),
        "categories": dataset.categories,
        "notes": dataset.notes,
        "splits": [
            (
                (name, split.name, split.source, list(split.skipped.items()), list(split.examples.items())),
                split.object_count,
                [describe_image(image) for image in split.images],
            )
            for name, split in dataset.splits.items()
        ],
    }


def describe_image(image):
    arrays = [(array.dtype.str, array.shape, array.tolist()) for array in (image.boxes_N4, image.labels_N)]
    sizes = [type(value) for mask in image.masks for value in (*mask["size"], mask["counts"])]
    own = (image.image_id, image.path, image.height, image.width, image.exif_transpose)
    return own, arrays, image.masks, image.object_ids, sizes, [type(value) for value in own]


def build(coco, images=4):
    coco.content["categories"] = [{"id": 1, "name": "cell"}, {"id": 2, "name": "Zelle ä\udcff"}]
    for number in range(images):
        image_id = coco.image(f"{number}.png", width=20 + number)
        coco.object(image_id=image_id)
        coco.object(image_id=image_id, category_id=2, segmentation=[[1, 1, 5, 1, 5, 5]])
    coco.object([], image_id=1)
    return coco.save("annotations/instances_train.json")


def load(root, cache_dir, **options):
    reading = {name: options.pop(name) for name in ("seed", "splits", "keep_boxes", "keep_empty") if name in options}
    return load_dataset(DataConfig(**{"format": "coco", "root": root, **options}), cache_dir=cache_dir, **reading)


def test_load_dataset__kept_equals_read(coco, tmp_path, reads):
    root, cache_dir = build(coco), tmp_path / ".cache"
    fresh = describe(load(root, None))
    first, second = (describe(load(root, cache_dir)) for _ in range(2))
    assert first == second == fresh
    assert len(reads) == 2
    assert fresh["splits"][0][0][3] == [("box only, no mask", 1)]
    assert len(list((cache_dir / "annotations").iterdir())) == 1


@pytest.mark.parametrize("format_", FORMATS)
def test_load_dataset__kept_equals_read_on_real_data(tmp_path, reads, format_):
    root = NUCLEI / format_
    if not root.is_dir():
        pytest.skip(f"no test images at {root}")
    fresh, first, second = (
        describe(load_dataset(DataConfig(format=name, root=root), cache_dir=cache_dir))
        for name, cache_dir in ((format_, None), (format_, tmp_path), (format_, tmp_path))
    )
    assert first == second == fresh
    assert len(reads) == 2


def change_annotation(root):
    file = root / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"].pop(0)
    file.write_text(json.dumps(content))


CHANGES = {
    "changed": change_annotation,
    "touched": lambda root: os.utime(root / "images/0.png", ns=(1, 1)),
    "added": lambda root: (root / "images/new.png").write_bytes((root / "images/0.png").read_bytes()),
    "removed": lambda root: (root / "images/3.png").unlink(),
    "renamed": lambda root: (root / "images/3.png").rename(root / "3.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_load_dataset__a_change_is_read(coco, tmp_path, reads, change):
    root, cache_dir = build(coco), tmp_path / ".cache"
    load(root, cache_dir)
    CHANGES[change](root)
    assert describe(load(root, cache_dir)) == describe(load(root, None))
    assert len(reads) == 3


@pytest.mark.parametrize(
    "option",
    [
        *({"format": "auto"}, {"instances": "classes"}, {"val_fraction": 0.5}, {"seed": 1}, {"splits": ("train",)}),
        *({"test_split": "testing"}, {"root": "annotations/instances_train.json"}),
    ],
)
def test_load_dataset__other_options_are_read(coco, tmp_path, reads, option):
    root, cache_dir = build(coco), tmp_path / ".cache"
    load(root, cache_dir)
    option = {key: root / value if key == "root" else value for key, value in option.items()}
    assert describe(load(**{"root": root, "cache_dir": cache_dir, **option})) == describe(
        load(**{"root": root, "cache_dir": None, **option})
    )
    assert len(reads) == 3


def test_load_dataset__strict_still_raises(coco, tmp_path):
    root = build(coco)
    load(root, tmp_path / ".cache")
    for _ in range(2):
        with pytest.raises(DataError, match="box only"):
            load(root, tmp_path / ".cache", strict=True)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text", "other", "pickle"])
def test_load_dataset__a_damaged_file_is_read_anew(coco, tmp_path, reads, damage):
    root, cache_dir = build(coco), tmp_path / ".cache"
    fresh = describe(load(root, cache_dir))
    (file,) = (cache_dir / "annotations").iterdir()
    content = file.read_bytes()
    if damage == "flipped":
        place = content.index(b"\x93NUMPY") + 200
        file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
    elif damage == "pickle":
        np.savez(file, header=np.array([{"key": 1}], dtype=object))
    elif damage == "other":
        np.savez(file, header=np.frombuffer(json.dumps({"key": "?"}).encode(), dtype=np.uint8))
    else:
        file.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"no archive"}[damage])
    assert describe(load(root, cache_dir)) == fresh
    assert describe(load(root, cache_dir)) == fresh
    assert len(reads) == 2  # and what was read took the damaged one's place


def test_load_dataset__a_cache_that_cannot_be_written(coco, tmp_path):
    root = build(coco)
    (tmp_path / "file").write_text("no folder")
    for _ in range(2):
        assert len(load(root, tmp_path / "file").splits["train"].images) == 3


def test_load_dataset__a_cache_inside_of_the_data(coco, reads):
    root = build(coco)
    for _ in range(2):
        load(root, root / "cache")
    assert len(reads) == 1


def test_load_dataset__images_that_nobody_watches_are_not_kept(coco, tmp_path, reads):
    root = build(coco)
    elsewhere = tmp_path.parent / f"{tmp_path.name}.png"
    elsewhere.write_bytes((root / "images/0.png").read_bytes())
    coco.content["images"][0]["file_name"] = str(elsewhere)
    coco.save()
    for _ in range(2):
        load(root, tmp_path / ".cache")
    assert len(reads) == 2
    elsewhere.unlink()


def test_load_dataset__quick_reads_are_not_kept(coco, tmp_path, monkeypatch):
    monkeypatch.setattr(load_module, "WORTH_KEEPING_SECONDS", 100)
    load(build(coco), tmp_path / ".cache")
    assert not (tmp_path / ".cache").exists()


def test_write__keeps_the_newest(coco, tmp_path, monkeypatch):
    root, cache_dir = build(coco), tmp_path / ".cache"
    monkeypatch.setattr(kept_module, "MOST_FILES", 2)
    (cache_dir / "annotations").mkdir(parents=True)
    draft = cache_dir / "annotations/.dead.npz.1"
    draft.write_bytes(b"x")
    os.utime(draft, (1, 1))
    for seed in range(4):
        load(root, cache_dir, seed=seed)
        for file in (cache_dir / "annotations").iterdir():
            status = file.stat()
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns - 10**9))
    files = sorted((cache_dir / "annotations").iterdir())
    assert len(files) == 2
    assert not draft.exists()
    options = {"format": "coco", "instances": "components", "strict": False, "val_fraction": 0.2, "seed": 3}
    options |= {"keep_boxes": False, "crowd": "skip", "unannotated": "skip", "allow_outside": False}
    requested = {name: name for name in ("train", "val", "test")}
    newest = KeptAnnotations(
        cache_dir / "annotations",
        Folder(root),
        options | {"requested": requested, "splits": ["test", "train", "val"]},
    )
    assert newest.path in files
