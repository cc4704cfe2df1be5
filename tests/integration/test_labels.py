"""Prompts in, labels out: masks of ``stage=predict`` become data sets that vpexp trains on."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from tests.conftest import RunDebug
from vpexp.config.schema import DataConfig
from vpexp.data.annotations import AnnotatedDataset
from vpexp.data.dataset import load_dataset
from vpexp.data.masks import decode_rle
from vpexp.errors import ConfigError, DataError
from vpexp.stages.shared.context import StageResult

MODEL = ("experiment=debug", "stage=predict", "checkpoint=null")


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO data set whose first train image has masks, the others boxes alone."""
    root = tmp_path_factory.mktemp("my boxes")
    rng = np.random.default_rng(3)
    number = 0
    for split, count in (("train", 3), ("val", 1)):
        (root / "images" / split).mkdir(parents=True)
        images, annotations = [], []
        for place in range(count):
            name = f"{split}_{place}.jpg"
            Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(root / "images" / split / name)
            images.append({"id": place, "file_name": name, "width": 64, "height": 48})
            for left in (4, 36):
                number += 1
                square = [[left, 6, left + 20, 6, left + 20, 40, left, 40]]
                annotations.append({"id": number, "image_id": place, "category_id": 1 + (left > 4), "iscrowd": 0,
                                    "bbox": [left, 6, 20, 34], "area": 680,
                                    "segmentation": square if (split, place) == ("train", 0) else []})  # fmt: skip
        categories = [{"id": 1, "name": "cell"}, {"id": 2, "name": "dust"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def read_masks(dataset: AnnotatedDataset) -> dict[str, list[np.ndarray]]:
    images = [image for name in ("train", "val") for image in dataset.splits[name].images]
    return {image.path.stem: [decode_rle(mask) for mask in image.masks] for image in images}


def read_results(result: StageResult) -> dict[str, list[np.ndarray]]:
    """Read what was predicted, by image, with pycocotools alone."""
    coco = COCO(result.artifacts["images"]).loadRes(str(result.artifacts["predictions"]))
    names = {entry["id"]: Path(entry["file_name"]).stem for entry in coco.loadImgs(coco.getImgIds())}
    found: dict[str, list[np.ndarray]] = {}
    for one in coco.loadAnns(coco.getAnnIds()):
        found.setdefault(names[one["image_id"]], []).append(coco.annToMask(one).astype(bool))
    return found


def read_record(result: StageResult) -> dict:
    assert result.folder is not None
    return json.loads((result.folder / "run.json").read_text())["predict"]


@pytest.mark.parametrize("format_", ["coco", "voc", "datumaro", "common_semantic_segmentation"])
def test_predict__boxes_of_a_data_set_become_masks(
    boxes: Path, tmp_path: Path, run_debug: RunDebug, format_: str
) -> None:
    out = tmp_path / "labels"
    result = run_debug(
        *(tmp_path, *MODEL, "data=coco", f"data.root='{boxes}'", "prompts=dataset"),
        *(f"output.format={format_}", f"output.folder='{out}'"),
    )

    assert result.metrics["predict/images"] == 3
    assert result.metrics["predict/prompts"] == 6
    predicted = read_results(result)
    assert set(predicted) == {"train_1", "train_2", "val_0"}
    dataset = load_dataset(DataConfig(format="auto", root=out, instances="classes"))
    assert (dataset.format, dataset.categories) == (format_, ("cell", "dust"))
    masks = read_masks(dataset)
    (left, right) = masks.pop("train_0")
    assert left[6:40, 4:24].all()
    assert right[6:40, 36:56].all()
    assert left.sum() == right.sum() == 680, "what was annotated stays as it was"
    record = read_record(result)
    assert record["annotated"] == 1
    assert record["dataset"]["objects"] == record["dataset"]["predicted"] + 2
    for name, own in masks.items():
        if format_ in ("coco", "datumaro"):
            np.testing.assert_array_equal(own, predicted[name])
        else:  # a pixel has one mask
            np.testing.assert_array_equal(np.any(own, 0), np.any(predicted[name], 0))
            assert np.sum(own, 0).max() == 1


def test_predict__all_anew_by_the_boxes_of_masks(boxes: Path, tmp_path: Path, run_debug: RunDebug) -> None:
    result = run_debug(
        *(tmp_path, *MODEL, "data=coco", f"data.root='{boxes}'", "prompts=dataset", "predict.keep_annotated=false"),
        *("output.format=coco", "output.masks=rle", "output.images=symlink"),
    )

    assert result.metrics["predict/images"] == 4
    record = read_record(result)
    assert record["dataset"]["predicted"] == record["dataset"]["objects"] == 8
    assert result.folder is not None
    assert (result.folder / "dataset/images/train/train_0.jpg").is_symlink()
    content = json.loads((result.folder / "dataset/annotations/instances_train.json").read_text())
    assert all(isinstance(one["segmentation"], dict) and 0 <= one["score"] <= 1.5 for one in content["annotations"])


def test_predict__photos_with_a_prompt_file_become_a_data_set_that_trains(
    boxes: Path, tmp_path: Path, run_debug: RunDebug
) -> None:
    prompts = tmp_path / "prompts.json"
    photos = {f"train_{place}.jpg": {"boxes": [[4, 6, 30, 40]], "labels": ["weed"]} for place in range(3)}
    prompts.write_text(json.dumps(photos))
    labels = tmp_path / "labels"
    run_debug(
        *(tmp_path, *MODEL, f"source='{boxes / 'images' / 'train'}'", f"prompts='{prompts}'"),
        *("output.format=coco", f"output.folder='{labels}'"),
    )

    trained = run_debug(
        *(tmp_path, "experiment=debug", "stage=train", "data=auto", f"data.root='{labels}'", "stage.test=false"),
        *("callbacks.progress=null", "trainer.max_epochs=1"),
    )

    assert trained.artifacts["best_checkpoint"].is_file()
    assert trained.folder is not None
    record = json.loads((trained.folder / "run.json").read_text())
    assert record["data"]["categories"] == ["weed"]
    assert record["splits"]["train"]["images"] + record["splits"]["val"]["images"] == 3


def test_predict__refuses_to_write_over_something(boxes: Path, tmp_path: Path, run_debug: RunDebug) -> None:
    with pytest.raises(ConfigError, match=r"output\.folder=.* is not empty: name a new folder"):
        run_debug(
            *(tmp_path, *MODEL, "data=coco", f"data.root='{boxes}'", "prompts=dataset"),
            *("output.format=coco", f"output.folder='{boxes}'"),
        )
    assert not (boxes / "dataset").exists()


def test_predict__a_data_set_without_boxes_alone_has_nothing_to_predict(tmp_path: Path, run_debug: RunDebug) -> None:
    with pytest.raises(DataError, match=r"all objects have masks, .*predict\.keep_annotated=false"):
        run_debug(tmp_path, *MODEL, "prompts=dataset")
