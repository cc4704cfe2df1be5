import pytest
import torch

from vpexp.models.layers import merge_windows, partition_windows


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 10), (3, 3), (4, 9)])
def test_merge_windows__undoes_partition(height, width):
    features = torch.randn(2, height, width, 5)
    windows = partition_windows(features, 4)
    assert windows.shape[1:] == (4, 4, 5)
    torch.testing.assert_close(merge_windows(windows, height, width), features, atol=0, rtol=0)


def test_partition_windows__fills_up_with_zeros_right_and_below():
    windows = partition_windows(torch.ones(1, 3, 3, 1), 2)
    assert windows[0].sum() == 4
    assert windows[1, :, 0].sum() == 2
    assert windows[1, :, 1].sum() == 0
    assert windows[3].sum() == 1
