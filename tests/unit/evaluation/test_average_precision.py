"""AP and AR against pycocotools' own evaluation of the same masks."""

import contextlib
import io
import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vpexp.data.masks import encode_mask
from vpexp.evaluation.average_precision import SUMMARY_NAMES, MaskAveragePrecision

CATEGORIES = ("berry", "leaf", "stem", "unused")


def evaluate_with_pycocotools(records, categories):
    """The twelve numbers; an entry a record is (predicted, scores, annotated, labels)."""
    annotations, predictions = [], []
    for image_id, (predicted, scores, annotated, labels) in enumerate(records, start=1):
        for mask, label in zip(annotated, labels, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(label),
                    "segmentation": mask,
                    "area": float(coco_mask.area(mask)),
                    "bbox": coco_mask.toBbox(mask).tolist(),
                    "iscrowd": 0,
                }
            )
        for mask, score, label in zip(predicted, scores, labels, strict=True):
            predictions.append(
                {"image_id": image_id, "category_id": int(label), "segmentation": mask, "score": float(score)}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": i + 1, "height": 300, "width": 300} for i in range(len(records))],
            "annotations": annotations,
            "categories": [{"id": label, "name": CATEGORIES[label]} for label in categories],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(predictions), "segm")
        evaluation.params.catIds = list(categories)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float("nan") if value < 0 else float(value) for value in evaluation.stats]


def draw_record(rng, count, *, labels=None, largest=150, ties=False):
    """Ellipses of all sizes, and predictions that are shifted and scaled by differing amounts."""
    height, width = 300, 300
    rows, columns = np.mgrid[:height, :width]

    def ellipse(y, x, h, w):
        return encode_mask(((rows - y) / h) ** 2 + ((columns - x) / w) ** 2 <= 1)

    annotated, predicted = [], []
    for _ in range(count):
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        h, w = np.exp(rng.uniform(np.log(3), np.log(largest / 2), 2))
        miss = rng.choice([0.02, 0.1, 0.25, 0.6])
        annotated.append(ellipse(round(y), round(x), h, w))
        shift_y, shift_x = rng.normal(0, miss, 2) * (h, w)
        scale = np.exp(rng.normal(0, miss, 2))
        predicted.append(ellipse(y + shift_y, x + shift_x, h * scale[0], w * scale[1]))
    scores = rng.random(count).astype(np.float32)
    if ties:
        scores = np.round(scores, 1)
    labels = rng.integers(0, 3, count) if labels is None else np.full(count, labels)
    return predicted, scores, annotated, labels


def build_metric(records):
    metric = MaskAveragePrecision(CATEGORIES)
    for record in records:
        metric.update(*record)
    return metric


def assert_equals_pycocotools(records):
    found = build_metric(records).compute()
    present = sorted({int(label) for record in records for label in record[3]})
    expected = evaluate_with_pycocotools(records, present)
    np.testing.assert_allclose([found[name] for name in SUMMARY_NAMES], expected, atol=1e-6, equal_nan=True)
    assert set(found["map_per_class"]) == set(found["mar_100_per_class"]) == {CATEGORIES[label] for label in present}
    for label in present:
        alone = evaluate_with_pycocotools(records, [label])
        assert found["map_per_class"][CATEGORIES[label]] == pytest.approx(alone[0], abs=1e-6)
        assert found["mar_100_per_class"][CATEGORIES[label]] == pytest.approx(alone[8], abs=1e-6)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_compute__equals_pycocotools(seed):
    rng = np.random.default_rng(seed)
    found = assert_equals_pycocotools([draw_record(rng, rng.integers(1, 15), largest=280) for _ in range(8)])
    # Small, medium and large objects are there, and the numbers are neither trivial nor all the same.
    assert all(0.05 < found[name] < 0.99 for name in SUMMARY_NAMES)
    assert len({round(found[name], 6) for name in SUMMARY_NAMES}) > 8


def test_compute__equals_pycocotools_where_scores_tie():
    rng = np.random.default_rng(5)
    assert_equals_pycocotools([draw_record(rng, 12, ties=True) for _ in range(6)])
    same = [(p, np.full(len(s), 0.5, np.float32), a, n) for p, s, a, n in (draw_record(rng, 9) for _ in range(3))]
    assert_equals_pycocotools(same)


def test_compute__equals_pycocotools_beyond_100_objects_of_a_class():
    rng = np.random.default_rng(6)
    records = [draw_record(rng, 130, labels=0, largest=20), draw_record(rng, 4)]
    found = assert_equals_pycocotools(records)
    assert found["mar_100_per_class"]["berry"] < 100 / 130  # the 30 of lowest score do not count


def test_compute__equals_pycocotools_with_empty_predictions():
    rng = np.random.default_rng(7)
    predicted, scores, annotated, labels = draw_record(rng, 6)
    predicted[0] = predicted[3] = encode_mask(np.zeros((300, 300), dtype=bool))
    assert_equals_pycocotools([(predicted, scores, annotated, labels)])


def test_compute__images_without_objects_change_nothing():
    rng = np.random.default_rng(8)
    records = [draw_record(rng, 5), ([], np.zeros(0, np.float32), [], np.zeros(0, np.int64)), draw_record(rng, 5)]
    assert_equals_pycocotools(records)
    with_empty, without = build_metric(records).compute(), build_metric([records[0], records[2]]).compute()
    assert {name: with_empty[name] for name in SUMMARY_NAMES} == pytest.approx(
        {name: without[name] for name in SUMMARY_NAMES}, nan_ok=True
    )


def test_compute__perfect_predictions():
    rng = np.random.default_rng(9)
    records = [(a, s, a, n) for _, s, a, n in (draw_record(rng, 6) for _ in range(3))]
    found = build_metric(records).compute()
    assert found["map"] == pytest.approx(1)
    assert found["mar_100"] == pytest.approx(1)


def test_compute__no_number_where_nothing_is_annotated():
    rng = np.random.default_rng(10)
    found = build_metric([draw_record(rng, 6, largest=12)]).compute()
    assert math.isfinite(found["map_small"])
    for name in ("map_medium", "map_large", "mar_medium", "mar_large"):
        assert math.isnan(found[name])
    nothing = MaskAveragePrecision(CATEGORIES)
    assert all(math.isnan(value) for value in nothing.compute().values())


def test_compute__score_that_is_no_number_ranks_last():
    """A model that diverged must not take the evaluation down."""
    rng = np.random.default_rng(11)
    predicted, scores, annotated, labels = draw_record(rng, 40, labels=0)
    broken = scores.copy()
    broken[::3] = np.nan
    lowest = scores.copy()
    lowest[::3] = -1
    found = build_metric([(predicted, broken, annotated, labels)]).compute()
    expected = build_metric([(predicted, lowest, annotated, labels)]).compute()
    assert [found[name] for name in SUMMARY_NAMES] == pytest.approx(
        [expected[name] for name in SUMMARY_NAMES], nan_ok=True
    )


def test_metric__of_processes_that_took_turns_is_that_of_one():
    rng = np.random.default_rng(12)
    records = [draw_record(rng, 9, ties=True) for _ in range(5)]
    parts = [MaskAveragePrecision(CATEGORIES) for _ in range(2)]
    for place, record in enumerate(records):
        parts[place % 2].update(*record, place=place)
    joined = MaskAveragePrecision(CATEGORIES, [record for part in reversed(parts) for record in part.records])
    assert joined.compute() == build_metric(records).compute()
