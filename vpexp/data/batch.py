"""From annotated images to what a training step or an evaluation takes.

Truths are masks on the grid of the loss, without padding, eight pixels a byte: so the masks of an image with hundreds of
objects travel from the workers in the room of a few. They are unpacked as they are needed.

Legend: B images, N prompts of the whole batch or of one image, P points a prompt, S model size, K images with a stored
embedding, C channels, H W original size, or rows and columns of an embedding, h w size of the image inside the model's
square, R C rows and columns of the loss's grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vpexp.config.schema import PromptConfig
from vpexp.data.annotations import AnnotatedImage, Rle
from vpexp.data.geometry import compute_resized_size, normalize_and_pad, resize_image, scale_points
from vpexp.data.images import read_image
from vpexp.data.interface import FIT
from vpexp.data.masks import decode_rle
from vpexp.data.prompts import (
    Prompts,
    build_evaluation_prompts,
    draw_corrections,
    draw_training_prompts,
    prompts_from_boxes,
)
from vpexp.data.tiles import TiledImages, put_back
from vpexp.data.variants import PHOTO, change_photo, draw_variant, list_variants, turn_annotations, turn_pixels
from vpexp.errors import DataError

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


@dataclass(frozen=True, slots=True)
class EvaluationSample:
    """One image as it is, its annotations, and one prompt an object.

    Attributes:
        image_HW3: RGB uint8; None where the embedding is stored and the pixels were not read.
        annotations: its objects.
        prompts: one an object, pixels of the original image.
        embedding_CHW: the stored embedding; None where there is none.
        tiles: what the model is shown of an image that is cut into tiles, and that has no pixels, prompts and embedding of its
            own then: samples in the frames of the tiles.
        image: the image that a tile is of; None: this is no tile.
        image_objects_N: int64, the objects of a tile, by their places in the image; None: this is no tile.
    """

    image_HW3: NDArray[np.uint8] | None
    annotations: AnnotatedImage
    prompts: Prompts
    embedding_CHW: NDArray[Any] | None = None
    tiles: "Sequence[EvaluationSample]" = ()
    image: AnnotatedImage | None = None
    image_objects_N: NDArray[np.int64] | None = None

    @property
    def views(self) -> "Sequence[EvaluationSample]":
        """What the model is shown: the tiles, or the image itself."""
        return self.tiles or (self,)

    @property
    def objects_N(self) -> NDArray[np.int64]:
        """The objects of this view, by their places in the image."""
        return np.arange(len(self.annotations)) if self.image_objects_N is None else self.image_objects_N

    def list_truths(self, part: slice = slice(None)) -> list[Rle]:
        """List the annotated masks of some objects of this view in the image's frame, whole where a tile cuts them."""
        image = self.annotations if self.image is None else self.image
        return [image.masks[index] for index in self.objects_N[part].tolist()]

    def put_back(self, masks: Sequence[Rle]) -> list[Rle]:
        """Bring masks from the frame of this view into that of the image."""
        image, window = self.image, self.annotations.window
        return (
            list(masks)
            if image is None or window is None
            else [put_back(m, window, image.height, image.width) for m in masks]
        )


@dataclass(frozen=True, slots=True)
class UnreadableImage:
    """An image whose pixels turned out damaged when it was read; it is counted, not fatal."""

    image_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """One image at model size with the drawn prompts of its objects; fields as in ``Batch``.

    Either ``image_3SS`` or ``embedding_CHW`` is None.
    """

    image_id: str
    image_3SS: Tensor | None
    coords_NP2: Tensor
    labels_NP: Tensor
    targets: MaskTargets
    resized_hw: tuple[int, int]
    click_draws_NR: Tensor
    embedding_CHW: NDArray[Any] | None = None
    embedding_key: str | None = None


