"""Cutting a feature map into square windows and putting it together again.

Shapes: B images, H W rows and columns of the feature map, C channels, V windows of all images, K side of a window.
"""

import torch.nn.functional as F
from torch import Tensor


def partition_windows(features_BHWC: Tensor, window_size: int) -> Tensor:
    """Cut feature maps into windows that do not overlap; zeros fill up the right and bottom edge.

    Returns [V, K, K, C], the windows of an image row by row, image after image.
    """
    _, height, width, channels = features_BHWC.shape
    # No remainders of negative numbers: converters of traced graphs disagree on their sign.
    rows, columns = _count_windows(height, window_size), _count_windows(width, window_size)
    pad_bottom, pad_right = rows * window_size - height, columns * window_size - width
    if pad_bottom or pad_right:
        features_BHWC = F.pad(features_BHWC, (0, 0, 0, pad_right, 0, pad_bottom))
    windows = features_BHWC.reshape(-1, rows, window_size, columns, window_size, channels)
    return windows.transpose(2, 3).reshape(-1, window_size, window_size, channels)


def merge_windows(windows_VKKC: Tensor, height: int, width: int) -> Tensor:
    """Put windows of ``partition_windows`` together again, without the filling.

    Returns [B, H, W, C].
    """
    window_size, channels = windows_VKKC.shape[1], windows_VKKC.shape[3]
    rows, columns = _count_windows(height, window_size), _count_windows(width, window_size)
    features = windows_VKKC.reshape(-1, rows, columns, window_size, window_size, channels)
    features = features.transpose(2, 3).reshape(-1, rows * window_size, columns * window_size, channels)
    return features[:, :height, :width]


def _count_windows(length: int, window_size: int) -> int:
    return (length + window_size - 1) // window_size
