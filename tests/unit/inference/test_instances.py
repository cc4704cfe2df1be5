"""Objects without prompts: boxes of a prompter become masks, each once, with a class."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from vpexp.data.geometry import compute_resized_size, normalize_and_pad, resize_image
from vpexp.data.masks import compute_box
from vpexp.data.tiles import Tiling
from vpexp.inference.instances import Instances, find_instances
from vpexp.inference.predictor import ImageEmbedding, InstanceModel, Prediction

SIZE = 64
LABELS = ("dark", "bright")


class Blobs:
    """A predictor that masks the blob in the middle of a box."""

    image_size = SIZE
    multimask = "never"
    instances = None

    def prepare(self, image_HW3):
        return normalize_and_pad(resize_image(image_HW3, SIZE), SIZE)

    def embed(self, image_HW3):
        hw = image_HW3.shape[:2]
        return ImageEmbedding(ndimage.label(image_HW3[:, :, 0] > 0)[0], hw, compute_resized_size(*hw, SIZE))

    def decode_prompts(self, embedding, prompts, *, multimask=None):
        assert prompts.labels_NP.tolist() == [[1, 2, 3]] * len(prompts)
        middles = np.floor(prompts.coords_NP2[:, 0]).astype(int)
        masks = np.array([embedding.features == embedding.features[y, x] for x, y in middles])
        return Prediction(masks, np.full(len(masks), 0.81, np.float32), np.zeros((len(masks), 16, 16), np.float32))


def find_boxes(features, image_13SS):
    """Find blobs, each twice, the second time with a lower score, and one far outside."""
    assert image_13SS.shape == (1, 3, SIZE, SIZE)
    height, width = features.shape
    scale = SIZE / max(height, width)
    found = [[one[1].start, one[0].start, one[1].stop, one[0].stop] for one in ndimage.find_objects(features)]
    boxes = np.array([*found, *found, [width + 5, 0, width + 9, 9]], np.float32) * scale
    scores = np.concatenate([np.linspace(0.9, 0.6, len(found)), np.full(len(found), 0.5), [1.0]])
    return boxes, scores.astype(np.float32)


def classify(crops):
    is_bright_K = (crops.crops_K4PP[:, 0] > 150).any(axis=(1, 2))
    return np.stack([~is_bright_K, is_bright_K], axis=1).astype(np.float32)


def draw(height, width, *blobs):
    image_HW3 = np.zeros((height, width, 3), np.uint8)
    for left, top, right, bottom, value in blobs:
        image_HW3[top:bottom, left:right] = value
    return image_HW3


BLOBS = ((4, 6, 20, 18, 100), (40, 10, 60, 40, 200), (95, 50, 121, 70, 100))


Blobs.instances = InstanceModel(find_boxes, classify, LABELS, threshold=0.3, max_overlap=0.6)


@pytest.mark.parametrize("tiling", [None, Tiling(64, 0.25)])
def test_find__gives_each_object_once_with_its_class(tiling):
    prompts, found = find_instances(Blobs(), draw(80, 160, *BLOBS), tiling)
    boxes = {tuple(compute_box(mask.rle).astype(int).tolist()): mask.label for mask in found.masks}
    assert boxes == {blob[:4]: LABELS[blob[4] > 150] for blob in BLOBS}
    assert len(found.masks) == 3
    scores = [mask.score for mask in found.masks]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(0.9 * 0.81**0.5)
    for mask in found.masks:  # the box that gave it, and its middle
        left, top, right, bottom = compute_box(mask.rle)
        (x, y), *corners = prompts.coords_NP2[mask.prompt]
        assert left <= x < right
        assert top <= y < bottom
        if tiling is None:
            np.testing.assert_allclose(corners, [(left, top), (right, bottom)], atol=1e-4)


def test_find__names_a_few_masks_at_a_time_however_many_there_are(monkeypatch):
    at_once = []

    def classify_few(crops):
        at_once.append(len(crops.crops_K4PP))
        return classify(crops)

    predictor, image_HW3 = Blobs(), draw(80, 160, *BLOBS)
    _, expected = find_instances(predictor, image_HW3)
    predictor.instances = replace(Blobs.instances, classify=classify_few)
    monkeypatch.setattr("vpexp.inference.instances.NAMED_AT_ONCE", 2)
    _, found = find_instances(predictor, image_HW3)
    assert found.masks == expected.masks
    assert at_once == [2, 1]


def test_find__keeps_what_scores_well_enough():
    image_HW3 = draw(64, 64, *BLOBS[:2])
    for threshold, count, weak in ((0.0, 2, 0), (0.7, 1, 0), (0.85, 0, 1)):
        _, found = find_instances(Blobs(), image_HW3, min_score=threshold)
        assert (len(found.masks), found.weak) == (count, weak), threshold
    _, nothing = find_instances(Blobs(), draw(64, 64))
    assert nothing.masks == []


def test_instances__list_and_draw_what_was_found():
    image_HW3 = draw(80, 160, *BLOBS)
    _, found = find_instances(Blobs(), image_HW3)
    instances = Instances(found.masks, (80, 160))
    assert (len(instances), repr(instances)) == (3, "Instances(2 dark, 1 bright)")
    assert instances.masks.sum(axis=(1, 2)).tolist() == instances.to_dataframe()["area"].tolist()
    assert instances.masks[1, 10:40, 40:60].all()
    assert instances.boxes[1].tolist() == [40, 10, 60, 40]
    assert instances.to_dataframe()["label"].tolist() == instances.labels == ["dark", "bright", "dark"]
    assert instances.plot(image_HW3).size[0] == 3 * 160
    empty = Instances([], (8, 9))
    assert (repr(empty), empty.masks.shape, len(empty.to_dataframe())) == ("Instances(nothing found)", (0, 8, 9), 0)
