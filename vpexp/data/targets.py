"""Masks as training compares them with the model's: on the grid of the loss, without padding, eight pixels a byte.

Packed, the masks of an image with hundreds of objects travel from the workers in the room of a few; they are unpacked as
they are needed.

Legend: N objects of one image, H W original size, h w size of the image inside the model's square, R C rows and columns of the
loss's grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vpexp.data.masks import decode_rle
from vpexp.data.types import Rle

HALF_COVERED = 128  # of 255
LOW_RES_STRIDE = 4
"""Pixels of the model's input to a side of one of the decoder's low-resolution logits."""


@dataclass(frozen=True, slots=True)
class MaskTargets:
    """The masks of one image's objects.

    Attributes:
        bits_NX: uint8 [N, ceil(R * C / 8)]: pixels row by row, the first in a byte's highest bit.
        grid_hw: R and C.
    """

    bits_NX: Tensor
    grid_hw: tuple[int, int]

    def __len__(self) -> int:
        return len(self.bits_NX)

    def to(self, device: torch.device) -> "MaskTargets":
        """Copy the masks to a device."""
        return MaskTargets(self.bits_NX.to(device, non_blocking=True), self.grid_hw)

    def unpack(self, part: slice = slice(None)) -> Tensor:
        """Expand some of the masks: uint8 [n, R, C], 0 or 1."""
        bits_NX = self.bits_NX[part]
        rows, columns = self.grid_hw
        if bits_NX.device.type == "cpu":
            pixels_NP = torch.from_numpy(np.unpackbits(bits_NX.numpy(), axis=1, count=rows * columns))
        else:
            shifts_8 = torch.arange(7, -1, -1, device=bits_NX.device, dtype=torch.uint8)
            pixels_NP = ((bits_NX[:, :, None] >> shifts_8) & 1).flatten(1)[:, : rows * columns]
        return pixels_NP.reshape(len(bits_NX), rows, columns)


def build_targets(masks: Sequence[Rle], resized_hw: tuple[int, int], resolution: str) -> MaskTargets:
    """Bring the masks of an image, at least one, to the grid of the loss; see ``rasterize_target``."""
    targets = [rasterize_target(rle, resized_hw, resolution) for rle in masks]
    bits_NX = np.stack([np.packbits(target_RC) for target_RC in targets])
    return MaskTargets(torch.from_numpy(bits_NX), (targets[0].shape[0], targets[0].shape[1]))


def rasterize_target(rle: Rle, resized_hw: tuple[int, int], resolution: str) -> NDArray[np.uint8]:
    """Bring a mask to the grid of the loss, as the image was brought to the model.

    A pixel is foreground where about half of its area is, or more; at least one pixel is.

    Args:
        rle: mask at original size.
        resized_hw: size of the image inside the model's square.
        resolution: ``original``; ``input``, the image as it was resized; ``low``, the decoder's own cells, of which the last may
            lie in the image in part.

    Returns:
        uint8 [R, C], 0 or 1.
    """
    mask_HW = decode_rle(rle).view(np.uint8)
    if resolution == "original":
        return mask_HW
    resized_h, resized_w = resized_hw
    mask = Image.fromarray(mask_HW * 255)
    # PIL's box filter takes original pixels whole or not at all: exact for enlarging, but shrunk objects would grow.
    how = Image.Resampling.BILINEAR if resized_w * resized_h < mask.width * mask.height else Image.Resampling.BOX
    resized = mask.resize((resized_w, resized_h), how)
    stride = LOW_RES_STRIDE if resolution == "low" else 1
    grid = Image.new("L", (-(-resized_w // stride) * stride, -(-resized_h // stride) * stride))
    grid.paste(resized)
    target_RC: NDArray[np.uint8] = (np.asarray(grid.reduce(stride)) >= HALF_COVERED).astype(np.uint8)
    if not target_RC.any() and mask_HW.any():
        # An object smaller than a pixel is the pixel that it lies in: an empty target would teach to answer nothing.
        rows, columns = np.nonzero(mask_HW)
        row, column = rows.mean() * resized_h / mask.height, columns.mean() * resized_w / mask.width
        target_RC[int(row) // stride, int(column) // stride] = 1
    return target_RC
