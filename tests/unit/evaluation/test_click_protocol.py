"""Evaluation by clicks: a simulated user against a plain one, on a predictor whose answers are known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from tests.unit.evaluation.test_evaluator import CATEGORIES, HEIGHT, WIDTH, area, build_sample, corner
from vpexp.config.schema import PromptConfig
from vpexp.data.batch import EvaluationSample
from vpexp.data.masks import decode_rle
from vpexp.data.prompts import Prompts
from vpexp.evaluation import evaluator as evaluator_module
from vpexp.evaluation.click_protocol import NOC_IOUS, SimulatedUser, build_interaction
from vpexp.evaluation.evaluator import evaluate
from vpexp.inference.load import load_predictor
from vpexp.inference.predictor import ImageEmbedding, Prediction
from vpexp.inference.torch_predictor import TorchPredictor

CLICKS = 5


class Discs:
    """A predictor: discs around the points inside, without those around the points outside; a box is filled first.

    Its ``low_res`` counts the rounds, so that a test sees which mask came back.
    """

    image_size = 32

    def __init__(self, radius=3.0):
        self.radius, self.asked = radius, []

    def embed(self, image_HW3):
        return ImageEmbedding(None, image_HW3.shape[:2], image_HW3.shape[:2])

    def decode_prompts(self, embedding, prompts):
        self.asked.append(prompts)
        height, width = embedding.original_hw
        rows, columns = np.mgrid[:height, :width]
        masks = np.zeros((len(prompts), height, width), dtype=bool)
        for mask_HW, coords_P2, labels_P in zip(masks, prompts.coords_NP2, prompts.labels_NP, strict=True):
            for (x, y), label in zip(coords_P2, labels_P, strict=True):
                disc_HW = (rows - y) ** 2 + (columns - x) ** 2 <= self.radius**2
                if label in {0, 1}:
                    mask_HW[disc_HW] = label == 1
                if label == 2:
                    right, bottom = coords_P2[labels_P == 3][0].astype(int)
                    mask_HW[int(y) : bottom, int(x) : right] = True
        rounds = np.zeros(len(prompts)) if prompts.mask_input_Nhw is None else prompts.mask_input_Nhw[:, 0, 0] + 1
        low_res = np.broadcast_to(rounds[:, None, None], (len(prompts), 8, 8)).astype(np.float32)
        return Prediction(masks, np.full(len(prompts), 0.5, np.float32), low_res)


RECIPE = PromptConfig(type="clicks", clicks=CLICKS)
DISC = np.add.outer((np.arange(HEIGHT) - 4) ** 2, (np.arange(WIDTH) - 4) ** 2) <= 9
OBJECTS = [DISC, area(8, 0, 20, 9), corner(2, 12, 14), area(17, 25, 18, 26)]


def run(predictor, recipe=RECIPE, masks=OBJECTS, **options):
    samples = [build_sample(masks, recipe=recipe), build_sample([corner(1, 1, 16)], name="b.png", recipe=recipe)]
    interaction = build_interaction(recipe)
    return evaluate(predictor, samples, CATEGORIES, total=2, interaction=interaction, **options)


def click_plainly(truth_HW, predictor, clicks):
    """The IoU after each click on one object, over whole images, with scipy alone."""
    depth_HW = ndimage.distance_transform_edt(np.pad(truth_HW, 1))[1:-1, 1:-1]
    points = [(*np.unravel_index(np.argmax(depth_HW), depth_HW.shape), 1)]
    embedding = ImageEmbedding(None, truth_HW.shape, truth_HW.shape)
    ious = []
    for _ in range(clicks):
        coords_12 = np.array([[(column, row) for row, column, _ in points]], np.float32)
        labels_1P = np.array([[label for *_, label in points]], np.float32)
        mask_HW = predictor.decode_prompts(embedding, Prompts(coords_12, labels_1P)).masks[0]
        ious.append((mask_HW & truth_HW).sum() / (mask_HW | truth_HW).sum())
        errors = []
        for label, error_HW in ((1, truth_HW & ~mask_HW), (0, mask_HW & ~truth_HW)):
            numbered_HW, count = ndimage.label(error_HW)
            errors += [(label, numbered_HW == number) for number in range(1, count + 1)]
        if not errors:
            ious += [ious[-1]] * (clicks - len(ious))
            break
        label, error_HW = max(errors, key=lambda error: error[1].sum())
        depth_HW = ndimage.distance_transform_edt(np.pad(error_HW, 1))[1:-1, 1:-1]
        points.append((*np.unravel_index(np.argmax(depth_HW), depth_HW.shape), label))
    return ious


def test_clicks__equal_a_plain_simulation():
    metrics = run(Discs()).metrics
    ious_NC = np.array([click_plainly(mask, Discs(), CLICKS) for mask in [*OBJECTS, corner(1, 1, 16)]])
    for click in range(CLICKS):
        assert metrics[f"mean_iou_clicks_{click + 1}"] == pytest.approx(ious_NC[:, click].mean())
    assert metrics["mean_iou"] == metrics[f"mean_iou_clicks_{CLICKS}"]
    assert metrics["f1-score"] == metrics[f"f1-score_clicks_{CLICKS}"]
    for percent in NOC_IOUS:
        taken = [next((c for c, iou in enumerate(ious, 1) if iou >= percent / 100), None) for ious in ious_NC]
        assert metrics[f"noc_{percent}"] == pytest.approx(np.mean([CLICKS if c is None else c for c in taken]))
        assert metrics[f"noc_{percent}_failed"] == pytest.approx(np.mean([c is None for c in taken]))
    assert 1 < metrics["noc_80"] <= metrics["noc_90"] < CLICKS
    assert 0 < metrics["noc_90_failed"] < 1


def test_clicks__all_objects_of_an_image_are_asked_at_once_with_the_mask_before():
    predictor = Discs(radius=0.5)  # one pixel a click: the last object is perfect from the first
    result = run(predictor, keep=[0])
    assert [len(prompts) for prompts in predictor.asked] == [4, 3, 3, 3, 3, 1, 1, 1, 1, 1]
    assert [prompts.labels_NP.shape[1] for prompts in predictor.asked[:5]] == [2, 2, 3, 4, 5]
    assert predictor.asked[0].mask_input_Nhw is None
    assert [prompts.mask_input_Nhw[0, 0, 0] for prompts in predictor.asked[1:5]] == [0, 1, 2, 3]
    (kept,) = result.kept
    assert [(labels >= 0).sum() for _, labels in kept.prompts] == [5, 5, 5, 1]
    for (coords, labels), rle in zip(kept.prompts, kept.predicted, strict=True):
        mask_HW = decode_rle(rle)
        assert all(mask_HW[int(y), int(x)] for (x, y), label in zip(coords, labels, strict=True) if label == 1)


def test_clicks__masks_are_not_fed_where_that_is_off():
    predictor = Discs()
    run(predictor, replace(RECIPE, feed_mask=False))
    assert all(prompts.mask_input_Nhw is None for prompts in predictor.asked)


def test_clicks__chunks_equal_the_whole(monkeypatch):
    expected = run(Discs(), baselines=True)
    monkeypatch.setattr(evaluator_module, "CHUNK_PIXELS", 2 * HEIGHT * WIDTH)
    predictor = Discs()
    found = run(predictor, baselines=True, keep=[0])
    assert max(len(prompts) for prompts in predictor.asked) == 2
    assert len(found.kept[0].prompts) == len(OBJECTS)
    assert {k: v for k, v in found.metrics.items() if not k.endswith("_time")} == pytest.approx(
        {k: v for k, v in expected.metrics.items() if not k.endswith("_time")}, nan_ok=True
    )
    assert found.baselines == expected.baselines


def test_clicks__a_box_first_is_corrected():
    recipe = replace(RECIPE, first="box", clicks=2)
    predictor = Discs()
    metrics = run(predictor, recipe).metrics
    assert [name for name in metrics if name.startswith("mean_iou_")] == [f"mean_iou_clicks_{n}" for n in range(3)]
    assert predictor.asked[0].labels_NP.tolist() == [[2, 3]] * 4
    assert predictor.asked[1].labels_NP.tolist() == [[2, 3, 0]] * 2  # filled boxes: the others have no error
    assert metrics["noc_80"] < 1
    assert metrics["mean_iou_clicks_0"] < metrics["mean_iou_clicks_1"]


@pytest.fixture(scope="module")
def drawn_samples():
    rng = np.random.default_rng(0)
    samples = []
    for name in "ab":
        masks = [area(*corner_2, *(corner_2 + rng.integers(5, 9, 2))) for corner_2 in rng.integers(0, 11, (4, 2))]
        sample = build_sample(masks, name=name, recipe=RECIPE)
        image_HW3 = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        samples.append(EvaluationSample(image_HW3, sample.annotations, sample.prompts))
    return samples


def evaluate_samples(predictor, samples, interaction=None):
    return evaluate(predictor, samples, CATEGORIES, total=len(samples), interaction=interaction).metrics


def test_clicks__the_first_is_the_point_of_prompt_point(debug_sam, drawn_samples):
    predictor = TorchPredictor(debug_sam)
    by_clicks = evaluate_samples(predictor, drawn_samples, SimulatedUser(3))
    by_point = evaluate_samples(predictor, drawn_samples)
    assert by_clicks["mean_iou_clicks_1"] == by_point["mean_iou"]
    assert by_clicks["f1-score_clicks_1"] == by_point["f1-score"]
    assert by_clicks["mean_iou_clicks_3"] == by_clicks["mean_iou"] != by_point["mean_iou"]


def test_clicks__exported_model_equals_torch(debug_sam, debug_ir, drawn_samples):
    expected = evaluate_samples(TorchPredictor(debug_sam), drawn_samples, SimulatedUser(3))
    found = evaluate_samples(load_predictor(debug_ir), drawn_samples, SimulatedUser(3))
    compared = [name for name in expected if "_clicks_" in name or name.startswith("noc_")]
    assert len(compared) == 12
    for name in compared:
        assert found[name] == pytest.approx(expected[name], abs=1e-3), name
