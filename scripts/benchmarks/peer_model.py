"""The peer's own model and data set, as its recipe ``visual_prompting/sam_*.yaml`` sets them.

Runs in the peer's interpreter, so it imports nothing of vpexp. Nothing of the peer is changed but the place that its
weights come from: its constructor wants to download them.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from scripts.benchmarks.peer_scenes import Scene

LEARNING_RATE = 1e-5
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def build_model(name: str, image_size: int, weights: Path | None) -> Any:
    """Build the peer's model with a file's weights, or random ones, and its recipe's optimizer."""
    import torch

    def load_file(url: str, *_: Any, **__: Any) -> dict[str, Any]:
        if weights is None:
            raise ValueError(f"{url} is not downloaded")  # the peer's loader catches this, and keeps random weights
        return dict(torch.load(weights, map_location="cpu", weights_only=True))

    torch.hub.load_state_dict_from_url = load_file
    try:
        from otx.algo.visual_prompting.sam import SAM
    except ImportError as error:
        sys.exit(f"{sys.executable}: no visual prompting of OTX 2.2 to 2.4 there ({error})")
    model = SAM(name, input_size=(image_size, image_size), optimizer=partial(torch.optim.Adam, lr=LEARNING_RATE))
    if weights is not None:
        check_weights(model.model.state_dict(), load_file(""))
    model.configure_metric()
    return model


def check_weights(taken: dict[str, Any], given: dict[str, Any]) -> None:
    """Stop where the peer did not take all the weights: its loader logs what it cannot load, and goes on."""
    import torch

    wrong = [name for name, value in taken.items() if name not in given or not torch.equal(value, given[name])]
    if wrong:
        sys.exit(
            f"the peer did not take {len(wrong)} of its {len(taken)} weights, such as {wrong[0]}: another model's?"
        )


def build_reader(scenes: Sequence[Scene], image_size: int) -> Any:
    """Build the peer's data set with its recipe's transforms; its memory cache of decoded images is off."""
    import torch
    import torchvision.transforms.v2 as tvt_v2
    from datumaro import Dataset, DatasetItem
    from datumaro import Polygon as DatumaroPolygon
    from datumaro.components.media import Image
    from otx.core.data.dataset.visual_prompting import OTXVisualPromptingDataset
    from otx.core.data.transform_libs.torchvision import Compose, Pad, Resize

    items = [
        DatasetItem(
            id=str(index),
            subset="train",
            media=Image.from_file(path=str(path)),
            annotations=[DatumaroPolygon(outline, label=0, id=number) for number, outline in enumerate(outlines)],
        )
        for index, (path, outlines) in enumerate(scenes)
    ]
    transforms = [
        Resize(scale=(image_size, image_size), keep_ratio=True, transform_bbox=True),
        Pad(pad_to_square=True, is_numpy_to_tvtensor=True),
        tvt_v2.ToDtype(dtype=torch.float32),
        tvt_v2.Normalize(mean=MEAN, std=STD),
    ]
    return OTXVisualPromptingDataset(
        Dataset.from_iterable(items, categories=["object"]),
        Compose(transforms),
        use_bbox=True,
        use_point=False,
        stack_images=False,
        to_tv_image=False,
    )
