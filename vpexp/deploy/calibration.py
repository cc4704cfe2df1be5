"""What quantization looks at: training images and prompts on them, as the two exported parts take them.

Shapes: N prompts, P points a prompt, S model input size, h w size of the resized image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vpexp.config.schema import PromptConfig
from vpexp.console import build_progress
from vpexp.data.annotations import AnnotatedImage, with_objects
from vpexp.data.geometry import compute_resized_size, normalize_and_pad, resize_image, scale_points
from vpexp.data.images import read_image
from vpexp.data.interface import FIT
from vpexp.data.prompts import Prompts, draw_training_prompts
from vpexp.errors import DataError
from vpexp.inference.graph_predictor import Arrays, build_decoder_inputs

MAX_PROMPTS = 12  # of one decoder call: more of the same image add time, hardly another value

PartInputs = dict[str, NDArray[np.generic]]
"""The inputs of an exported part, by the names of its ports."""


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationImage:
    """One image, resized, and the prompts that its objects are asked with.

    Attributes:
        image_id: name of the image.
        image_hw3: uint8, resized but neither normalised nor padded: a quarter of the memory of the model's input.
        calls: one entry a decoder call; coordinates are pixels of the resized image.
    """

    image_id: str
    image_hw3: NDArray[np.uint8]
    calls: tuple[Prompts, ...]


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationSet:
    """The images that both parts are calibrated on.

    Attributes:
        images: those that could be read.
        image_size: S.
        unreadable: image name -> what was wrong, of those that were passed over.
    """

    images: tuple[CalibrationImage, ...]
    image_size: int
    unreadable: dict[str, str]

    def __len__(self) -> int:
        return len(self.images)

    def build_encoder_inputs(self, index: int) -> PartInputs:
        """Build the image encoder's input of an image: ``images`` float32 [1, 3, S, S], normalised and padded."""
        return {"images": normalize_and_pad(self.images[index].image_hw3, self.image_size)[None]}

    def build_decoder_inputs(self, embeddings: Sequence[Arrays]) -> list[PartInputs]:
        """Build the decoder's inputs of all calls on all images.

        Args:
            embeddings: maps of each image by name.
        """
        # Not the original size: masks are only enlarged to it, behind everything that is quantized.
        return [
            build_decoder_inputs(maps, prompts, (image.image_hw3.shape[0], image.image_hw3.shape[1]))
            for image, maps in zip(self.images, embeddings, strict=True)
            for prompts in image.calls
        ]


def read_calibration_set(
    images: Sequence[AnnotatedImage],
    *,
    image_size: int,
    recipe: PromptConfig,
    count: int,
    seed: int,
    resize: str = FIT,
) -> CalibrationSet:
    """Draw training images and prompts on them, with progress; the same seed and images give the same set.

    Every image is asked by boxes and by points, whatever ``recipe.type`` is: a client of the exported model may send
    either, and values that calibration never saw would be cut off.

    Args:
        images: the training split.
        image_size: S.
        recipe: jitter of the boxes.
        count: at most so many images; damaged ones are replaced by others.
        seed: decides the images and the prompts.
        resize: how an image becomes the square, see ``compute_resized_size``.

    Raises:
        DataError: no image has an object, or none can be read.
    """
    candidates = with_objects(images)
    if not len(candidates):
        raise DataError("the train split has no image with an object: nothing to calibrate on")
    read: list[CalibrationImage] = []
    unreadable: dict[str, str] = {}
    with build_progress() as progress:
        task = progress.add_task("reading images to calibrate on", total=min(count, len(candidates)))
        for index in np.random.default_rng(seed).permutation(len(candidates)):
            if len(read) == count:
                break
            image = candidates[int(index)]
            try:
                image_HW3 = read_image(image.path, image.exif_transpose, window=image.window)
            except DataError as error:
                unreadable[image.image_id] = str(error)
                continue
            resized_hw = compute_resized_size(image.height, image.width, image_size, resize)
            calls = _draw_calls(image, resized_hw, recipe, np.random.default_rng([seed, int(index)]))
            read.append(CalibrationImage(image.image_id, resize_image(image_HW3, image_size, resize), calls))
            progress.advance(task)
    if not read:
        raise DataError(
            f"none of the {len(candidates)} images of the train split can be read: {next(iter(unreadable.values()))}"
        )
    return CalibrationSet(tuple(read), image_size, unreadable)


def _draw_calls(
    image: AnnotatedImage, resized_hw: tuple[int, int], recipe: PromptConfig, rng: np.random.Generator
) -> tuple[Prompts, ...]:
    """Draw what the decoder is asked of an image: all objects at once by boxes, and by points; one alone by each."""
    original_hw = (image.height, image.width)
    chosen_N = np.sort(rng.permutation(len(image.masks))[:MAX_PROMPTS])
    calls = []
    for kind in ("box", "point"):
        prompts = draw_training_prompts(image, chosen_N, replace(recipe, type=kind), rng)
        prompts = Prompts(scale_points(prompts.coords_NP2, original_hw, resized_hw), prompts.labels_NP)
        calls.append(prompts)
        alone = prompts.select(slice(0, 1))
        if kind == "point":  # as the Model API sends it: one point, no filling
            alone = Prompts(alone.coords_NP2[:, :1], alone.labels_NP[:, :1])
        calls.append(alone)
    return tuple(calls)
