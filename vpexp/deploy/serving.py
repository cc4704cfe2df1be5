"""What a server of masks is asked and answers: one record an image, in what JSON can hold.

    {"image": "<base64 of a PNG or JPEG file>", "boxes": [[x1, y1, x2, y2]], "points": [[[x, y]]], "point_labels": [[1]]}
    {"masks": [{"size": [H, W], "counts": "..."}], "iou": [0.93], "boxes": [[x1, y1, x2, y2]]}
    {"image": "..."}
    {"masks": [...], "iou": [0.81], "boxes": [...], "scores": [0.81], "labels": ["apple"]}

Each box is one prompt and each set of points is another; the answer has one mask for each prompt, boxes first, as COCO
run lengths (``pycocotools.mask.decode``), with the predicted IoU and the bounds of the mask. All in pixels of the image as
viewers show it. An image without prompts is answered with the objects that the model finds, best first, by their scores and
classes; an image larger than the tiles that the model was trained on is cut likewise. This is imported where a model is served: it needs no torch and no MLflow.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpexp.data.annotations import SCORE_DIGITS, Rle
from vpexp.data.image_files import ImageFileError
from vpexp.data.images import read_image
from vpexp.data.masks import compute_box, rle_to_json
from vpexp.data.tiles import Tiling
from vpexp.errors import DataError
from vpexp.inference.graph_predictor import GraphPredictor
from vpexp.inference.instances import find_instances
from vpexp.inference.prompt_file import ImagePrompts, fit_prompts, parse_prompts
from vpexp.inference.segment import decode_in_chunks

IMAGE = "image"
PROMPTS = ("boxes", "points", "point_labels")
DATA_URL = "base64,"  # browsers put the file's type before it


def answer(predictor: GraphPredictor, record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Segment what the prompts of one image show, or without prompts what the model finds.

    Args:
        predictor: of an exported model.
        record: image and prompts.
        name: of the record, for errors.

    Raises:
        DataError: the record cannot be used; the message says what is wrong with it.
    """
    given = {key: to_plain(value) for key, value in record.items()}
    image_HW3 = _read_image(given.get(IMAGE), name)
    if all(given.get(key) is None for key in PROMPTS):
        return _find(predictor, image_HW3, name)
    image_prompts = _read_prompts(given, name, image_HW3.shape)
    embedding = predictor.embed(image_HW3)
    found = [
        (rle, score)
        for _, prediction in decode_in_chunks(predictor, embedding, image_prompts.prompts)
        for rle, score in zip(prediction.encode_masks(), prediction.iou.tolist(), strict=True)
    ]
    return _build_reply(found)


def _find(predictor: GraphPredictor, image_HW3: NDArray[np.uint8], name: str) -> dict[str, Any]:
    if predictor.instances is None:
        raise DataError(
            f"{name!r}: give boxes, points, or both: this model has no prompter, which finds objects by itself"
        )
    metadata = predictor.metadata
    tiling = None if metadata.tile is None else Tiling(metadata.tile, metadata.tile_overlap)
    _, found = find_instances(predictor, image_HW3, tiling)
    reply = _build_reply([(mask.rle, mask.score) for mask in found.masks])
    return reply | {"scores": reply["iou"], "labels": [mask.label for mask in found.masks]}


def _build_reply(found: Sequence[tuple[Rle, float]]) -> dict[str, Any]:
    return {
        "masks": [rle_to_json(rle) for rle, _ in found],
        "iou": [round(score, SCORE_DIGITS) for _, score in found],
        "boxes": [compute_box(rle).tolist() for rle, _ in found],
    }


def to_plain(value: Any) -> Any:
    """Turn arrays into lists, and the NaN of a table's empty cell into None."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [to_plain(entry) for entry in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def _read_image(text: Any, name: str) -> NDArray[np.uint8]:
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{name!r}: {IMAGE} is missing: give the base64 text of an image file")
    try:
        content = base64.b64decode("".join(text.rpartition(DATA_URL)[2].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{name!r}: {IMAGE} is no base64 text ({error})") from error
    try:
        return read_image(Path(IMAGE), content=content)
    except ImageFileError as error:
        raise DataError(f"{name!r}: {IMAGE} cannot be read: {error.reason}") from error


def _read_prompts(given: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> ImagePrompts:
    entry = {key: given[key] for key in PROMPTS if given.get(key) is not None}
    if not entry.keys() & {"boxes", "points"}:
        raise DataError(f"{name!r}: give boxes, points, or both")
    return fit_prompts(parse_prompts(name, entry), height=shape[0], width=shape[1], origin=repr(name))
