"""Images and masks as a user of the original packages reads them: PIL, pycocotools, torch.

Shapes: h w size of the image inside the model's square.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

MEAN = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
STD = torch.tensor([58.395, 57.12, 57.375])[:, None, None]


@dataclass(frozen=True, slots=True)
class PlainSample:
    """One image with its objects.

    Attributes:
        image_3SS: normalised and padded.
        boxes_N4: xyxy, pixels of the resized image.
        masks_NHW: uint8, at original size.
        labels: COCO's category ids.
        resized_hw: size of the image inside the square.
    """

    image_3SS: Tensor
    boxes_N4: Tensor
    masks_NHW: NDArray[np.uint8]
    labels: list[int]
    resized_hw: tuple[int, int]


class PlainImages(Dataset[PlainSample]):
    """A split of a COCO data set."""

    def __init__(self, root: Path, split: str, image_size: int, *, stretch: bool = False) -> None:
        self.root = root
        self.stretch = stretch
        self.image_size = image_size
        self.coco = COCO(str(root / "annotations" / f"instances_{split}.json"))
        self.ids = sorted(self.coco.getImgIds())

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> PlainSample:
        """Read an image and rasterise its objects."""
        record = self.coco.loadImgs(self.ids[index])[0]
        image = Image.open(self.root / "images" / record["file_name"]).convert("RGB")
        scale = self.image_size / max(image.size)
        width, height = (self.image_size if self.stretch else int(side * scale + 0.5) for side in image.size)
        resized = torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.BILINEAR)))
        image_3hw = (resized.permute(2, 0, 1).float() - MEAN) / STD
        annotations = self.coco.loadAnns(self.coco.getAnnIds(self.ids[index]))
        boxes_N4 = np.array([annotation["bbox"] for annotation in annotations])
        boxes_N4[:, 2:] += boxes_N4[:, :2]
        boxes_N4 *= np.array([width / image.width, height / image.height] * 2)
        return PlainSample(
            functional.pad(image_3hw, (0, self.image_size - width, 0, self.image_size - height)),
            torch.from_numpy(boxes_N4).float(),
            np.stack([self.coco.annToMask(annotation) for annotation in annotations]),
            [annotation["category_id"] for annotation in annotations],
            (height, width),
        )


def collate(samples: Sequence[PlainSample]) -> list[PlainSample]:
    """Keep images apart: each has its own number of objects."""
    return list(samples)
