import numpy as np
import pytest

from vpexp.synthetic.textures import FIELDS, draw_log_uniform, mix_colors


@pytest.mark.parametrize("name", sorted(FIELDS))
@pytest.mark.parametrize("size", [(5, 7), (64, 48)])
def test_fields__float32_in_unit_range(name, size):
    for seed in range(4):
        field = FIELDS[name](np.random.default_rng(seed), *size)
        assert field.shape == size
        assert field.dtype == np.float32
        assert field.min() >= -1e-6
        assert field.max() <= 1 + 1e-6


def test_mix_colors__ends_are_the_colours():
    red, blue = np.array([1, 0, 0], np.float32), np.array([0, 0, 1], np.float32)
    mixed = mix_colors(np.array([[0, 1]], np.float32), red, blue)
    np.testing.assert_array_equal(mixed, [[red, blue]])


def test_draw_log_uniform__half_lies_below_the_geometric_mean():
    rng = np.random.default_rng(0)
    numbers = np.array([draw_log_uniform(rng, 1, 100) for _ in range(2000)])
    assert numbers.min() >= 1
    assert numbers.max() <= 100
    assert np.mean(numbers < 10) == pytest.approx(0.5, abs=0.05)