@dataclass(slots=True)
class Batch:
    """All prompts of all images of a step on one flat axis.

    Attributes:
        images_B3SS: float32, normalised, padded right and bottom with zeros; only the images that are to be encoded:
            with an embedding cache, those whose embedding is not stored.
        image_index_N: int64, the image of each prompt.
        coords_NP2: float32, pixels of the resized image.
        labels_NP: float32, SAM's point labels (``Prompts``); always on the CPU, where they decide what is computed.
        targets: the masks of each image's prompts, in the order of the images.
        resized_B2: int64, height and width of each image inside the padded square; always on the CPU.
        click_draws_NR: float32, where the clicks fall that correct each prompt's mask (``draw_corrections``); R may be 0.
        image_ids: names, for messages.
        unreadable: images left out because their pixels are damaged.
        embeddings_KCHW: float16 or float32, the stored embeddings; None where no image's is.
        stored_places: which images of the step these belong to; the others are in ``images_B3SS``, in order.
        embedding_keys: by which the embedding of each image of the step is stored; None: it is not to be.
    """

    images_B3SS: Tensor
    image_index_N: Tensor
    coords_NP2: Tensor
    labels_NP: Tensor
    targets: list[MaskTargets]
    resized_B2: Tensor
    click_draws_NR: Tensor
    image_ids: list[str]
    unreadable: list[UnreadableImage]
    embeddings_KCHW: Tensor | None = None
    stored_places: list[int] = field(default_factory=list)
    embedding_keys: list[str | None] = field(default_factory=list)

    def to(self, device: torch.device) -> "Batch":
        """Copy the tensors to a device, but for what is looked at on the CPU: reading it there would wait for a GPU."""
        return Batch(
            self.images_B3SS.to(device, non_blocking=True),
            self.image_index_N.to(device, non_blocking=True),
            self.coords_NP2.to(device, non_blocking=True),
            self.labels_NP,
            [targets.to(device) for targets in self.targets],
            self.resized_B2,
            self.click_draws_NR,
            self.image_ids,
            self.unreadable,
            None if self.embeddings_KCHW is None else self.embeddings_KCHW.to(device, non_blocking=True),
            self.stored_places,
            self.embedding_keys,
        )

    def pin_memory(self) -> "Batch":
        """Copy what goes to a GPU into memory from which that copies while the CPU goes on; ``DataLoader`` asks for it."""
        return replace(
            self,
            images_B3SS=self.images_B3SS.pin_memory(),
            image_index_N=self.image_index_N.pin_memory(),
            coords_NP2=self.coords_NP2.pin_memory(),
            targets=[replace(targets, bits_NX=targets.bits_NX.pin_memory()) for targets in self.targets],
            embeddings_KCHW=None if self.embeddings_KCHW is None else self.embeddings_KCHW.pin_memory(),
        )


class EmbeddingReader(Protocol):
    """Gives the stored embeddings of images: ``StoredEmbeddings`` of ``vpexp.embeddings``."""

    def find_key(self, image: AnnotatedImage) -> str | None:
        """Return an image's key; None where its embedding is not to be kept."""
        ...

    def read(self, image: AnnotatedImage) -> NDArray[Any] | None:
        """Return an image's embedding [C, H, W]; None where there is none, or a damaged one."""
        ...


