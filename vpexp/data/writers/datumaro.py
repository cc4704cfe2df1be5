"""Datumaro's own format, written by Datumaro."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from vpexp.data.annotations import SCORE_DIGITS
from vpexp.data.writers.images import LabelledImage, group_by_split, place_images


def write_datumaro(
    folder: Path, images: Sequence[LabelledImage], categories: Sequence[str], *, placing: str
) -> list[str]:
    """Write a data set in Datumaro's format: ``annotations/<split>.json`` with run lengths, ``images/<split>/``.

    Args:
        folder: exists, and is empty.
        images: with their objects.
        categories: names, in the order of their numbers.
        placing: see ``place_images``.
    """
    from datumaro.components.annotation import AnnotationType, LabelCategories
    from datumaro.components.dataset import Dataset
    from datumaro.components.media import Image

    kinds = {AnnotationType.label: LabelCategories.from_iterable(categories)}
    items = [_build_item(image, categories) for image in images]
    # The files are placed here, because Datumaro opens and checks each image before it copies it.
    Dataset.from_iterable(items, categories=kinds, media_type=Image).export(str(folder), "datumaro", save_media=False)
    for split, own in group_by_split(images).items():
        place_images(own, folder / "images" / split, placing)
    return []


def _build_item(image: LabelledImage, categories: Sequence[str]) -> Any:
    from datumaro.components.annotation import RleMask
    from datumaro.components.dataset_base import DatasetItem
    from datumaro.components.media import Image

    annotations = []
    for number, one in enumerate(image.objects, start=1):
        attributes: dict[str, Any] = {"is_crowd": False}
        if one.score is not None:
            attributes["score"] = round(one.score, SCORE_DIGITS)
        annotations.append(
            RleMask(one.mask, label=categories.index(one.label), id=number, group=number, attributes=attributes)
        )
    media = Image.from_file(path=image.name, size=(image.height, image.width))
    own_id = PurePosixPath(image.name).with_suffix("").as_posix()
    return DatasetItem(id=own_id, subset=image.split, media=media, annotations=annotations)
