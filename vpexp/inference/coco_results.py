"""Predictions as COCO results: ``predictions.json`` and, because they refer to images by number, ``images.json``.

COCO("images.json").loadRes("predictions.json")
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from vpexp.data.annotations import SCORE_DIGITS, Rle
from vpexp.data.masks import compute_box, rle_to_json
from vpexp.data.prompts import POINT_IN, POINT_OUT, Prompts
from vpexp.files import write_lines

PREDICTIONS = "predictions.json"
IMAGES = "images.json"


class CocoResultWriter:
    """Writes results image by image into a draft, and moves it into place at the end, whatever ended it.

    Used as a context. Where it is left by an error or by Ctrl-C, what was added until then is written; where nothing was,
    no file is. Neither file is ever there by half.

    Args:
        folder: where both files go.
        categories: names; the first has the id 1.
    """

    def __init__(self, folder: Path, categories: Sequence[str]) -> None:
        self.folder = folder
        self.category_ids = {name: number for number, name in enumerate(categories, start=1)}
        self.images: list[dict[str, Any]] = []
        self.count = 0
        self._draft = folder / f".{PREDICTIONS}.{os.getpid()}"
        self._end = 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        self._file = self._draft.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._finish()
        except OSError:
            if error is None:  # otherwise the first error tells more
                raise
        finally:
            self._draft.unlink(missing_ok=True)

    @property
    def predictions(self) -> Path:
        """The file of results."""
        return self.folder / PREDICTIONS

    @property
    def image_list(self) -> Path:
        """The file of images and categories."""
        return self.folder / IMAGES

    def add(self, image: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
        """Add an image (``id file_name width height``) and its results; both count only once both are there."""
        assert self._file is not None
        lines = [json.dumps(result, allow_nan=False) for result in results]
        if lines:
            start = b",\n" if self._end else b"[\n"
            self._file.write(start + ",\n".join(lines).encode())
        # An image without results does no harm, results without their image cannot be loaded: so the image goes first.
        self.images.append(dict(image))
        self._end = self._file.tell()
        self.count += len(lines)

    def _finish(self) -> None:
        assert self._file is not None
        with self._file as file:
            file.truncate(self._end)  # what was being written when Ctrl-C came
            file.seek(self._end)
            file.write(b"\n]\n" if self._end else b"[]\n")
        if not self.images:
            return
        categories = [{"id": number, "name": name} for name, number in self.category_ids.items()]
        write_lines(self.image_list, {"images": self.images, "annotations": [], "categories": categories})
        self._draft.replace(self.predictions)


def build_result(rle: Rle, score: float, *, image: Mapping[str, Any], category_id: int) -> dict[str, Any]:
    """Build one result: ``image_id category_id bbox score segmentation``, and ``file_name`` for people.

    Args:
        rle: the mask, with at least one pixel.
        score: the predicted IoU.
        image: the image's entry of ``images.json``.
        category_id: of what the prompt shows.

    Returns:
        ``bbox`` is ``[x, y, width, height]``, the mask's own bounds in pixels; the run-length counts are text.
    """
    left, top, right, bottom = compute_box(rle).tolist()
    return {
        "image_id": image["id"],
        "category_id": category_id,
        "bbox": [left, top, right - left, bottom - top],
        "score": round(score, SCORE_DIGITS),
        "segmentation": rle_to_json(rle),
        "file_name": image["file_name"],
    }


def describe_prompt(prompts: Prompts, index: int) -> dict[str, Any]:
    """Return which prompt gave a result: its place among the image's, and its box, points, or both (pixels of the image)."""
    coords_P2, labels_P = prompts.coords_NP2[index], prompts.labels_NP[index]
    described: dict[str, Any] = {"index": index}
    box_4 = prompts.find_box(index)
    if box_4 is not None:
        described["box"] = box_4.tolist()
    points = np.isin(labels_P, (POINT_IN, POINT_OUT))
    if points.any():
        described |= {"points": coords_P2[points].tolist(), "point_labels": labels_P[points].astype(int).tolist()}
    return described
