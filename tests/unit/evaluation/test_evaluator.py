"""The evaluation loop with a predictor whose answers are known: it marks what is bright inside the prompted box."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed

from vpexp.config.schema import PromptConfig
from vpexp.data.annotations import AnnotatedImage
from vpexp.data.batch import EvaluationSample, UnreadableImage
from vpexp.data.masks import compute_box, decode_rle, encode_mask
from vpexp.data.prompts import build_evaluation_prompts, prompts_from_boxes
from vpexp.data.tiles import TiledImages, Tiling
from vpexp.evaluation import evaluator as evaluator_module
from vpexp.evaluation.evaluator import Evaluator, Metric, evaluate
from vpexp.inference.predictor import ImageEmbedding, Prediction, build_prompts

CATEGORIES = ("berry", "leaf")
HEIGHT, WIDTH = 20, 30


class BrightPixels:
    """A predictor: the bright pixels of the embedded image inside the box; the score is their share of it."""

    image_size = 32

    def __init__(self):
        self.embedded, self.decoded = 0, []

    def embed(self, image_HW3):
        self.embedded += 1
        hw = image_HW3.shape[:2]
        return ImageEmbedding(image_HW3[:, :, 0] > 128, hw, hw)

    def decode_prompts(self, embedding, prompts):
        self.decoded.append(len(prompts))
        masks, scores = np.zeros((len(prompts), *embedding.original_hw), dtype=bool), np.zeros(len(prompts), np.float32)
        for index, box_22 in enumerate(prompts.coords_NP2):
            (left, top), (right, bottom) = box_22.astype(int)
            masks[index, top:bottom, left:right] = embedding.features[top:bottom, left:right]
            scores[index] = masks[index, top:bottom, left:right].mean()
        return Prediction(masks, scores, np.zeros((len(prompts), 8, 8), np.float32))

    def decode(self, embedding, *, boxes=None, points=None, point_labels=None):
        return self.decode_prompts(embedding, build_prompts(boxes, points, point_labels))


def build_sample(masks, bright_HW=None, labels=None, name="a.png", recipe=None):
    rles = tuple(encode_mask(mask_HW) for mask_HW in masks)
    annotations = AnnotatedImage(
        image_id=name,
        path=Path(name),
        height=HEIGHT,
        width=WIDTH,
        masks=rles,
        boxes_N4=np.array([compute_box(rle) for rle in rles], dtype=np.float32).reshape(-1, 4),
        labels_N=np.zeros(len(rles), np.int64) if labels is None else np.asarray(labels),
        object_ids=tuple(str(i) for i in range(len(rles))),
    )
    bright_HW = np.any(masks, axis=0) if bright_HW is None else bright_HW
    image_HW3 = np.repeat(bright_HW[:, :, None].astype(np.uint8) * 255, 3, axis=2)
    return EvaluationSample(image_HW3, annotations, build_evaluation_prompts(annotations, recipe or PromptConfig()))


def area(top, left, bottom, right):
    mask_HW = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask_HW[top:bottom, left:right] = True
    return mask_HW


def corner(top, left, size):
    """A square without its lower right quarter: the box holds more than the mask."""
    return area(top, left, top + size, left + size) & ~area(top + size // 2, left + size // 2, top + size, left + size)


# One image where all is seen, one where a half is dark.
WHOLE = build_sample([corner(0, 0, 8), area(10, 12, 14, 20)], labels=[0, 1])
HALF = build_sample([corner(2, 4, 8)], bright_HW=area(2, 4, 6, 12), name="b.png")
DAMAGED = UnreadableImage("c.png", "truncated")


def run(samples, predictor=None, **options):
    return evaluate(predictor or BrightPixels(), samples, CATEGORIES, total=len(samples), **options)


def test_evaluate__pixel_metrics_by_hand():
    result = run([WHOLE, HALF])
    # WHOLE: 48 + 32 of 48 + 32; HALF: the upper 8 x 4 of an L of 48
    overlap, predicted, annotated = 48 + 32 + 32, 48 + 32 + 32, 48 + 32 + 48
    assert result.metrics["f1-score"] == result.metrics["dice"] == pytest.approx(2 * overlap / (predicted + annotated))
    assert result.metrics["iou"] == pytest.approx(overlap / annotated)
    assert result.metrics["mean_iou"] == pytest.approx((1 + 1 + 32 / 48) / 3)
    assert (result.images, result.objects) == (2, 3)
    assert result.unreadable == []
    assert result.metrics["map_50"] == pytest.approx(1)
    assert set(result.per_class["map_per_class"]) == {"berry", "leaf"}
    assert result.per_class["map_per_class"]["leaf"] == pytest.approx(1)
    assert result.baselines == {}
    assert result.kept == []
    assert math.isnan(result.wrong_image_drop)


def cut(sample, tiling):
    """Cut a sample's image into tiles, as a data set gives them."""
    image = sample.annotations
    _, tiles = TiledImages.cut([image], tiling).cut_image(0)
    samples = []
    for tile, objects_N in tiles:
        prompts = build_evaluation_prompts(tile, PromptConfig())
        pixels = sample.image_HW3[tile.window.slices]
        samples.append(EvaluationSample(pixels, tile, prompts, image=image, image_objects_N=objects_N))
    return EvaluationSample(None, image, prompts_from_boxes(np.zeros((0, 4), np.float32)), tiles=samples)


