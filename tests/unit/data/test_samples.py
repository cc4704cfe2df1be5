"""Samples: targets lie where the resized image shows the object, and draws depend on seed, epoch and image alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vpexp.data.geometry import compute_resized_size, resize_image
from vpexp.data.masks import compute_box, encode_mask
from vpexp.data.prompts import PromptRecipe
from vpexp.data.samples import (
    Batch,
    EvaluationSample,
    EvaluationSet,
    TrainingSample,
    TrainingSet,
    UnreadableImage,
    collate_evaluation,
    collate_training,
    rasterize_target,
)
from vpexp.data.types import AnnotatedImage

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
    recipe = options.pop("recipe", PromptRecipe())
    return TrainingSet(images, **{"image_size": SIZE, "recipe": recipe, "stride": 1, "seed": 0, **options})


def compute_iou(one, other):
    return (one & other).sum() / max(1, (one | other).sum())


def average_cells(values_HW, cells_h, cells_w):
    """Mean over each cell of a grid laid over the image, exactly; by integrating the image."""
    height, width = values_HW.shape
    integral = np.zeros((height + 1, width + 1))
    integral[1:, 1:] = values_HW.cumsum(0).cumsum(1)

    def at(rows, columns):
        across = np.stack([np.interp(columns, np.arange(width + 1), line) for line in integral])
        return np.stack([np.interp(rows, np.arange(height + 1), line) for line in across.T]).T

    grid = at(np.linspace(0, height, cells_h + 1), np.linspace(0, width, cells_w + 1))
    sums = grid[1:, 1:] - grid[:-1, 1:] - grid[1:, :-1] + grid[:-1, :-1]
    return sums * cells_h * cells_w / (height * width)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 40), (17, 64)])
def test_rasterize_target__without_resizing_is_the_mask(height, width):
    mask_HW = np.random.default_rng(0).random((height, width)) > 0.5
    target = rasterize_target(encode_mask(mask_HW), (height, width), SIZE, 1)
    assert target.shape == (SIZE, SIZE)
    assert target.dtype == np.uint8
    np.testing.assert_array_equal(target[:height, :width], mask_HW)
    assert not target[height:].any()
    assert not target[:, width:].any()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([1, 4]), st.integers(0, 1000))
def test_rasterize_target__a_pixel_is_in_where_most_of_it_is(height, width, stride, seed):
    rng = np.random.default_rng(seed)
    mask_HW = np.zeros((height, width), dtype=bool)
    for _ in range(3):
        top, left = rng.integers(height), rng.integers(width)
        mask_HW[top : top + rng.integers(1, height + 1), left : left + rng.integers(1, width + 1)] ^= True
    resized_h, resized_w = compute_resized_size(height, width, SIZE)
    target = rasterize_target(encode_mask(mask_HW), (resized_h, resized_w), SIZE, stride)
    assert target.shape == (SIZE // stride, SIZE // stride)
    # Independently: the share of each pixel of the square that the mask covers, then of each cell of stride pixels.
    square = np.zeros((SIZE, SIZE))
    square[:resized_h, :resized_w] = average_cells(mask_HW.astype(float), resized_h, resized_w)
    cells = SIZE // stride
    share = square.reshape(cells, stride, cells, stride).mean(axis=(1, 3))
    clear = np.abs(share - 0.5) > 0.3  # the filter looks beyond the pixel's edges
    if target.sum() == 1:  # the only pixel of an object smaller than that, which has a test of its own
        clear &= target == 0
    np.testing.assert_array_equal(target[clear].astype(bool), (share > 0.5)[clear])
    covered_h, covered_w = -(-resized_h // stride), -(-resized_w // stride)
    assert not target[covered_h:].any()
    assert not target[:, covered_w:].any()


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize(("height", "width"), [(480, 640), (333, 100), (40, 50), (900, 150)])
def test_rasterize_target__lines_up_with_the_resized_image(height, width, stride):
    """A picture of the mask goes the image's way (bilinear), its target the mask's: both must show the same place."""
    rows, columns = np.mgrid[:height, :width]
    mask_HW = ((rows / height - 0.4) / 0.35) ** 2 + ((columns / width - 0.55) / 0.4) ** 2 < 1
    image_HW3 = np.repeat(mask_HW[:, :, None].astype(np.uint8) * 255, 3, axis=2)
    resized_hw3 = resize_image(image_HW3, SIZE)
    square = np.zeros((SIZE, SIZE))
    square[: resized_hw3.shape[0], : resized_hw3.shape[1]] = resized_hw3[:, :, 0] / 255
    cells = SIZE // stride
    seen = square.reshape(cells, stride, cells, stride).mean(axis=(1, 3)) >= 0.5
    target = rasterize_target(encode_mask(mask_HW), resized_hw3.shape[:2], SIZE, stride).astype(bool)
    assert compute_iou(seen, target) > (0.93 if min(height, width) >= 100 else 0.75)
    centre_seen, centre_target = (np.argwhere(m).mean(axis=0) for m in (seen, target))
    assert np.abs(centre_seen - centre_target).max() < 0.25


def test_rasterize_target__objects_neither_grow_nor_shrink():
    rng = np.random.default_rng(0)
    area, exact_area = 0.0, 0.0
    for _ in range(60):
        height, width = rng.integers(64, 200, 2)
        rows, columns = np.mgrid[:height, :width]
        middle, radius = rng.uniform(0.3, 0.7, 2), rng.uniform(0.1, 0.3, 2)
        mask_HW = ((rows / height - middle[0]) / radius[0]) ** 2 + ((columns / width - middle[1]) / radius[1]) ** 2 < 1
        resized_h, resized_w = compute_resized_size(height, width, SIZE)
        area += rasterize_target(encode_mask(mask_HW), (resized_h, resized_w), SIZE, 1).sum()
        exact_area += mask_HW.mean() * resized_h * resized_w
    assert area == pytest.approx(exact_area, rel=3e-3)


def test_rasterize_target__object_smaller_than_a_pixel_is_one_pixel():
    mask_HW = np.zeros((1000, 1000), dtype=bool)
    mask_HW[505, 303] = True
    target = rasterize_target(encode_mask(mask_HW), (50, 50), 64, 1)
    assert target.sum() >= 1
    rows, columns = np.nonzero(target)
    assert abs(rows.mean() - 505 / 20) <= 1
    assert abs(columns.mean() - 303 / 20) <= 1


def test_rasterize_target__mask_up_to_the_border_stops_there():
    target = rasterize_target(encode_mask(np.ones((30, 60), dtype=bool)), (32, 64), SIZE, 4)
    assert target[:8].all()
    assert not target[8:].any()
    ragged = rasterize_target(encode_mask(np.ones((27, 64), dtype=bool)), (27, 64), SIZE, 4)
    assert ragged[:7].all()  # the last row is covered by three of its four pixels
    assert not ragged[7:].any()
    thin = rasterize_target(encode_mask(np.ones((25, 64), dtype=bool)), (25, 64), SIZE, 4)
    assert not thin[6:].any()  # and here by one of four


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (200, 150), (64, 64)])
def test_training_set__image_prompts_and_targets_agree(tmp_path, height, width):
    sample = build_set([save_scene(tmp_path / "a.png", height, width)])[0, 0]
    assert isinstance(sample, TrainingSample)
    resized_h, resized_w = sample.resized_hw
    assert sample.image_3SS.shape == (3, SIZE, SIZE)
    assert not sample.image_3SS[:, resized_h:].any()
    assert not sample.image_3SS[:, :, resized_w:].any()
    bright = sample.image_3SS[0].numpy() > 0  # mid grey is normalised to about 0
    targets_NRR = sample.targets_NRR.numpy().astype(bool)
    assert compute_iou(bright, targets_NRR.any(axis=0)) > 0.9
    for box_22, target_RR in zip(sample.coords_NP2.numpy(), targets_NRR, strict=True):
        rows, columns = np.nonzero(target_RR)
        bounds = [[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]]
        assert np.abs(box_22 - bounds).max() <= 0.6


def test_training_set__stride_4_targets_are_a_quarter_of_the_size(scene):
    sample = build_set([scene], stride=4)[0, 0]
    assert sample.targets_NRR.shape == (3, SIZE // 4, SIZE // 4)
    assert sample.coords_NP2.max() > SIZE // 4  # prompts stay in the frame of the model's input


def test_training_set__is_drawn_from_seed_epoch_and_image_alone(tmp_path):
    images = [save_scene(tmp_path / "a.png"), save_scene(tmp_path / "b.png")]
    recipe = PromptRecipe(type="both", jitter=0.4, max_per_image=2)

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
    dataset = build_set([scene], recipe=PromptRecipe(max_per_image=2))
    seen = set()
    for epoch in range(30):
        sample = dataset[epoch, 0]
        assert len(sample.labels_NP) == len(sample.targets_NRR) == len(sample.coords_NP2) == 2
        chosen = [tuple(box) for box in sample.coords_NP2.reshape(-1, 4).tolist()]
        assert len(set(chosen)) == 2
        seen.update(chosen)
    assert len(seen) == 3
    assert len(build_set([scene], recipe=PromptRecipe(max_per_image=5))[0, 0].labels_NP) == 3


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_sets__damaged_image_is_named_not_fatal(scene, damage):
    if damage == "missing":
        scene.path.unlink()
    else:
        scene.path.write_bytes(scene.path.read_bytes()[:60])
    for item in (build_set([scene])[0, 0], EvaluationSet([scene], PromptRecipe())[0]):
        assert isinstance(item, UnreadableImage)
        assert item.image_id == "a.png"
        assert str(scene.path) in item.reason


def test_evaluation_set__gives_the_image_as_it_is(scene):
    dataset = EvaluationSet([scene], PromptRecipe(type="point"))
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
    torch.testing.assert_close(batch.targets_NRR[3:], dataset[0, 2].targets_NRR)
    torch.testing.assert_close(batch.coords_NP2[2:3], dataset[0, 1].coords_NP2)
    for prompt, image in enumerate(batch.image_index_N.tolist()):
        assert (batch.images_B3SS[image, 0][batch.targets_NRR[prompt] > 0] > 0).float().mean() > 0.9
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