class TrainingSet(Dataset[TrainingSample | UnreadableImage]):
    """The images of a split with freshly drawn prompts.

    Indexed by ``(epoch, index)``: what is drawn depends on the seed, the epoch and the image alone, never on the worker
    or on what was read before, so that a resumed run draws what an uninterrupted one would.

    With ``embeddings``, pixels are read only of images whose embedding is missing or damaged. ``augment`` says how images are changed, see
    ``vpexp.data.variants``; what is ``photo`` has no meaning where embeddings are stored.
    """

    def __init__(
        self,
        images: Sequence[AnnotatedImage],
        *,
        image_size: int,
        recipe: PromptConfig,
        resolution: str,
        seed: int,
        embeddings: EmbeddingReader | None = None,
        resize: str = FIT,
        augment: Sequence[str] = (),
    ) -> None:
        self.images = images
        self.image_size = image_size
        self.resize = resize
        self.augment = augment
        self.variants = list_variants(augment)
        self.recipe = recipe
        self.resolution = resolution
        self.seed = seed
        self.embeddings = embeddings

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> TrainingSample | UnreadableImage:
        """Read an image, or its embedding, and draw its prompts."""
        epoch, index = key
        variant = draw_variant(self.variants, self.seed, epoch, index)
        annotations = turn_annotations(self.images[index], variant)
        rng = np.random.default_rng([self.seed, epoch, index])
        embedding_CHW = self.embeddings.read(annotations) if self.embeddings else None
        try:
            image_3SS = self._read_pixels(annotations, epoch, index) if embedding_CHW is None else None
        except DataError as error:
            return UnreadableImage(annotations.image_id, str(error))
        chosen_N = self._choose_objects(len(annotations.masks), rng)
        prompts = draw_training_prompts(annotations, chosen_N, self.recipe, rng)
        original_hw = (annotations.height, annotations.width)
        resized_hw = compute_resized_size(*original_hw, self.image_size, self.resize)
        targets = build_targets([annotations.masks[i] for i in chosen_N], resized_hw, self.resolution)
        return TrainingSample(
            annotations.image_id,
            image_3SS,
            torch.from_numpy(scale_points(prompts.coords_NP2, original_hw, resized_hw).astype(np.float32)),
            torch.from_numpy(prompts.labels_NP),
            targets,
            resized_hw,
            torch.from_numpy(draw_corrections(len(chosen_N), self.recipe, rng)),
            embedding_CHW,
            self.embeddings.find_key(annotations) if self.embeddings else None,
        )

    def _read_pixels(self, annotations: AnnotatedImage, epoch: int, index: int) -> Tensor:
        image_HW3 = read_image(annotations.path, annotations.exif_transpose, window=annotations.window)
        turned_HW3 = turn_pixels(image_HW3, annotations.variant)
        resized_hw3 = resize_image(turned_HW3, self.image_size, self.resize)
        if PHOTO in self.augment and self.embeddings is None:  # else it would be stored as the image's own
            resized_hw3 = change_photo(resized_hw3, self.seed, epoch, index)
        return torch.from_numpy(normalize_and_pad(resized_hw3, self.image_size))

    def _choose_objects(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        limit = self.recipe.max_per_image
        if limit is None or count <= limit:
            return np.arange(count)
        return np.sort(rng.permutation(count)[:limit])


class EvaluationSet(Dataset[EvaluationSample | UnreadableImage]):
    """The images of a split, unchanged, with fixed prompts for all objects.

    Args:
        images: of the split; where they are cut into tiles, an item is a whole image with its tiles.
        recipe: how prompts are made.
        embeddings: read instead of the pixels where they are stored.
        read_first: so many images are read all the same, with their embeddings, for the encoder to be timed on.
    """

    def __init__(
        self,
        images: Sequence[AnnotatedImage],
        recipe: PromptConfig,
        *,
        embeddings: EmbeddingReader | None = None,
        read_first: int = 0,
    ) -> None:
        self.tiles = images if isinstance(images, TiledImages) else None
        self.images = images if self.tiles is None else self.tiles.whole
        self.recipe = recipe
        self.embeddings = embeddings
        self.read_first = read_first

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> EvaluationSample | UnreadableImage:
        """Read an image, or its embedding; or its tiles, or their embeddings."""
        if self.tiles is None:
            image = self.images[index]
            views = [(image, np.arange(len(image)))]
        else:
            image, views = self.tiles.cut_image(index)
        embeddings = [self.embeddings.read(view) if self.embeddings else None for view, _ in views]
        unread = [embedding_CHW is None or index < self.read_first for embedding_CHW in embeddings]
        try:
            image_HW3 = read_image(image.path, image.exif_transpose) if any(unread) else None
        except DataError as error:
            return UnreadableImage(image.image_id, str(error))
        samples = []
        for (view, objects_N), is_unread, embedding_CHW in zip(views, unread, embeddings, strict=True):
            pixels = image_HW3 if is_unread else None
            if pixels is not None and view.window is not None:
                pixels = pixels[view.window.slices]
            prompts = build_evaluation_prompts(view, self.recipe)
            tile_of = (image, objects_N) if self.tiles else (None, None)
            samples.append(EvaluationSample(pixels, view, prompts, embedding_CHW, (), *tile_of))
        if self.tiles is None:
            return samples[0]
        return EvaluationSample(None, image, prompts_from_boxes(np.zeros((0, 4), np.float32)), tiles=samples)


def collate_training(items: Sequence[TrainingSample | UnreadableImage]) -> Batch | list[UnreadableImage]:
    """Put samples on one flat prompt axis; where no image of the step could be read, return what was wrong."""
    samples = [item for item in items if isinstance(item, TrainingSample)]
    unreadable = [item for item in items if isinstance(item, UnreadableImage)]
    if not samples:
        return unreadable
    counts = torch.tensor([len(sample.labels_NP) for sample in samples])
    pixels = [sample.image_3SS for sample in samples if sample.image_3SS is not None]
    stored = [sample.embedding_CHW for sample in samples if sample.embedding_CHW is not None]
    return Batch(
        images_B3SS=torch.stack(pixels) if pixels else torch.zeros(0, 3, 0, 0),
        image_index_N=torch.repeat_interleave(torch.arange(len(samples)), counts),
        coords_NP2=torch.cat([sample.coords_NP2 for sample in samples]),
        labels_NP=torch.cat([sample.labels_NP for sample in samples]),
        targets=[sample.targets for sample in samples],
        resized_B2=torch.tensor([sample.resized_hw for sample in samples]),
        click_draws_NR=torch.cat([sample.click_draws_NR for sample in samples]),
        image_ids=[sample.image_id for sample in samples],
        unreadable=unreadable,
        embeddings_KCHW=torch.from_numpy(np.stack(stored)) if stored else None,
        stored_places=[place for place, sample in enumerate(samples) if sample.embedding_CHW is not None],
        embedding_keys=[sample.embedding_key for sample in samples],
    )


def collate_evaluation(items: Sequence[EvaluationSample | UnreadableImage]) -> EvaluationSample | UnreadableImage:
    """Evaluation goes image by image."""
    (item,) = items
    return item