def test_evaluate__tiles_are_measured_as_the_whole_image():
    samples = [build_sample([area(10, 12, 14, 20), corner(0, 0, 8), area(15, 25, 20, 30)], labels=[0, 1, 0]), HALF]
    whole = run(samples, baselines=True, keep=[0])
    tiles = [cut(sample, Tiling(14, 0.5)) for sample in samples]
    assert [len(sample.tiles) for sample in tiles] == [3, 1]
    predictor = BrightPixels()
    tiled = run(tiles, predictor, baselines=True, keep=[0])
    assert predictor.embedded == 4
    for name, value in whole.metrics.items():
        assert "time" in name or tiled.metrics[name] == pytest.approx(value, nan_ok=True), name
    assert (tiled.per_class, tiled.image_sums) == (whole.per_class, whole.image_sums)
    assert (tiled.images, tiled.objects) == (2, 4)
    assert tiled.baselines["box_filled"] == whole.baselines["box_filled"]
    (kept,) = tiled.kept
    assert kept.sample is tiles[0].tiles[0]
    assert [decode_rle(rle).shape for rle in kept.predicted] == [(14, 14)]


def test_evaluate__what_a_tile_cuts_off_counts_as_missed():
    long = build_sample([area(4, 0, 8, 30)])
    tiled = run([cut(long, Tiling(20, 0.0))])
    assert tiled.metrics["mean_iou"] == pytest.approx(20 / 30)


def test_evaluate__names_all_metrics():
    names = set(run([WHOLE]).metrics)
    assert names == {
        *("dice", "f1-score", "iou", "mean_iou", "iter_time", "encoder_time", "decoder_time", "data_time"),
        *("map", "map_50", "map_75", "map_small", "map_medium", "map_large"),
        *("mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"),
    }


class Objects(Metric):
    def __init__(self):
        self.labels = []

    def update(self, predicted, scores_N, annotations):
        assert len(predicted) == len(scores_N) == len(annotations.masks)
        self.labels += annotations.labels_N.tolist()

    def merge(self, other):
        self.labels += other.labels

    def compute(self):
        return {"seen": float(len(self.labels))}


def test_evaluate__metrics_of_ones_own_start_anew_and_sum_over_processes():
    own = Objects()
    assert [run(samples, metrics=[own]).metrics["seen"] for samples in ([WHOLE, HALF, DAMAGED], [HALF])] == [3, 1]
    assert own.labels == []
    first, second = Evaluator(CATEGORIES, metrics=[own]), Evaluator(CATEGORIES, metrics=[own])
    for evaluator in (first, second):
        evaluator.update(BrightPixels(), WHOLE, 0.0)
    first.totals.merge(second.totals)
    assert first.compute().metrics["seen"] == 4


