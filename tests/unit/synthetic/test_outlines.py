import numpy as np
import pytest

from vpexp.synthetic.outlines import OUTLINES, build_ellipse, rasterize_outline


@pytest.mark.parametrize("name", sorted(OUTLINES))
@pytest.mark.parametrize("size", [8, 60])
def test_rasterize_outline__longer_side_is_the_size(name, size):
    for seed in range(5):
        cover = rasterize_outline(OUTLINES[name](np.random.default_rng(seed)), size) > 0.1
        rows, columns = np.flatnonzero(cover.any(axis=1)), np.flatnonzero(cover.any(axis=0))
        longer = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
        # what is cut out of a shape can be its very end: a bite out of a crescent
        assert 0.6 * size - 2 <= longer <= size + 2


def test_rasterize_outline__area_of_a_ring():
    ring = [(build_ellipse((0, 0), 1, 1, 200), True), (build_ellipse((0, 0), 0.5, 0.5, 200), False)]
    cover = rasterize_outline(ring, 80, supersampling=4)
    assert cover.sum() == pytest.approx(np.pi * 40**2 * 0.75, rel=0.03)
    middle = tuple(side // 2 for side in cover.shape)
    assert cover[middle] == 0
