"""Data sets of other tools that the page goes on with: their ids, their other entries and their files stay."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vpexp.config.schema import DataConfig
from vpexp.data.dataset import load_dataset
from vpexp.data.image_source import find_images
from vpexp.data.masks import encode_mask
from vpexp.demo.folder import find_layout
from vpexp.demo.store import LabelStore
from vpexp.errors import ConfigError

ENTRY = {"category_id": 4, "iscrowd": 0, "area": 400.0, "bbox": [2, 2, 20, 20], "attributes": {"occluded": False}}
SQUARE = [[2, 2, 22, 2, 22, 22, 2, 22]]
CVAT, LABEL_STUDIO, X_ANYLABELING = "cvat", "label_studio", "x_anylabeling"
LAYOUTS = {
    CVAT: ("annotations/instances_default.json", "images/default/{}", "{}"),
    LABEL_STUDIO: ("result.json", "images/{}", "images/{}"),
    X_ANYLABELING: ("annotations/coco.json", "images/{}", "{}"),
}


def write(folder: Path, tool: str, names: tuple[str, ...]) -> Path:
    file, place, file_name = LAYOUTS[tool]
    images = []
    for number, name in enumerate(names):
        path = folder / place.format(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (40, 60, 3), np.uint8)).save(path)
        images.append({"id": 7 + number, "file_name": file_name.format(name), "width": 60, "height": 40, "license": 0})
    content = {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "categories": [{"id": 4, "name": "cell", "supercategory": ""}],
        "images": images,
        "annotations": [
            {"id": 30 + one["id"], "image_id": one["id"], "segmentation": SQUARE, **ENTRY} for one in images
        ],
    }
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(json.dumps(content))
    return folder / file


@pytest.mark.parametrize("tool", LAYOUTS)
def test_other_tool__is_gone_on_with_in_its_own_file(tool, tmp_path):
    file = write(tmp_path / "set", tool, ("a.png", "b.png"))
    before = json.loads(file.read_text())
    shutil.copytree(file.parents[len(Path(LAYOUTS[tool][0]).parts) - 1] / "images", tmp_path / "photos")
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "photos" / "c.png")
    images = find_images(str(tmp_path / "photos"))
    store = LabelStore(tmp_path / "set", images)
    store.check_images(images)
    known = {image.path.name: image for image in images}
    assert store.annotations == file
    ((mask, rle),) = store.list_rles(known["a.png"].name, 40, 60)
    assert (mask.entry["id"], rle is None) == (37, False)

    mask_HW = np.zeros((40, 60), bool)
    mask_HW[24:30, 30:40] = True
    for name in ("b.png", "c.png"):
        store.keep(known[name], "nucleus", encode_mask(mask_HW), score=0.5, prompt={}, uid=name)

    after = json.loads(file.read_text())
    assert after["licenses"] == before["licenses"]
    assert after["categories"] == [*before["categories"], {"id": 5, "name": "nucleus"}]
    assert after["images"][:2] == before["images"]
    assert after["annotations"][:2] == before["annotations"]
    assert [(one["id"], one["image_id"]) for one in after["annotations"][2:]] == [(39, 8), (40, 9)]
    assert not (tmp_path / "set" / "annotations" / "instances_train.json").exists()
    dataset = load_dataset(
        DataConfig(format="coco", root=str(tmp_path / "set"), train_split=dataset_split(file)), splits=("train",)
    )
    assert sum(len(image.masks) for image in dataset.splits["train"].images) == 4


def dataset_split(file: Path) -> str:
    return file.stem.removeprefix("instances_")


def test_file_names_that_lead_elsewhere__write_nothing_there(tmp_path):
    file = write(tmp_path / "set", CVAT, ("a.png",))
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = "../../../../a.png"
    file.write_text(json.dumps(content))
    shutil.copytree(tmp_path / "set" / "images" / "default", tmp_path / "photos")
    (image,) = find_images(str(tmp_path / "photos"))
    store = LabelStore(tmp_path / "set", [image])

    store.set_done(image, 40, 60, done=True)

    assert store.locate("a.png") == tmp_path / "set" / "images" / "default" / "a.png"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "set"]
    assert not list(tmp_path.parent.glob("a.png"))


def test_several_files__are_one_line(tmp_path):
    file = write(tmp_path / "set", CVAT, ("a.png",))
    shutil.copy(file, file.with_name("instances_other.json"))

    with pytest.raises(ConfigError, match=r"several COCO files \(instances_default.json, instances_other.json\)"):
        find_layout(tmp_path / "set")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.json").write_text("[1]")
    assert find_layout(tmp_path / "empty").annotations == tmp_path / "empty" / "annotations" / "instances_train.json"