def test_evaluate__damaged_images_are_counted_not_scored():
    result = run([DAMAGED, WHOLE, DAMAGED])
    assert result.unreadable == [DAMAGED, DAMAGED]
    assert result.images == 1
    assert result.metrics["f1-score"] == 1


def test_evaluate__nothing_to_evaluate():
    for samples in ([], [DAMAGED]):
        result = run(samples, baselines=True)
        assert (result.images, result.objects, result.per_class) == (0, 0, {})
        assert all(math.isnan(value) for value in result.metrics.values())
        assert math.isnan(result.wrong_image_drop)


def test_evaluate__image_without_objects():
    empty = build_sample([area(0, 0, 2, 2)])
    annotations = replace(
        empty.annotations, masks=(), boxes_N4=np.zeros((0, 4), np.float32), labels_N=np.zeros(0, int), object_ids=()
    )
    empty = EvaluationSample(empty.image_HW3, annotations, build_evaluation_prompts(annotations, PromptConfig()))
    result = run([empty, WHOLE], baselines=True)
    assert (result.images, result.objects) == (2, 2)
    assert result.metrics["f1-score"] == 1


def test_baselines__filled_box_by_hand():
    result = run([WHOLE, HALF], baselines=True)
    # boxes 8 x 8, 4 x 8, 8 x 8 around 48, 32, 48 pixels
    filled = result.baselines["box_filled"]
    assert filled["f1-score"] == pytest.approx(2 * 128 / (160 + 128))
    assert filled["iou"] == pytest.approx(128 / 160)
    assert filled["mean_iou"] == pytest.approx((0.75 + 1 + 0.75) / 3)


def test_baselines__filled_box_is_the_one_that_was_prompted():
    recipe = PromptConfig(test_jitter=0.5)
    sample = build_sample([corner(4, 6, 8)], recipe=recipe)
    left, top, right, bottom = np.rint(sample.prompts.coords_NP2.reshape(4)).astype(int)
    assert (bottom - top) * (right - left) > 64
    filled = run([sample], baselines=True).baselines["box_filled"]
    assert filled["iou"] == pytest.approx(48 / ((bottom - top) * (right - left)))
    point = build_sample([corner(4, 6, 8)], recipe=PromptConfig(type="point"))
    evaluator = Evaluator(CATEGORIES, baselines=True)
    evaluator._measure_baselines(BrightPixels(), BrightPixels().embed(point.image_HW3), point)
    assert evaluator.totals.box_filled.compute()["iou"] == pytest.approx(48 / 64)


def test_baselines__wrong_image_is_another_images_embedding():
    samples = [build_sample([area(2, 4 * i + 2, 8, 4 * i + 10)], name=f"{i}.png") for i in range(3)]
    predictor = BrightPixels()
    result = run(samples, predictor, baselines=True)
    assert predictor.embedded == 3  # each image is encoded once
    # Boxes of 6 x 8 move by 4: the image before shows the left half; the first one gets the last, which shows nothing.
    wrong = result.baselines["wrong_image"]
    assert wrong["f1-score"] == pytest.approx(2 * (24 + 24 + 0) / (24 + 24 + 0 + 3 * 48))
    assert wrong["mean_iou"] == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert result.metrics["f1-score"] == 1
    assert result.wrong_image_drop == pytest.approx(1 - wrong["f1-score"])


def test_baselines__one_image_has_no_other():
    result = run([WHOLE, DAMAGED], baselines=True)
    assert math.isnan(result.baselines["wrong_image"]["f1-score"])
    assert math.isnan(result.wrong_image_drop)


