"""What an exported model says of itself, so that a client needs nothing else: OpenVINO's Model API reads these keys."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from vpexp.data.geometry import MEAN, STD
from vpexp.inference.exported import MODEL_TYPES


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """What is known of the model that is exported.

    Attributes:
        model_name: name in the table of ``stage=models``.
        image_size: side of the model's square input, pixels.
        labels: class names of the data that it was trained on.
        source_hash: hash of the weights, the same in both parts.
    """

    model_name: str
    image_size: int
    labels: Sequence[str]
    source_hash: str


def build_model_info(info: ExportInfo, part: str, precision: str) -> dict[str, str]:
    """Build the entries of ``rt_info/model_info``.

    The first ones are Model API's. Its lists are separated by blanks, so that blanks inside a label become underscores
    there; ``label_names`` keeps them. ``pad_value`` is 0 after normalisation: the graph pads by itself.

    Args:
        info: the model.
        part: image_encoder or decoder.
        precision: FP32, FP16 or INT8.
    """
    from importlib.metadata import version

    return {
        "model_type": MODEL_TYPES[part],
        "task_type": "visual_prompting",
        "mean_values": " ".join(map(str, MEAN)),
        "scale_values": " ".join(map(str, STD)),
        "resize_type": "fit_to_window",
        "pad_value": "0",
        "reverse_input_channels": "False",
        "image_size": str(info.image_size),
        "labels": " ".join("_".join(label.split()) for label in info.labels),
        "label_names": json.dumps(list(info.labels)),
        "model_name": info.model_name,
        "precision": precision,
        "source_hash": info.source_hash,
        "vpexp_version": version("vpexp"),
    }
