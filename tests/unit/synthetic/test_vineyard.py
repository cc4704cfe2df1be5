import numpy as np
import pytest
from scipy import ndimage

from vpexp.synthetic import draw_vineyard
from vpexp.synthetic.vineyard import VINEYARD


@pytest.fixture(scope="module")
def scenes():
    return [draw_vineyard(np.random.default_rng([1, index]), 160, 208) for index in range(10)]


def test_draw_vineyard__one_variety_an_image(scenes):
    assert VINEYARD.categories == ("Chardonnay", "Cabernet Franc", "Cabernet Sauvignon", "Sauvignon Blanc", "Syrah")
    assert all(len(set(scene.labels)) == 1 for scene in scenes)


def test_draw_vineyard__leaves_split_some_clusters(scenes):
    parts = [ndimage.label(mask, np.ones((3, 3)))[1] for scene in scenes for mask in scene.masks]
    assert 0.05 < np.mean(np.array(parts) > 1) < 0.6


def test_draw_vineyard__clusters_fill_about_half_of_their_box(scenes):
    fills = []
    for mask in (mask for scene in scenes for mask in scene.masks):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        fills.append(mask.sum() / ((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)))
    assert 0.45 < np.median(fills) < 0.7


def test_draw_vineyard__sizes_follow_the_image():
    shares = []
    for scale in (1, 2):
        size = (128 * scale, 160 * scale)
        masks = [mask for seed in range(4) for mask in draw_vineyard(np.random.default_rng(seed), *size).masks]
        shares.append(np.median([mask.mean() for mask in masks]))
    assert 0.5 < shares[1] / shares[0] < 2


def test_draw_vineyard__dark_and_green_varieties(scenes):
    for scene in scenes:
        _, green, blue = scene.image_HW3[np.any(scene.masks, axis=0)].astype(float).mean(axis=0)
        dark = VINEYARD.categories[scene.labels[0]] in {"Cabernet Franc", "Cabernet Sauvignon", "Syrah"}
        assert (blue > green) == dark
