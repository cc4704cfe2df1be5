"""Samples: targets lie where the resized image shows the object, and draws depend on seed, epoch and image alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vpexp.config.schema import PromptConfig
from vpexp.data.annotations import AnnotatedImage
from vpexp.data.batch import (
    Batch,
    EvaluationSample,
    EvaluationSet,
    TrainingSample,
    TrainingSet,
    UnreadableImage,
    collate_evaluation,
    collate_training,
)
from vpexp.data.masks import compute_box, encode_mask

SIZE = 64


def annotate(path, masks):
    rles = tuple(encode_mask(mask_HW) for mask_HW in masks)
    return AnnotatedImage(
        image_id=Path(path).name,
        path=Path(path),
        height=masks[0].shape[0],
        width=masks[0].shape[1],
        masks=rles,
        boxes_N4=np.array([compute_box(rle) for rle in rles], dtype=np.float32),
        labels_N=np.zeros(len(rles), dtype=np.int64),
        object_ids=tuple(str(i) for i in range(len(rles))),
    )


def rectangle(shape, top, left, bottom, right):
    mask_HW = np.zeros(shape, dtype=bool)
    mask_HW[top:bottom, left:right] = True
    return mask_HW


def save_scene(path, height=40, width=60, count=3):
    """White rectangles on black: the picture is the union of its masks."""
    masks = [rectangle((height, width), 3 + 11 * i, 5 + 15 * i, 12 + 11 * i, 19 + 15 * i) for i in range(count)]
    picture_HW = np.any(masks, axis=0).astype(np.uint8) * 255
    Image.fromarray(np.repeat(picture_HW[:, :, None], 3, axis=2)).save(path)
    return annotate(path, masks)


@pytest.fixture
def scene(tmp_path):
    return save_scene(tmp_path / "a.png")


def build_set(images, **options):
    recipe = options.pop("recipe", PromptConfig())
    return TrainingSet(images, **{"image_size": SIZE, "recipe": recipe, "resolution": "input", "seed": 0, **options})


def compute_iou(one, other):
    return (one & other).sum() / max(1, (one | other).sum())


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (200, 150), (64, 64)])
def test_training_set__image_prompts_and_targets_agree(tmp_path, height, width):
    sample = build_set([save_scene(tmp_path / "a.png", height, width)])[0, 0]
    assert isinstance(sample, TrainingSample)
    resized_h, resized_w = sample.resized_hw
    assert sample.image_3SS.shape == (3, SIZE, SIZE)
    assert not sample.image_3SS[:, resized_h:].any()
    assert not sample.image_3SS[:, :, resized_w:].any()
    targets_NRR = sample.targets.unpack().numpy().astype(bool)
    resized_h, resized_w = targets_NRR.shape[1:]
    bright = sample.image_3SS[0, :resized_h, :resized_w].numpy() > 0  # mid grey is normalised to about 0
    assert compute_iou(bright, targets_NRR.any(axis=0)) > 0.9
    for box_22, target_RR in zip(sample.coords_NP2.numpy(), targets_NRR, strict=True):
        rows, columns = np.nonzero(target_RR)
        bounds = [[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]]
        assert np.abs(box_22 - bounds).max() <= 0.6


def test_training_set__stride_4_targets_are_a_quarter_of_the_size(scene):
    sample = build_set([scene], resolution="low")[0, 0]
    assert sample.targets.unpack().shape == (3, 11, 16)  # of 43 x 64 pixels
    assert sample.coords_NP2.max() > SIZE // 4  # prompts stay in the frame of the model's input


def test_training_set__is_drawn_from_seed_epoch_and_image_alone(tmp_path):
    images = [save_scene(tmp_path / "a.png"), save_scene(tmp_path / "b.png")]
    recipe = PromptConfig(type="both", jitter=0.4, max_per_image=2)

    def draw(seed, epoch, index):
        sample = build_set(images, recipe=recipe, seed=seed)[epoch, index]
        return np.concatenate([sample.coords_NP2.numpy().ravel(), sample.labels_NP.numpy().ravel()])

    other_reads_first = build_set(images, recipe=recipe)
    for key in ((0, 0), (5, 1), (3, 0)):
        other_reads_first[key]
    again = other_reads_first[3, 1]
    np.testing.assert_array_equal(draw(0, 3, 1)[:8], again.coords_NP2.numpy().ravel())
    np.testing.assert_array_equal(draw(0, 3, 1), draw(0, 3, 1))
    for different in (draw(0, 4, 1), draw(1, 3, 1), draw(0, 3, 0)):
        assert not np.array_equal(draw(0, 3, 1), different)


def test_training_set__takes_at_most_so_many_objects_and_all_of_them_in_time(scene):
    dataset = build_set([scene], recipe=PromptConfig(max_per_image=2))
    seen = set()
    for epoch in range(30):
        sample = dataset[epoch, 0]
        assert len(sample.labels_NP) == len(sample.targets) == len(sample.coords_NP2) == 2
        chosen = [tuple(box) for box in sample.coords_NP2.reshape(-1, 4).tolist()]
        assert len(set(chosen)) == 2
        seen.update(chosen)
    assert len(seen) == 3
    assert len(build_set([scene], recipe=PromptConfig(max_per_image=5))[0, 0].labels_NP) == 3


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_sets__damaged_image_is_named_not_fatal(scene, damage):
    if damage == "missing":
        scene.path.unlink()
    else:
        scene.path.write_bytes(scene.path.read_bytes()[:60])
    for item in (build_set([scene])[0, 0], EvaluationSet([scene], PromptConfig())[0]):
        assert isinstance(item, UnreadableImage)
        assert item.image_id == "a.png"
        assert str(scene.path) in item.reason


def test_evaluation_set__gives_the_image_as_it_is(scene):
    dataset = EvaluationSet([scene], PromptConfig(type="point"))
    (sample,) = (dataset[i] for i in range(len(dataset)))
    assert isinstance(sample, EvaluationSample)
    assert sample.image_HW3.shape == (40, 60, 3)
    assert sample.annotations is scene
    for column, row in sample.prompts.coords_NP2[:, 0].astype(int):
        assert sample.image_HW3[row, column, 0] == 255


def test_collate_training__one_flat_prompt_axis(tmp_path):
    images = [
        save_scene(tmp_path / "a.png", 40, 60, count=2),
        save_scene(tmp_path / "b.png", 60, 40, count=1),
        save_scene(tmp_path / "c.png", 40, 60, count=3),
    ]
    dataset = build_set(images)
    batch = collate_training([dataset[0, 0], UnreadableImage("x", "damaged"), dataset[0, 1], dataset[0, 2]])
    assert isinstance(batch, Batch)
    assert batch.image_index_N.tolist() == [0, 0, 1, 2, 2, 2]
    assert batch.image_index_N.dtype == torch.int64
    assert batch.image_ids == ["a.png", "b.png", "c.png"]
    assert batch.resized_B2.tolist() == [[43, 64], [64, 43], [43, 64]]
    assert batch.unreadable == [UnreadableImage("x", "damaged")]
    assert batch.images_B3SS.shape == (3, 3, SIZE, SIZE)
    assert [len(targets) for targets in batch.targets] == [2, 1, 3]
    torch.testing.assert_close(batch.targets[2].bits_NX, dataset[0, 2].targets.bits_NX)
    torch.testing.assert_close(batch.coords_NP2[2:3], dataset[0, 1].coords_NP2)
    for image, targets in enumerate(batch.targets):
        for target_RC in targets.unpack():
            pixels_RC = batch.images_B3SS[image, 0, : target_RC.shape[0], : target_RC.shape[1]]
            assert (pixels_RC[target_RC > 0] > 0).float().mean() > 0.9
    moved = batch.to(torch.device("cpu"))
    assert torch.equal(moved.coords_NP2, batch.coords_NP2)
    assert moved.image_ids == batch.image_ids


def test_collate_training__nothing_readable():
    damaged = [UnreadableImage("x", "damaged"), UnreadableImage("y", "missing")]
    assert collate_training(damaged) == damaged


def test_collate_evaluation__image_by_image():
    item = UnreadableImage("x", "damaged")
    assert collate_evaluation([item]) is item
    with pytest.raises(ValueError):
        collate_evaluation([item, item])
