from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.training.conftest import draw_image
from vpexp.data.masks import encode_mask
from vpexp.inference.mask_crops import MaskCrops, crop_masks
from vpexp.training.mask_classifier import (
    LabelledCrops,
    choose_masks,
    collect_crops,
    fit_discriminant,
    measure_accuracy,
    train_classifier,
)

COLORS = ((200, 60, 60), (60, 180, 60), (60, 60, 200), (200, 200, 60))
ROWS, COLUMNS = np.mgrid[:48, :48]


def draw(label, rng, by_shape):
    """Draw one object: of its class's colour, or a disc, ring or bar of any colour."""
    middle_y, middle_x = rng.uniform(18, 30, 2)
    radius, turn = rng.uniform(9, 15), rng.uniform(0, np.pi)
    distance_HW = np.hypot(ROWS - middle_y, COLUMNS - middle_x)
    mask_HW = distance_HW < radius
    if by_shape and label == 1:
        mask_HW &= distance_HW > 0.55 * radius
    if by_shape and label == 2:
        across_HW = (ROWS - middle_y) * np.cos(turn) - (COLUMNS - middle_x) * np.sin(turn)
        mask_HW &= np.abs(across_HW) < 0.4 * radius
    image_HW3 = rng.integers(0, 255, (48, 48, 3))
    color = rng.integers(0, 255, 3) if by_shape else np.array(COLORS[label]) * rng.uniform(0.6, 1.2)
    image_HW3[mask_HW] = color + rng.normal(0, 10, (mask_HW.sum(), 3))
    return crop_masks(image_HW3.clip(0, 255).astype(np.uint8), [encode_mask(mask_HW)])


def draw_labelled(labels, seed=0, by_shape=False):
    rng = np.random.default_rng(seed)
    found = [draw(label, rng, by_shape) for label in labels]
    none = crop_masks(np.zeros((1, 1, 3), np.uint8), [])
    crops = MaskCrops(
        np.concatenate([none.crops_K4PP, *(one.crops_K4PP for one in found)]),
        np.concatenate([none.extents_K2, *(one.extents_K2 for one in found)]),
    )
    return LabelledCrops(crops, np.array(labels, np.int64), np.arange(len(labels)))


def test_train_classifier__names_colors_and_never_a_class_without_examples():
    train, val = draw_labelled([0, 1, 2] * 6 + [3]), draw_labelled([0, 1, 2] * 10, seed=1)
    classifier, _, accuracies = train_classifier(train, val, 5, steps=4, seed=0)
    assert set(accuracies) == {"discriminant", "regression", "learnt", "both"}
    assert accuracies["discriminant"] > 0.95
    assert accuracies["regression"] > 0.95
    assert measure_accuracy(classifier, val) == max(accuracies.values())
    assert not classifier.training
    crops_K4PP, extents_K2, _ = draw_labelled([0, 1, 2] * 4, seed=2, by_shape=True).to_tensors()
    assert 4 not in classifier(crops_K4PP, extents_K2).argmax(dim=1)


def test_train_classifier__names_shapes_whatever_their_color():
    train, val = (draw_labelled([0, 1, 2] * count, seed, by_shape=True) for seed, count in ((0, 20), (1, 15)))
    classifier, _, accuracies = train_classifier(train, val, 3, steps=4, seed=0)
    assert measure_accuracy(classifier, val) > 0.9
    assert max(accuracies["discriminant"], accuracies["regression"]) > 0.9


@pytest.mark.slow
def test_train_classifier__learnt_features_name_shapes_too():
    train, val = (draw_labelled([0, 1, 2] * count, seed, by_shape=True) for seed, count in ((0, 60), (1, 30)))
    _, _, accuracies = train_classifier(train, val, 3, steps=150, seed=0)
    assert accuracies["learnt"] > 0.9
    assert accuracies["both"] > 0.9


@pytest.mark.parametrize("val_labels", [[], [0, 1], [1] * 30])
def test_train_classifier__reads_both_where_val_cannot_choose(val_labels):
    train, val = draw_labelled([0, 0, 1]), draw_labelled(val_labels, seed=1)
    classifier, _, accuracies = train_classifier(train, val, 2, steps=2, seed=0)
    assert classifier.settings["width"] > 0
    assert classifier.settings["statistics"]
    assert np.isnan(accuracies["learnt"]) == (not val_labels)


def test_train_classifier__is_the_same_of_the_same_seed():
    train, val = draw_labelled([0, 1, 2] * 4), draw_labelled([0, 1])
    first, second = (train_classifier(train, val, 3, steps=3, seed=5)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_fit_discriminant__disregards_what_varies_within_classes():
    rng = np.random.default_rng(0)
    labels_K = torch.from_numpy(np.arange(60) % 2)
    light_K, own_K = torch.from_numpy(rng.normal(0, 1, 60)), labels_K - 0.5
    statistics_KF = torch.stack([light_K + own_K, light_K], dim=1)
    weights_CF, bias_C = fit_discriminant(statistics_KF, labels_K, 2)
    assert ((statistics_KF @ weights_CF.T + bias_C).argmax(dim=1) == labels_K).all()


def test_collect_crops__goes_on_without_an_image_that_is_gone_and_without_images(tmp_path):
    images = [draw_image(tmp_path / f"{seed}.png", seed=seed) for seed in range(3)]
    whole = collect_crops(images, 100, 0, list)
    assert len(whole) == 9
    assert whole.labels_K.tolist() == [0, 1, 0] * 3
    assert whole.images_K.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    Path(images[1].path).write_bytes(b"broken")
    assert len(collect_crops(images, 100, 0, list)) == 6
    assert len(collect_crops([], 100, 0, list)) == 0


def test_choose_masks__takes_the_rarest_class_first():
    labels = [np.array([0, 0, 0, 1]), np.array([0] * 6 + [2])]
    chosen = choose_masks(labels, 5, 0)
    taken = np.concatenate([own[places] for own, places in zip(labels, chosen, strict=True)])
    assert sorted(taken.tolist()) == [0, 0, 0, 1, 2]
    assert [places.tolist() for places in choose_masks(labels, 100, 0)] == [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6]]
