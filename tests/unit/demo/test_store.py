"""Kept masks on disk: whole at every moment, read back by others, shared by pages."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from vpexp.config.schema import DataConfig
from vpexp.data.dataset import load_dataset
from vpexp.data.image_source import find_images
from vpexp.data.masks import decode_rle, encode_mask
from vpexp.demo.folder import hold_folder
from vpexp.demo.labels import read_mask
from vpexp.demo.store import LabelStore, UnknownMaskError
from vpexp.errors import ConfigError, DataError, OutputError

HOLED = np.zeros((40, 60), bool)  # a ring, and a part of its own: what polygons would not keep
HOLED[5:25, 10:40], HOLED[10:20, 15:30], HOLED[30:33, 50:60] = True, False, True


@pytest.fixture
def store(tmp_path):
    return LabelStore(tmp_path / "labels")


def keep(store, image, label="berry", mask_HW=HOLED, uid=None, **extra):
    uid = uid or os.urandom(8).hex()
    return store.keep(
        image, label, encode_mask(mask_HW), score=0.8765432, prompt=extra or {"box": [1, 2, 3, 4]}, uid=uid
    )


def test_keep__is_on_disk_at_once_with_score_and_prompt(store, images):
    kept = keep(store, images[0])

    content = json.loads(store.annotations.read_text())
    assert content["categories"] == [{"id": 1, "name": "berry"}]
    assert content["images"] == [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}]
    (entry,) = content["annotations"]
    assert entry == kept.entry
    assert (entry["iscrowd"], entry["score"], entry["prompt"]) == (0, 0.876543, {"box": [1, 2, 3, 4]})
    assert (entry["area"], entry["bbox"]) == (HOLED.sum(), [10, 5, 50, 28])


def test_folder__is_read_by_pycocotools_datumaro_and_vpexp_with_the_same_masks(store, images):
    from datumaro.components.annotation import AnnotationType
    from datumaro.components.dataset import Dataset

    upright_HW = np.zeros((48, 32), bool)
    upright_HW[40:, 3:9] = True
    masks = {"a.png": HOLED, "b/a.png": HOLED[:30, :50], "turned.jpg": upright_HW}
    for image in images:
        keep(store, image, f"label of {image.name}", masks[image.name])

    coco = COCO(str(store.annotations))
    dataset = load_dataset(DataConfig(format="auto", root=store.folder), splits=("train",))
    datumaro = Dataset.import_from(str(store.folder), "coco")

    for image in images:
        (info,) = [info for info in coco.dataset["images"] if info["file_name"] == image.name]
        (annotation,) = coco.loadAnns(coco.getAnnIds(info["id"]))
        np.testing.assert_array_equal(coco.annToMask(annotation), masks[image.name])
        (own,) = [own for own in dataset.splits["train"].images if own.image_id == image.name]
        np.testing.assert_array_equal(decode_rle(own.masks[0]), masks[image.name])
        assert dataset.categories[own.labels_N[0]] == f"label of {image.name}"
        item = datumaro.get(image.name.rpartition(".")[0], "train")
        (found,) = [one for one in item.annotations if one.type == AnnotationType.mask]
        np.testing.assert_array_equal(found.image, masks[image.name])
        assert item.media.data is not None  # Datumaro finds the image itself
    assert not dataset.splits["train"].skipped


def test_images__are_the_source_s_own_files_and_stay_when_it_goes(store, images):
    keep(store, images[0])
    place = store.folder / "images" / "train" / "a.png"

    assert place.samefile(images[0].path)
    content = images[0].path.read_bytes()
    images[0].path.unlink()
    assert place.read_bytes() == content


def test_images__are_copied_where_nothing_can_be_linked(store, images, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    keep(store, images[1])
    place = store.folder / "images" / "train" / "b" / "a.png"

    assert place.read_bytes() == images[1].path.read_bytes()
    assert not place.samefile(images[1].path)
    LabelStore(store.folder).check_images(images)


def test_delete_and_restore__give_the_file_back(store, images):
    first, second = keep(store, images[0]), keep(store, images[1], mask_HW=HOLED[:30, :50])
    before = json.loads(store.annotations.read_text())

    store.delete(second.entry["id"])
    assert list(store.labels.images) == ["a.png"]
    with pytest.raises(UnknownMaskError, match="mask 2"):
        store.delete(2)
    for _ in range(2):  # a request that is sent again
        store.restore(2)
        assert json.loads(store.annotations.read_text()) == before

    store.delete(first.entry["id"])
    assert keep(store, images[2], mask_HW=np.ones((48, 32), bool)).entry["id"] == 3  # never an id twice
    assert len({entry["id"] for entry in store.labels.images.values()}) == len(store.labels.images) == 2


def test_relabel__changes_the_category_alone(store, images):
    kept = keep(store, images[0])

    store.relabel(1, "leaf")

    (entry,) = json.loads(store.annotations.read_text())["annotations"]
    assert entry == kept.entry | {"category_id": 2}


def test_request_that_is_sent_again__keeps_nothing_twice(store, images):
    first = keep(store, images[0], uid="mine")
    version = store.version

    assert keep(store, images[0], uid="mine") == first
    assert (len(store.labels.masks), store.version) == (1, version)


def test_restart__goes_on_and_versions_differ(store, images):
    keep(store, images[0])
    again = LabelStore(store.folder)

    assert again.version != store.version
    assert keep(again, images[1], "leaf", HOLED[:30, :50]).entry["id"] == 2
    assert list(again.labels.labels) == ["berry", "leaf"]


def test_file_of_another_tool__is_gone_on_with_as_it_is(tmp_path, images):
    file = tmp_path / "labels" / "annotations" / "instances_train.json"
    file.parent.mkdir(parents=True)
    polygon = {
        "id": 7,
        "image_id": 3,
        "category_id": 5,
        "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]],
        "bbox": [1, 1, 8, 8],
    }
    content = {
        "licenses": [{"id": 1}],
        "images": [{"id": 3, "file_name": "a.png", "height": 40, "width": 60, "license": 1}],
        "categories": [{"id": 5, "name": "berry", "supercategory": "fruit"}],
        "annotations": [polygon, {"id": 9, "image_id": 3, "category_id": 5, "bbox": [1, 1, 8, 8]}],
    }
    file.write_text(json.dumps(content))
    store = LabelStore(tmp_path / "labels")

    keep(store, images[0])

    written = json.loads(file.read_text())
    assert written["annotations"][:2] == content["annotations"]
    assert (written["images"], written["categories"]) == (content["images"], content["categories"])
    assert (written["licenses"], written["annotations"][2]["id"]) == ([{"id": 1}], 10)
    assert decode_rle(read_mask(polygon, 40, 60)).sum() == 64
    assert read_mask(content["annotations"][1], 40, 60) is None


@pytest.mark.parametrize(
    "content",
    ['{"images": [', '{"images": []}', '{"images": [], "categories": [], "annotations": [{"id": 1, "image_id": 4}]}'],
)
def test_file_that_is_none__is_refused(tmp_path, content):
    file = tmp_path / "annotations" / "instances_train.json"
    file.parent.mkdir()
    file.write_text(content)

    with pytest.raises(DataError, match=r"instances_train\.json"):
        LabelStore(tmp_path)
    assert file.read_text() == content


def test_full_disk__keeps_nothing_and_says_so(store, images, monkeypatch):
    keep(store, images[0])
    before = store.annotations.read_bytes()

    def fail(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OutputError, match="nothing was saved: No space left on device"):
            keep(store, images[0])

    assert store.annotations.read_bytes() == before
    assert keep(store, images[0]).entry["id"] == 2


def test_other_image_of_the_same_name__is_refused(store, images, tmp_path):
    keep(store, images[0])
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (60, 40)).save(other / "a.png")

    store.check_images(images)
    with pytest.raises(ConfigError, match=r"its a\.png is another image"):
        store.check_images(find_images(str(other)))


def test_two_pages__lose_nothing(store, images):
    def label(page):
        for number in range(25):
            keep(store, images[page % 2], f"label {number % 3}", HOLED[: 40 - 10 * (page % 2), : 60 - 10 * (page % 2)])

    pages = [threading.Thread(target=label, args=(page,)) for page in range(4)]
    for page in pages:
        page.start()
    for page in pages:
        page.join()

    again = LabelStore(store.folder)
    assert sorted(again.labels.masks) == list(range(1, 101))
    assert again.labels.count_by_image() == {"a.png": 50, "b/a.png": 50}
    assert len(again.labels.labels) == 3


def test_second_server__is_refused_in_one_line(store):
    code = f"from pathlib import Path; from vpexp.demo.folder import hold_folder\nwith hold_folder(Path({str(store.folder)!r})): pass"
    with hold_folder(store.folder):
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"ConfigError: demo.folder={store.folder}: another server labels into it" in ended.stderr

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


WRITER = """
import sys
from pathlib import Path
import numpy as np
from vpexp.data.masks import encode_mask
from vpexp.data.image_source import SourceImage
from vpexp.demo.store import LabelStore
store = LabelStore(Path(sys.argv[1]))
image = SourceImage(1, "a.png", Path(sys.argv[2]))
rle = encode_mask(np.random.default_rng(0).random((40, 60)) < 0.5)
for number in range(100_000):
    uid = f"{sys.argv[3]}-{number}"
    store.keep(image, "berry", rle, score=0.5, prompt={}, uid=uid)
    print(uid, flush=True)
    if number % 5 == 4:
        store.delete(max(store.labels.masks))
        print("-" + uid, flush=True)
