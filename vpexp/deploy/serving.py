"""What a server of masks is asked and answers: one record an image, in what JSON can hold.

    {"image": "<base64 of a PNG or JPEG file>", "boxes": [[x1, y1, x2, y2]], "points": [[[x, y]]], "point_labels": [[1]]}
    {"masks": [{"size": [H, W], "counts": "..."}], "iou": [0.93], "boxes": [[x1, y1, x2, y2]]}

Each box is one prompt and each set of points is another; the answer has one mask for each prompt, boxes first, as COCO
run lengths (``pycocotools.mask.decode``), with the predicted IoU and the bounds of the mask. All in pixels of the image as
viewers show it. This is imported where a model is served: it needs no torch and no MLflow.
"""

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpexp.data.annotations import SCORE_DIGITS
from vpexp.data.image_files import ImageFileError
from vpexp.data.images import read_image
from vpexp.data.masks import compute_box, rle_to_json
from vpexp.errors import DataError
from vpexp.inference.predictor import Predictor
from vpexp.inference.prompt_file import ImagePrompts, fit_prompts, parse_prompts
from vpexp.inference.segment import decode_in_chunks

IMAGE = "image"
PROMPTS = ("boxes", "points", "point_labels")
DATA_URL = "base64,"  # browsers put the file's type before it


def answer(predictor: Predictor, record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Segment what the prompts of one image show.

    Args:
        predictor: any backend.
        record: image and prompts.
        name: of the record, for errors.

    Raises:
        DataError: the record cannot be used; the message says what is wrong with it.
    """
    given = {key: to_plain(value) for key, value in record.items()}
    image_HW3 = _read_image(given.get(IMAGE), name)
    image_prompts = _read_prompts(given, name, image_HW3.shape)
    embedding = predictor.embed(image_HW3)
    reply: dict[str, list[Any]] = {"masks": [], "iou": [], "boxes": []}
    for _, prediction in decode_in_chunks(predictor, embedding, image_prompts.prompts):
        for rle, score in zip(prediction.encode_masks(), prediction.iou.tolist(), strict=True):
            reply["masks"].append(rle_to_json(rle))
            reply["iou"].append(round(score, SCORE_DIGITS))
            reply["boxes"].append(compute_box(rle).tolist())
    return reply


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
