"""A real image with prompts, to try an exported model on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vpexp.config.schema import DataConfig, PromptConfig, SyntheticConfig
from vpexp.data.annotations import AnnotatedDataset
from vpexp.data.batch import EvaluationSample, EvaluationSet
from vpexp.data.dataset import load_dataset
from vpexp.data.prompts import Prompts, build_evaluation_prompts
from vpexp.errors import VpexpError
from vpexp.stages.shared.context import RunContext
from vpexp.stages.shared.dataset import read_configured_dataset
from vpexp.synthetic.dataset import write_synthetic_dataset

MOST_PROMPTS = 16


@dataclass(frozen=True, slots=True)
class TrialImage:
    """An image, what it is, and prompts on it.

    Attributes:
        name: for messages.
        image_HW3: RGB uint8.
        prompts: one set of boxes and one of points, pixels of the image, at most 16 each.
    """

    name: str
    image_HW3: NDArray[np.uint8]
    prompts: list[Prompts]


def find_trial_image(context: RunContext) -> TrialImage:
    """Take an image of the configured data set; where that is not at hand, a drawn one."""
    try:
        found = _take_first(read_configured_dataset(context, ("val",)), "val")
    except VpexpError:
        found = None  # a checkpoint may be exported where its data are not
    if found is not None:
        return found
    root = write_synthetic_dataset(context.cache_dir / "synthetic", SyntheticConfig(train=1, val=1, test=1))
    drawn = _take_first(load_dataset(DataConfig(format="coco", root=str(root)), splits=("val",)), "val")
    assert drawn is not None
    return drawn


def _take_first(dataset: AnnotatedDataset, split: str) -> TrialImage | None:
    for index, image in enumerate(dataset.splits[split].images):
        sample = EvaluationSet(dataset.splits[split].images, PromptConfig())[index]
        if len(image) and isinstance(sample, EvaluationSample) and sample.image_HW3 is not None:
            chosen = slice(0, MOST_PROMPTS)
            prompts = [build_evaluation_prompts(image, PromptConfig(kind)).select(chosen) for kind in ("box", "point")]
            return TrialImage(image.image_id, sample.image_HW3, prompts)
    return None