def test_baselines__change_no_metric():
    plain, measured = run([WHOLE, HALF]), run([WHOLE, HALF], baselines=True)
    for name, value in plain.metrics.items():
        if not name.endswith("_time"):
            assert measured.metrics[name] == pytest.approx(value, nan_ok=True)


def test_finish__counts_once():
    evaluator, predictor = Evaluator(CATEGORIES, baselines=True), BrightPixels()
    for sample in (WHOLE, HALF):
        evaluator.update(predictor, sample, 0.0)
    for _ in range(2):
        evaluator.finish(predictor)
    assert len(evaluator.compute().baselines["wrong_image"]) == 4
    assert len(evaluator.totals.wrong_image.object_ious) == 3


def test_evaluate__keeps_the_images_asked_for():
    result = run([WHOLE, DAMAGED, HALF, WHOLE], keep=[1])
    (kept,) = result.kept
    assert kept.sample is HALF
    assert len(kept.predicted) == len(kept.scores_N) == 1
    np.testing.assert_array_equal(decode_rle(kept.predicted[0]), area(2, 4, 6, 12))
    assert kept.scores_N[0] == pytest.approx(0.5)


def test_evaluate__chunks_equal_the_whole(monkeypatch):
    crowd = build_sample([corner(2 * i, 3 * i, 6) for i in range(5)], labels=[0, 1, 0, 1, 0])
    samples = [crowd, WHOLE, HALF]
    expected_predictor, predictor = BrightPixels(), BrightPixels()
    expected = run(samples, expected_predictor, baselines=True)
    monkeypatch.setattr(evaluator_module, "CHUNK_PIXELS", 2 * HEIGHT * WIDTH)
    found = run(samples, predictor, baselines=True)
    assert max(expected_predictor.decoded) == 5
    assert max(predictor.decoded) == 2
    for name, value in expected.metrics.items():
        if not name.endswith("_time"):
            assert found.metrics[name] == pytest.approx(value, nan_ok=True)
    assert found.baselines == expected.baselines
    assert found.per_class == expected.per_class


def test_times__are_means_over_images():
    evaluator = Evaluator(CATEGORIES)
    for seconds in (0.5, 1.5):
        evaluator.update(BrightPixels(), WHOLE, seconds)
    metrics = evaluator.compute().metrics
    assert metrics["data_time"] == pytest.approx(1.0)
    assert 0 < metrics["iter_time"] < 0.5


# An odd number of images, one of them damaged; equal scores rank in the order of the images, and that order counts.
FLAT = build_sample([area(2, 4, 10, 12)], bright_HW=area(2, 4, 6, 12), name="d.png")  # scored as HALF is, and worse
SHARED = [HALF, DAMAGED, WHOLE, FLAT, HALF, FLAT, HALF]


def evaluate_share(rank, world_size, store, results):
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    try:
        evaluator = Evaluator(CATEGORIES)
        for sample in SHARED[rank::world_size]:
            evaluator.update(BrightPixels(), sample, 0.25)
        result = evaluator.compute()
        own = len(evaluator.average_precision.records)
        torch.save((result.metrics, result.per_class, result.images, result.objects, own), f"{results}{rank}")
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
def test_compute__two_processes_equal_one(tmp_path):
    torch.multiprocessing.start_processes(
        evaluate_share, (2, tmp_path / "store", tmp_path / "result"), nprocs=2, start_method="fork"
    )
    expected = run(SHARED)
    for rank in range(2):
        metrics, per_class, images, objects, own = torch.load(tmp_path / f"result{rank}", weights_only=False)
        assert (images, objects) == (expected.images, expected.objects) == (6, 7)
        assert own == 4 - 2 * rank  # the others' records are gone again after the sum
        assert per_class == expected.per_class
        for name, value in expected.metrics.items():
            if not name.endswith("_time"):
                assert metrics[name] == value or (math.isnan(metrics[name]) and math.isnan(value)), name
        assert metrics["data_time"] == pytest.approx(1.75 / 6)
