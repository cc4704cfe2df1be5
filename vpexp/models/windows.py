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
    pad_bottom, pad_right = -height % window_size, -width % window_size
    if pad_bottom or pad_right:
        features_BHWC = F.pad(features_BHWC, (0, 0, 0, pad_right, 0, pad_bottom))
    rows, columns = (height + pad_bottom) // window_size, (width + pad_right) // window_size
    windows = features_BHWC.reshape(-1, rows, window_size, columns, window_size, channels)
    return windows.transpose(2, 3).reshape(-1, window_size, window_size, channels)


def merge_windows(windows_VKKC: Tensor, height: int, width: int) -> Tensor:
    """Put windows of ``partition_windows`` together again, without the filling.

    Returns [B, H, W, C].
    """
    window_size, channels = windows_VKKC.shape[1], windows_VKKC.shape[3]
    rows, columns = -(-height // window_size), -(-width // window_size)
    features = windows_VKKC.reshape(-1, rows, columns, window_size, window_size, channels)
    features = features.transpose(2, 3).reshape(-1, rows * window_size, columns * window_size, channels)
    return features[:, :height, :width]
