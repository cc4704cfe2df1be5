"""Instances found without prompts: AP against pycocotools, mSA and F1 against scipy's matching, the confusion by hand."""

import contextlib
import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.optimize import linear_sum_assignment

from vpexp.data.masks import encode_mask
from vpexp.evaluation.instances import LIMIT, InstanceEvaluator, find_best_threshold

CATEGORIES = ("berry", "leaf", "stem", "unused")
SIDE = 200
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]
COCO_NAMES = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
RECALL_NAMES = (f"mar_{LIMIT}", "mar_small", "mar_medium", "mar_large")


def draw_ellipse(y, x, h, w):
    return ((ROWS - y) / h) ** 2 + ((COLUMNS - x) / w) ** 2 <= 1


def draw_image(rng, objects, extra):
    """Overlapping ellipses of all sizes and classes: some found well, some badly, some twice, some under a wrong name, some not."""
    annotated, truths, predicted, labels = [], [], [], []
    for _ in range(objects):
        y, x = rng.integers(0, SIDE, 2)
        h, w = np.exp(rng.uniform(np.log(3), np.log(80), 2))
        annotated.append(encode_mask(draw_ellipse(y, x, h, w)))
        truths.append(rng.integers(0, 3))
        for _ in range(rng.choice([0, 1, 1, 1, 2])):
            miss = rng.choice([0.0, 0.05, 0.2])
            moved = rng.normal(0, miss, 2) * (h, w)
            predicted.append(encode_mask(draw_ellipse(y + moved[0], x + moved[1], h, w * np.exp(rng.normal(0, miss)))))
            labels.append(truths[-1] if rng.random() < 0.8 else rng.integers(0, len(CATEGORIES)))
    for _ in range(extra):
        predicted.append(encode_mask(draw_ellipse(*rng.uniform(0, SIDE, 2), *rng.uniform(3, 40, 2))))
        labels.append(rng.integers(0, len(CATEGORIES)))
    order = rng.permutation(len(predicted))
    scores = np.round(rng.random(len(predicted)), 2).astype(np.float32)  # some tie
    predicted = [predicted[place] for place in order]
    return predicted, scores, np.array(labels, np.int64)[order], annotated, np.array(truths, np.int64)


def draw_images(seed):
    rng = np.random.default_rng(seed)
    images = [draw_image(rng, int(rng.integers(2, 12)), int(rng.integers(0, 4))) for _ in range(6)]
    return [*images, draw_image(rng, 0, 3), draw_image(rng, 0, 0), take(draw_image(rng, 5, 0), [])]


def take(image, places):
    """Take some predictions of an image."""
    predicted, scores, labels, annotated, truths = image
    return [predicted[place] for place in places], scores[places], labels[places], annotated, truths


def evaluate(images, categories=CATEGORIES, threshold=None):
    evaluator = InstanceEvaluator(categories)
    for image in images:
        evaluator.update(*image)
    return evaluator.compute(threshold)


