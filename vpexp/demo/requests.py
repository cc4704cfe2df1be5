"""What requests hold, read and checked; a text, a label, masks, an image's or a mask's own name."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from vpexp.data.annotations import Rle
from vpexp.data.masks import MaskError, check_rle, compute_area
from vpexp.demo.server import RequestError
from vpexp.demo.store import NewMask

MOST_BYTES = 8 * 1024 * 1024  # of a request: the masks of an image that are accepted at once
LONGEST_NAME = 100  # of a label, or of the page's own name of a mask
BY_HAND = {"by": "hand"}
"""The prompt of a mask that was drawn."""
PROMPT = ("box", "points", "point_labels", "mask", "by")
"""What the prompt of a mask that is accepted may say."""
LONGEST_PROMPT = 64 * 1024


async def read_body(request: Request) -> dict[str, Any]:
    """Read a JSON object; the media type is one that other sites' pages cannot send without asking.

    Raises:
        RequestError: it is none, or too long.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise RequestError(415, "send application/json")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise RequestError(413, f"a request has at most {MOST_BYTES} bytes")
    try:
        content = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise RequestError(400, "the request is no readable JSON") from None
    if not isinstance(content, dict):
        raise RequestError(400, "the request is no JSON object")
    return content


def read_text(content: Mapping[str, Any], name: str) -> str:
    """Read a text of a line.

    Raises:
        RequestError: it is none, empty, or too long.
    """
    value = content.get(name)
    if not isinstance(value, str) or not value.strip() or len(value) > LONGEST_NAME or not value.isprintable():
        raise RequestError(400, f"{name} must be a text of 1 to {LONGEST_NAME} characters")
    return value


def read_label(content: Mapping[str, Any], name: str = "label") -> str:
    """Read what a mask may be called; errors as of ``read_text``."""
    return " ".join(read_text(content, name).split())


def read_version(content: Mapping[str, Any]) -> int | None:
    """Read which model gave the mask that a page shows; None where it does not say."""
    version = content.get("version")
    return version if isinstance(version, int) and not isinstance(version, bool) else None


def read_pixels(content: Mapping[str, Any], height: int, width: int) -> Rle:
    """Read the run lengths of a mask of an image of this size.

    Raises:
        RequestError: they are none, of another size, or empty.
    """
    try:
        rle = check_rle(content.get("mask"), height, width)
    except (MaskError, TypeError, ValueError) as error:
        raise RequestError(400, f"mask: {error}") from error
    if not compute_area(rle):
        raise RequestError(409, "the mask is empty: nothing was changed")
    return rle


def read_masks(content: Mapping[str, Any], height: int, width: int) -> list[NewMask]:
    """Read masks that are accepted: each with its label, score and prompt.

    Raises:
        RequestError: one is not as the server proposed it.
    """
    masks = content.get("masks")
    if not isinstance(masks, list) or not all(isinstance(mask, dict) for mask in masks):
        raise RequestError(400, "masks must be a list of masks")
    return [
        NewMask(read_label(mask), read_pixels(mask, height, width), _read_score(mask), _read_prompt(mask))
        for mask in masks
    ]


def _read_score(content: Mapping[str, Any]) -> float | None:
    score = content.get("score")
    if score is None:
        return None
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise RequestError(400, "score must be a number from 0 to 1")
    return float(score)


def _read_prompt(content: Mapping[str, Any]) -> dict[str, Any]:
    prompt = content.get("prompt", {})
    if not isinstance(prompt, dict) or not prompt.keys() <= set(PROMPT) or len(json.dumps(prompt)) > LONGEST_PROMPT:
        raise RequestError(400, f"prompt may hold {', '.join(PROMPT)}")
    return prompt