"""


def test_killed_writer__leaves_all_that_was_acknowledged(tmp_path, images):
    folder = tmp_path / "labels"
    rng = np.random.default_rng(1)
    kept: set[str] = set()
    for life in range(5):
        command = [sys.executable, "-c", WRITER, str(folder), str(images[0].path), str(life)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        lines = [writer.stdout.readline()]  # it is at work
        time.sleep(rng.uniform(0.0, 0.25))
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.readlines()
        writer.wait()
        told = [line.strip() for line in lines if line.endswith("\n")]
        deleted = {line[1:] for line in told if line.startswith("-")}
        kept |= {line for line in told if not line.startswith("-")} - deleted

        found = {mask.entry["uid"] for mask in LabelStore(folder).labels.masks.values()}
        # the last change may have been made and not been told
        assert len(kept - found) <= 1, life
        assert len(found - kept) <= 1, life
        missing = kept - found
        assert not missing or int(next(iter(missing)).partition("-")[2]) % 5 == 4
        kept = found
        COCO(str(folder / "annotations" / "instances_train.json"))
    assert len(kept) > 10


def test_hold_folder__what_a_killed_process_left_half_written_is_removed(store, images):
    keep(store, images[1])
    drafts = [store.annotations.with_name(".instances_train.json.4242")]
    drafts += [store.folder / "images" / "train" / name for name in (".a.png.7", "b/.a.png.31337")]
    kept = [store.folder / "images" / "train" / name for name in ("b/a.png", ".mine.png", "c.png.3")]
    for path in [*drafts, *kept[1:]]:
        path.write_bytes(b"half")

    with hold_folder(store.folder):
        assert [path for path in [*drafts, *kept] if path.exists()] == kept
        assert len(LabelStore(store.folder).labels.masks) == 1
