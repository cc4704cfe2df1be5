"""From prompts to compressed masks: order, filters, memory."""

import numpy as np
import pytest

from vpexp.data.masks import decode_rle
from vpexp.data.prompts import Prompts, prompts_from_boxes
from vpexp.inference import segment as module
from vpexp.inference.load import load_predictor
from vpexp.inference.predictor import ImageEmbedding, Prediction, build_prompts
from vpexp.inference.prompt_file import read_prompt_file
from vpexp.inference.segment import segment


class FilledBoxes:
    """Predicts each box filled, with a score that is given, and remembers how many prompts came at once."""

    image_size = 64

    def __init__(self, scores):
        self.scores = scores
        self.calls = []

    def embed(self, image_HW3):
        return ImageEmbedding(None, image_HW3.shape[:2], image_HW3.shape[:2])

    def decode_prompts(self, embedding, prompts, *, multimask=None):
        done = sum(self.calls)
        self.calls.append(len(prompts))
        masks = np.zeros((len(prompts), *embedding.original_hw), dtype=bool)
        for mask_HW, ((left, top), (right, bottom)) in zip(masks, prompts.coords_NP2.astype(int), strict=True):
            mask_HW[top:bottom, left:right] = True
        scores = np.array(self.scores[done : done + len(prompts)], np.float32)
        return Prediction(masks, scores, np.zeros((len(prompts), 16, 16), np.float32))

    def decode(self, embedding, *, boxes=None, points=None, point_labels=None):
        return self.decode_prompts(embedding, build_prompts(boxes, points, point_labels))


BOXES_N4 = np.array([[0, 0, 4, 4], [2, 2, 2, 2], [1, 1, 9, 9], [5, 0, 6, 8]], np.float32)


def run_segment(scores, min_score, boxes_N4=BOXES_N4, size=(10, 12)):
    predictor = FilledBoxes(scores)
    embedding = predictor.embed(np.zeros((*size, 3), np.uint8))
    return predictor, segment(predictor, embedding, prompts_from_boxes(boxes_N4), min_score=min_score)


def test_segment__keeps_order_and_says_which_prompt():
    _, found = run_segment([0.5, 0.9, 0.1, 0.7], 0.0)
    assert [mask.prompt for mask in found.masks] == [0, 2, 3]
    assert [mask.score for mask in found.masks] == pytest.approx([0.5, 0.1, 0.7])
    assert [decode_rle(mask.rle).sum() for mask in found.masks] == [16, 64, 8]
    assert (found.empty, found.weak) == (1, 0)


def test_segment__leaves_out_weak_and_empty_masks_and_counts_them():
    _, found = run_segment([0.5, 0.9, 0.1, 0.7], 0.5)
    assert [mask.prompt for mask in found.masks] == [0, 3]
    assert (found.empty, found.weak) == (1, 1)


def test_segment__score_below_zero_counts_as_zero_and_no_number_as_nothing():
    _, found = run_segment([-0.2, 0.5, float("nan"), 1.3], 0.0)
    assert [mask.prompt for mask in found.masks] == [0, 3]
    assert found.masks[0].score == pytest.approx(-0.2)
    assert (found.empty, found.weak) == (1, 1)
    _, found = run_segment([-0.2, 0.5, 0.5, 1.3], 0.1)
    assert [mask.prompt for mask in found.masks] == [2, 3]


def test_segment__no_prompts():
    predictor, found = run_segment([], 0.0, np.zeros((0, 4), np.float32))
    assert (found.masks, found.empty, found.weak) == ([], 0, 0)
    assert predictor.calls == []


def test_segment__decodes_in_chunks_that_bound_memory(monkeypatch):
    boxes_N4 = np.tile(BOXES_N4[[0, 2]], (6, 1))
    scores = np.linspace(0.1, 0.9, 12).tolist()
    _, whole = run_segment(scores, 0.0, boxes_N4)
    monkeypatch.setattr(module, "CHUNK_PIXELS", 5 * 10 * 12 + 7)
    predictor, found = run_segment(scores, 0.0, boxes_N4)
    assert predictor.calls == [5, 5, 2]
    assert found == whole
    monkeypatch.setattr(module, "CHUNK_PIXELS", 1)
    predictor, found = run_segment(scores, 0.0, boxes_N4)
    assert predictor.calls == [1] * 12
    assert found == whole
    assert module.CHUNK_PROMPTS <= 256


def test_segment__boxes_and_points_of_one_file_are_separate_prompts(tmp_path):
    """What stands together in a file gives the masks that each prompt gives alone."""
    path = tmp_path / "p.json"
    path.write_text(
        '{"a": {"boxes": [[4, 5, 30, 28]], "points": [[[10, 12]], [[20, 9], [3, 30], [12, 14]]], "point_labels": [[1], [1, 0, 1]]}}'
    )
    prompts = read_prompt_file(path)["a"].prompts
    predictor = load_predictor("sam_debug")
    image_HW3 = np.random.default_rng(0).integers(0, 256, (40, 36, 3), dtype=np.uint8)
    embedding = predictor.embed(image_HW3)
    together = predictor.decode_prompts(embedding, prompts)
    alone = [
        predictor.decode(embedding, boxes=np.array([[4, 5, 30, 28]], np.float32)),
        predictor.decode(embedding, points=np.array([[[10, 12]]], np.float32)),
        predictor.decode(
            embedding,
            points=np.array([[[20, 9], [3, 30], [12, 14]]], np.float32),
            point_labels=np.array([[1, 0, 1]], np.float32),
        ),
    ]
    for index, expected in enumerate(alone):
        np.testing.assert_allclose(together.low_res[index], expected.low_res[0], atol=1e-4)
        np.testing.assert_allclose(together.iou[index], expected.iou[0], atol=1e-5)
    found = segment(predictor, embedding, Prompts(prompts.coords_NP2, prompts.labels_NP), min_score=0.0)
    for mask in found.masks:
        assert (decode_rle(mask.rle) == together.masks[mask.prompt]).all()
    assert len(found.masks) + found.empty == 3
