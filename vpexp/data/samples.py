"""From annotated images to what a training step or an evaluation takes.

Legend: B images, N prompts of the whole batch, P points a prompt, S model size, R loss resolution (S or S/4).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vpexp.data.geometry import compute_resized_size, normalize_and_pad, resize_image, scale_points
from vpexp.data.images import read_image
from vpexp.data.masks import decode_rle
from vpexp.data.prompts import PromptRecipe, Prompts, build_evaluation_prompts, draw_training_prompts
from vpexp.data.types import AnnotatedImage, Rle
from vpexp.errors import DataError

HALF_COVERED = 128  # of 255


@dataclass(frozen=True, slots=True)
class EvaluationSample:
    """One image as it is, its annotations, and one prompt an object."""

    image_HW3: NDArray[np.uint8]
    annotations: AnnotatedImage
    prompts: Prompts


@dataclass(frozen=True, slots=True)
class UnreadableImage:
    """An image whose pixels turned out damaged when it was read; it is counted, not fatal."""

    image_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """One image at model size with the drawn prompts of its objects; fields as in ``Batch``."""

    image_id: str
    image_3SS: Tensor
    coords_NP2: Tensor
    labels_NP: Tensor
    targets_NRR: Tensor
    resized_hw: tuple[int, int]


@dataclass(slots=True)
class Batch:
    """All prompts of all images of a step on one flat axis.

    Attributes:
        images_B3SS: float32, normalised, padded right and bottom with zeros.
        image_index_N: int64, the image of each prompt.
        coords_NP2: float32, pixels of the resized image.
        labels_NP: float32, SAM's point labels (``Prompts``).
        targets_NRR: uint8, 0 or 1, at the loss resolution, 0 in the padding.
        resized_B2: int64, height and width of each image inside the padded square.
        image_ids: names, for messages.
        unreadable: images left out because their pixels are damaged.
    """

    images_B3SS: Tensor
    image_index_N: Tensor
    coords_NP2: Tensor
    labels_NP: Tensor
    targets_NRR: Tensor
    resized_B2: Tensor
    image_ids: list[str]
    unreadable: list[UnreadableImage]

    def to(self, device: torch.device) -> "Batch":
        """Copy the tensors to a device."""
        return Batch(
            self.images_B3SS.to(device, non_blocking=True),
            self.image_index_N.to(device, non_blocking=True),
            self.coords_NP2.to(device, non_blocking=True),
            self.labels_NP.to(device, non_blocking=True),
            self.targets_NRR.to(device, non_blocking=True),
            self.resized_B2.to(device, non_blocking=True),
            self.image_ids,
            self.unreadable,
        )


def rasterize_target(rle: Rle, resized_hw: tuple[int, int], image_size: int, stride: int) -> NDArray[np.uint8]:
    """Bring a mask into the padded square, as the image was brought there.

    Args:
        rle: mask at original size.
        resized_hw: size of the image inside the square.
        image_size: S.
        stride: 1 for a target at S, 4 at the size of the low-res logits. A pixel is foreground where about half of its
            area is, or more; at least one pixel is.

    Returns:
        uint8 [S/stride, S/stride], 0 or 1.
    """
    resized_h, resized_w = resized_hw
    mask = Image.fromarray(decode_rle(rle).view(np.uint8) * 255)
    square = Image.new("L", (image_size, image_size))
    # PIL's box filter takes original pixels whole or not at all: exact for enlarging, but shrunk objects would grow.
    how = Image.Resampling.BILINEAR if resized_w * resized_h < mask.width * mask.height else Image.Resampling.BOX
    square.paste(mask.resize((resized_w, resized_h), how))
    target_RR: NDArray[np.uint8] = (np.asarray(square.reduce(stride)) >= HALF_COVERED).astype(np.uint8)
    if not target_RR.any() and mask.getbbox() is not None:
        # An object smaller than a pixel is the pixel that it lies in: an empty target would teach to answer nothing.
        rows, columns = np.nonzero(np.asarray(mask))
        row, column = rows.mean() * resized_h / mask.height, columns.mean() * resized_w / mask.width
        target_RR[int(row) // stride, int(column) // stride] = 1
    return target_RR


class TrainingSet(Dataset[TrainingSample | UnreadableImage]):
    """The images of a split with freshly drawn prompts.

    Indexed by ``(epoch, index)``: what is drawn depends on the seed, the epoch and the image alone, never on the worker
    or on what was read before, so that a resumed run draws what an uninterrupted one would.
    """

    def __init__(
        self, images: Sequence[AnnotatedImage], *, image_size: int, recipe: PromptRecipe, stride: int, seed: int
    ) -> None:
        self.images = images
        self.image_size = image_size
        self.recipe = recipe
        self.stride = stride
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> TrainingSample | UnreadableImage:
        """Read an image and draw its prompts."""
        epoch, index = key
        annotations = self.images[index]
        rng = np.random.default_rng([self.seed, epoch, index])
        try:
            image_HW3 = read_image(annotations.path, annotations.exif_transpose)
        except DataError as error:
            return UnreadableImage(annotations.image_id, str(error))
        chosen_N = self._choose_objects(len(annotations.masks), rng)
        prompts = draw_training_prompts(annotations, chosen_N, self.recipe, rng)
        original_hw = (annotations.height, annotations.width)
        resized_hw = compute_resized_size(*original_hw, self.image_size)
        image_3SS = normalize_and_pad(resize_image(image_HW3, self.image_size), self.image_size)
        targets = [rasterize_target(annotations.masks[i], resized_hw, self.image_size, self.stride) for i in chosen_N]
        return TrainingSample(
            annotations.image_id,
            torch.from_numpy(image_3SS),
            torch.from_numpy(scale_points(prompts.coords_NP2, original_hw, resized_hw).astype(np.float32)),
            torch.from_numpy(prompts.labels_NP),
            torch.from_numpy(np.stack(targets)),
            resized_hw,
        )

    def _choose_objects(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        limit = self.recipe.max_per_image
        if limit is None or count <= limit:
            return np.arange(count)
        return np.sort(rng.permutation(count)[:limit])


class EvaluationSet(Dataset[EvaluationSample | UnreadableImage]):
    """The images of a split, unchanged, with fixed prompts for all objects."""

    def __init__(self, images: Sequence[AnnotatedImage], recipe: PromptRecipe) -> None:
        self.images = images
        self.recipe = recipe

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> EvaluationSample | UnreadableImage:
        """Read an image."""
        annotations = self.images[index]
        try:
            image_HW3 = read_image(annotations.path, annotations.exif_transpose)
        except DataError as error:
            return UnreadableImage(annotations.image_id, str(error))
        return EvaluationSample(image_HW3, annotations, build_evaluation_prompts(annotations, self.recipe))


def collate_training(items: Sequence[TrainingSample | UnreadableImage]) -> Batch | list[UnreadableImage]:
    """Put samples on one flat prompt axis; where no image of the step could be read, return what was wrong."""
    samples = [item for item in items if isinstance(item, TrainingSample)]
    unreadable = [item for item in items if isinstance(item, UnreadableImage)]
    if not samples:
        return unreadable
    counts = torch.tensor([len(sample.labels_NP) for sample in samples])
    return Batch(
        images_B3SS=torch.stack([sample.image_3SS for sample in samples]),
        image_index_N=torch.repeat_interleave(torch.arange(len(samples)), counts),
        coords_NP2=torch.cat([sample.coords_NP2 for sample in samples]),
        labels_NP=torch.cat([sample.labels_NP for sample in samples]),
        targets_NRR=torch.cat([sample.targets_NRR for sample in samples]),
        resized_B2=torch.tensor([sample.resized_hw for sample in samples]),
        image_ids=[sample.image_id for sample in samples],
        unreadable=unreadable,
    )


def collate_evaluation(items: Sequence[EvaluationSample | UnreadableImage]) -> EvaluationSample | UnreadableImage:
    """Evaluation goes image by image."""
    (item,) = items
    return item