def evaluate_with_pycocotools(images, categories):
    """AP and AR by their names, at most ``LIMIT`` predictions an image and class."""
    annotations, predictions = [], []
    for image_id, (predicted, scores, labels, annotated, truths) in enumerate(images, start=1):
        annotations += [
            {
                "id": len(annotations) + place,
                "image_id": image_id,
                "category_id": int(label),
                "segmentation": mask,
                "area": float(coco_mask.area(mask)),
                "bbox": coco_mask.toBbox(mask).tolist(),
                "iscrowd": 0,
            }
            for place, (mask, label) in enumerate(zip(annotated, truths, strict=True), start=1)
        ]
        predictions += [
            {"image_id": image_id, "category_id": int(label), "segmentation": mask, "score": float(score)}
            for mask, score, label in zip(predicted, scores, labels, strict=True)
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": place + 1, "height": SIDE, "width": SIDE} for place in range(len(images))],
            "annotations": annotations,
            "categories": [{"id": label} for label in categories],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(predictions), "segm")
        evaluation.params.catIds = list(categories)
        evaluation.params.maxDets = [LIMIT]
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"][..., 0], evaluation.eval["recall"][..., 0]
    parts = [
        precision[..., 0],
        precision[0, ..., 0],
        precision[5, ..., 0],
        *(precision[..., size] for size in (1, 2, 3)),
    ]
    parts += [recall[..., size] for size in range(4)]
    values = [float(part[part > -1].mean()) if (part > -1).any() else math.nan for part in parts]
    return dict(zip((*COCO_NAMES, *RECALL_NAMES), values, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_compute__average_precision_is_that_of_pycocotools(seed):
    images = draw_images(seed)
    found = evaluate(images)

    expected = evaluate_with_pycocotools(images, [0, 1, 2])
    assert {name: found.metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert 0.2 < found.metrics["map"] < found.metrics["map_50"] < 0.95
    plain = [(p, s, np.zeros_like(n), a, np.zeros_like(t)) for p, s, n, a, t in images]
    expected = evaluate_with_pycocotools(plain, [0])
    assert found.metrics["map_any_class"] == pytest.approx(expected["map"], abs=1e-6)
    assert found.metrics["map_50_any_class"] == pytest.approx(expected["map_50"], abs=1e-6)
    for label in range(3):
        alone = evaluate_with_pycocotools(images, [label])
        assert found.per_class["map_per_class"][CATEGORIES[label]] == pytest.approx(alone["map"], abs=1e-6)
        recall = found.per_class[f"mar_{LIMIT}_per_class"][CATEGORIES[label]]
        assert recall == pytest.approx(alone[f"mar_{LIMIT}"], abs=1e-6)
    assert (found.images, found.objects) == (len(images), sum(len(image[3]) for image in images))


def test_compute__more_than_100_objects_of_an_image_count():
    masks = [encode_mask(draw_ellipse(y, x, 3, 3)) for y in range(4, SIDE, 8) for x in range(4, SIDE, 8)][:300]
    scores, zeros = np.linspace(1, 0.1, 300).astype(np.float32), np.zeros(300, np.int64)

    found = evaluate([(masks, scores, zeros, masks, zeros)], ("cell",))

    assert found.metrics["map"] == found.metrics[f"mar_{LIMIT}"] == found.metrics["msa"] == 1


def draw_labels(rng, count):
    """An image of labels: objects that do not overlap, 0 is none."""
    labels = np.zeros((SIDE, SIDE), int)
    for number in range(1, count + 1):
        labels[draw_ellipse(*rng.uniform(0, SIDE, 2), *rng.uniform(4, 30, 2))] = number
    return labels


def count_with_scipy(truth, found, ious):
    """TP, FP and FN of two images of labels at each IoU threshold; above 0.5 a matching is unique."""
    truths, predictions = (np.delete(np.unique(labels), 0) for labels in (truth, found))
    overlaps = np.array([[np.sum((truth == t) & (found == p)) for p in predictions] for t in truths])
    sizes = [
        [np.sum(labels == number) for number in numbers] for labels, numbers in ((truth, truths), (found, predictions))
    ]
    table = overlaps.reshape(len(truths), len(predictions))
    table = table / np.maximum(np.add.outer(*map(np.array, sizes)).reshape(table.shape) - table, 1)
    counts = []
    for iou in ious:
        hits = table >= iou
        rows, columns = linear_sum_assignment(-hits.astype(float))
        true = int(hits[rows, columns].sum())
        counts.append((true, len(predictions) - true, len(truths) - true))
    return counts


@pytest.mark.parametrize("seed", range(3))
def test_compute__msa_and_f1_are_those_of_scipy(seed):
    rng = np.random.default_rng(seed)
    images, accuracies, totals = [], [], np.zeros(3)
    for objects in (12, 5, 0, 3):
        truth = draw_labels(rng, objects)
        found = np.roll(truth, rng.integers(0, 4, 2), (0, 1)) if objects else draw_labels(rng, 2)
        if objects > 3:
            found[found == truth.max()] = 0
        masks = [[encode_mask(labels == number) for number in np.unique(labels)[1:]] for labels in (truth, found)]
        zeros = [np.zeros(len(part), np.int64) for part in masks]
        images.append((masks[1], rng.uniform(0.3, 1, len(masks[1])).astype(np.float32), zeros[1], masks[0], zeros[0]))
        counts = np.array(count_with_scipy(truth, found, np.linspace(0.5, 0.95, 10)), float)
        accuracies.append(np.mean(counts[:, 0] / counts.sum(axis=1)))
        totals += counts[0]

    metrics = evaluate(images, ("cell",), threshold=0.2).metrics

    true, false, missed = totals
    assert metrics["msa"] == pytest.approx(np.mean(accuracies))
    assert 0.1 < metrics["msa"] < 0.9
    assert metrics["precision"] == pytest.approx(true / (true + false))
    assert metrics["recall"] == pytest.approx(true / (true + missed))
    assert metrics["f1"] == pytest.approx(2 * true / (2 * true + false + missed))


@given(st.integers(0, 10_000))
def test_compute__threshold_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    masks = [encode_mask(draw_ellipse(20 + 40 * place, 50, 9, 9)) for place in range(4)]
    wrong = encode_mask(draw_ellipse(100, 150, 9, 9))
    images = []
    for _ in range(2):
        predicted = [masks[place] if rng.random() < 0.5 else wrong for place in range(4)]
        scores = np.round(rng.random(4), 1).astype(np.float32)
        images.append((predicted, scores, np.zeros(4, np.int64), masks, np.zeros(4, np.int64)))
    evaluator = InstanceEvaluator(("cell",))
    for image in images:
        evaluator.update(*image)

    best = evaluator.compute()

    scores = np.unique(np.concatenate([image[1] for image in images]))
    assert best.metrics["f1"] == pytest.approx(max(evaluator.compute(score).metrics["f1"] for score in scores))
    assert best.threshold == find_best_threshold(best.curve_M3)
    assert (np.diff(best.curve_M3[:, 2]) >= 0).all()
    assert best.confusion[0].sum() == best.objects


def test_compute__confusion_matches_by_mask_whatever_the_class():
    square = [encode_mask((abs(ROWS - y) < 10) & (abs(COLUMNS - 50) < 10)) for y in (20, 60, 100, 140)]
    truths = np.array([0, 0, 1, 2])
    predicted = [square[0], square[1], square[1], square[2], encode_mask(draw_ellipse(50, 150, 9, 9)), square[3]]
    scores, labels = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.1], np.float32), np.array([0, 1, 0, 1, 2, 2])

    found = evaluate([(predicted, scores, labels, square, truths)], ("berry", "leaf", "stem"), threshold=0.4)

    # Two berries: one right, one named leaf; its second mask is nothing's, as is one of a stem; the stem is not found.
    assert found.confusion.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 1, 0]]
    assert found.metrics["class_accuracy"] == pytest.approx(2 / 3)
    assert found.metrics["precision"] == pytest.approx(3 / 5)
    assert found.metrics["recall"] == pytest.approx(3 / 4)


def test_compute__nothing_predicted_or_nothing_annotated():
    rng = np.random.default_rng(0)
    image = draw_image(rng, 5, 0)

    nothing = evaluate([take(image, [])])
    assert nothing.metrics["map"] == nothing.metrics["msa"] == nothing.metrics["recall"] == nothing.metrics["f1"] == 0
    assert math.isnan(nothing.metrics["precision"])
    assert (nothing.threshold, len(nothing.curve_M3)) == (0, 0)
    empty = evaluate([draw_image(rng, 0, 3)])
    assert math.isnan(empty.metrics["map"])
    assert (empty.metrics["precision"], empty.metrics["msa"]) == (0, 0)
    assert math.isnan(empty.metrics["recall"])
    assert math.isnan(evaluate([draw_image(rng, 0, 0)]).metrics["msa"])
    assert evaluate([]).images == 0
