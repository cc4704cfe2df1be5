"""Kept masks on disk: a COCO data set that is whole at every moment, and that any number of pages may write to.

    <folder>/annotations/instances_train.json    one entry a line; replaced as a whole by every change
             images/train/<name>                 the labelled images: links to the files of the source, or copies
             .lock                               held by the server that labels into the folder

A change returns when it is on disk. A process that is killed leaves the file as it was before or after its last change.
"""

import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pycocotools import mask as coco_mask

from vpexp.data.annotations import SCORE_DIGITS, Rle
from vpexp.data.image_finder import list_meanings
from vpexp.data.image_source import SourceImage
from vpexp.demo.folder import find_layout, is_same, place_image
from vpexp.demo.labels import Entry, KeptMask, LabelSet, build_annotation, read_labels, read_mask, reshape, split_parts
from vpexp.errors import ConfigError, OutputError
from vpexp.files import is_below, write_text

SAME_OBJECT = 0.5
"""IoU with a kept mask above which a mask that was found is of the same object."""


@dataclass(frozen=True, slots=True)
class NewMask:
    """A mask to keep.

    Attributes:
        label: what it shows.
        rle: at the size of the image as it is shown.
        score: the predicted IoU, or what the model that found it gave it; None: it was drawn by hand.
        prompt: what gave the mask.
    """

    label: str
    rle: Rle
    score: float | None
    prompt: Mapping[str, Any]


class UnknownMaskError(LookupError):
    """A mask that is not there: another page deleted it."""


class LabelError(ValueError):
    """A label that cannot be renamed or deleted; the message is one line."""


class LabelStore:
    """Keeps masks in a folder.

    Args:
        folder: of the data set; made with the first mask. What it holds already is gone on with.
        sources: the images that are labelled, so that file names of another tool's data set are known.

    Raises:
        DataError: its annotation file cannot be gone on with.
    """

    def __init__(self, folder: Path, sources: Sequence[SourceImage] = ()) -> None:
        self.folder = folder
        self._layout = find_layout(folder)
        self.annotations = self._layout.annotations
        self.labels = LabelSet(head={"info": {"description": "labelled with vpexp"}})
        if self.annotations.is_file():
            self.labels = read_labels(self.annotations, sources)
        self._lock = threading.Lock()
        self._session = secrets.token_hex(4)
        self._changes = 0
        self._deleted: dict[int, tuple[KeptMask, str, Entry]] = {}
        # ids are never given twice in a session, so that what one page deletes never becomes what another one keeps
        self._last_mask = max(self.labels.masks, default=0)
        self._image_ids = {name: int(entry["id"]) for name, entry in self.labels.images.items()}
        self._category_ids = self.labels.labels
        self._rles: dict[str, Rle | None] = {}  # by the line of the mask

    @property
    def changes(self) -> int:
        """Count what was changed since the server was started: a page whose own change is the next one knows all."""
        return self._changes

    @property
    def version(self) -> str:
        """Name the present state; a page that knows another one asks again."""
        return f"{self._session}-{self._changes}"

    def locate(self, name: str) -> Path:
        """Find where an image lies, or would lie, in the data set; never outside of it, whatever a file of another tool says."""
        entry, home = self.labels.images.get(name), self._layout.images
        if entry is None:
            return home / f"{self._layout.prefix}{name}"
        meanings = list(list_meanings(str(entry["file_name"])))
        places = [home / meaning for meaning in (*meanings, *(PurePosixPath(meaning).name for meaning in meanings))]
        there = (place for place in places if is_below(place, self.folder) and place.is_file())
        return next(there, home / name)

    def check_images(self, images: Iterable[SourceImage]) -> None:
        """Check that images of the same name are the same images.

        Raises:
            ConfigError: the folder was labelled from another source.
        """
        for image in images:
            place = self.locate(image.name)
            if image.name in self.labels.images and place.is_file() and not is_same(image.path, place):
                raise ConfigError(
                    f"demo.folder={self.folder}: its {image.name} is another image than {image.path}; "
                    "give this source a folder of its own: demo.folder=..."
                )

    def name_image(self, mask: KeptMask) -> str:
        """Name the image of a mask."""
        return next(name for name, entry in self.labels.images.items() if entry["id"] == mask.entry["image_id"])

    def list_rles(self, name: str, height: int, width: int) -> list[tuple[KeptMask, Rle | None]]:
        """List the kept masks of an image of that size, with their run lengths; None for one that cannot be shown."""
        found = []
        for mask in self.labels.list_masks(name):
            if mask.line not in self._rles:
                self._rles[mask.line] = read_mask(mask.entry, height, width)
            found.append((mask, self._rles[mask.line]))
        return found

    def keep(
        self, image: SourceImage, label: str, rle: Rle, *, score: float | None, prompt: Mapping[str, Any], uid: str
    ) -> KeptMask:
        """Keep a mask; one that was kept under the same ``uid`` before is returned as it is.

        Args:
            image: which image.
            label: what the mask shows.
            rle: at the size of the image as it is shown.
            score: the predicted IoU; None: it was drawn by hand.
            prompt: what gave the mask.
            uid: the page's own name of it, so that a request that is sent again keeps nothing twice.

        Raises:
            OutputError: it cannot be written; nothing was kept.
        """
        with self._lock:
            found = self.labels.find(uid) or self._add(image, [NewMask(label, rle, score, prompt)], uid)
            return found[0]

    def keep_new(self, image: SourceImage, masks: Sequence[NewMask], uid: str) -> list[KeptMask]:
        """Keep those masks of an image that are of no object that has a mask, in one change, under one ``uid``.

        Returns:
            What was kept; what was kept under this ``uid`` before.

        Raises:
            OutputError: it cannot be written; nothing was kept.
        """
        with self._lock:
            if found := self.labels.find(uid):
                return found
            kept = [rle for _, rle in self.list_rles(image.name, *masks[0].rle["size"]) if rle] if masks else []
            if kept:
                overlap_K = coco_mask.iou([mask.rle for mask in masks], kept, [0] * len(kept)).max(axis=1)
                masks = [mask for mask, overlap in zip(masks, overlap_K, strict=True) if overlap <= SAME_OBJECT]
            return self._add(image, masks, uid)

    def delete(self, number: int, uid: str | None = None) -> None:
        """Take a mask away.

        Args:
            number: its id.
            uid: the page's name of it, where the page gave it one: after a restart another mask may have the id of one that was
                deleted, and a page that was open all the time shall not meet that one.

        Raises:
            UnknownMaskError: it is not there.
            OutputError: it cannot be written; nothing was changed.
        """
        with self._lock:
            self._delete([self.find(number, uid)])

    def delete_all(self, uid: str) -> None:
        """Take all masks away that were kept under one ``uid``, in one change; errors as of ``delete``."""
        with self._lock:
            masks = self.labels.find(uid)
            if not masks:
                raise UnknownMaskError("these masks are not there any more")
            self._delete(masks)

    def restore(self, number: int, uid: str | None = None) -> None:
        """Bring a mask back that was deleted in this session, unless it is there; arguments and errors as of ``delete``."""
        with self._lock:
            if number in self.labels.masks:
                self.find(number, uid)
                return
            if number not in self._deleted:
                raise UnknownMaskError(f"mask {number} was not deleted in this session")
            self._restore([number])

    def restore_all(self, uid: str) -> None:
        """Bring all masks back that were kept under one ``uid`` and deleted in this session, unless they are there."""
        with self._lock:
            numbers = [number for number, (mask, *_) in self._deleted.items() if mask.entry.get("uid") == uid]
            if numbers:
                self._restore(numbers)
            elif not self.labels.find(uid):
                raise UnknownMaskError("these masks were not deleted in this session")

    def relabel(self, number: int, label: str, uid: str | None = None) -> None:
        """Report that a mask shows something else; arguments and errors as of ``delete``."""
        with self._lock:
            labels = self._with_label(self.labels, label)
            entry = {**self.find(number, uid).entry, "category_id": labels.labels[label]}
            self._write(labels.with_masks([KeptMask.of(entry)]))

    def reshape(
        self, number: int, rle: Rle, uid: str | None = None, *, edited: bool = True, without: str | None = None
    ) -> KeptMask:
        """Give a kept mask other pixels; number, uid and errors as of ``delete``.

        Args:
            number: its id.
            rle: its pixels from now on.
            uid: the page's name of it.
            edited: whether they are drawn by hand; false: they are what the model gave.
            without: what was kept under this ``uid`` is taken away in the same change.
        """
        with self._lock:
            mask = self.find(number, uid)
            gone = self.labels.find(without) if without else []
            changed = KeptMask.of(reshape(mask.entry, rle, edited=edited))
            self._write(self._without(gone).with_masks([changed]), gone=gone)
            return changed

    def split(self, number: int, rle: Rle, new_uid: str, uid: str | None = None) -> list[KeptMask]:
        """Split a kept mask into its connected parts, of which the largest stays under its id.

        Args:
            number: its id.
            rle: its pixels.
            new_uid: the page's name of the other parts.
            uid: the page's name of the mask.

        Returns:
            The parts, the largest first; one: there was nothing to split, and nothing was changed.

        Raises:
            UnknownMaskError, OutputError: as of ``delete``.
        """
        with self._lock:
            mask = self.find(number, uid)
            if found := self.labels.find(new_uid):
                return [mask, *found]
            first, *others = split_parts(rle)
            if not others:
                return [mask]
            kept = [KeptMask.of(reshape(mask.entry, first, edited=True))]
            for place, part in enumerate(others, self._last_mask + 1):
                kept.append(KeptMask.of({**reshape(mask.entry, part, edited=True), "id": place, "uid": new_uid}))
            self._write(self.labels.with_masks(kept))
            self._last_mask += len(others)
            return kept

    def set_done(self, image: SourceImage, height: int, width: int, *, done: bool) -> None:
        """Report that an image is labelled whole, with masks or without any, or that it is not.

        Raises:
            OutputError: it cannot be written; nothing was changed.
        """
        with self._lock:
            number = self._choose_image_id(image.name)
            labels = self.labels.with_image(image.name, height, width, number, self._layout.prefix)
            self._write(labels.with_done(image.name, done), image)
            self._image_ids[image.name] = number

    def rename_label(self, label: str, name: str) -> None:
        """Give a label another name, and so all masks that it has.

        Raises:
            LabelError: there is a label of that name.
            OutputError: it cannot be written; nothing was changed.
        """
        with self._lock:
            if name in self.labels.labels:
                raise LabelError(f"there is a label {name} already: select masks, and give them that one")
            if label in self.labels.labels:
                self._write(self.labels.with_renamed(label, name))
                self._category_ids[name] = self._category_ids.pop(label)

    def drop_label(self, label: str) -> None:
        """Delete a label that no mask has; it gets its old id where it comes back.

        Raises:
            LabelError: masks have it.
            OutputError: it cannot be written; nothing was changed.
        """
        with self._lock:
            number = self.labels.labels.get(label)
            count = sum(mask.entry["category_id"] == number for mask in self.labels.masks.values())
            if count:
                raise LabelError(
                    f"{count} mask{'s have' if count > 1 else ' has'} the label {label}: give them another one, or delete them, first"
                )
            if number is not None:
                self._write(self.labels.without_label(label))

    def find(self, number: int, uid: str | None) -> KeptMask:
        """Find a kept mask; arguments and errors as of ``delete``."""
        mask = self.labels.masks.get(number)
        if mask is None or (uid is not None and mask.entry.get("uid") != uid):
            raise UnknownMaskError(f"mask {number} is not there any more")
        return mask

    def _add(self, image: SourceImage, masks: Sequence[NewMask], uid: str) -> list[KeptMask]:
        if not masks:
            return []
        image_id = self._choose_image_id(image.name)
        height, width = masks[0].rle["size"]
        labels = self.labels.with_image(image.name, height, width, image_id, self._layout.prefix)
        kept = []
        for number, mask in enumerate(masks, self._last_mask + 1):
            labels = self._with_label(labels, mask.label)
            score = {} if mask.score is None else {"score": round(mask.score, SCORE_DIGITS)}
            extra = {**score, "prompt": dict(mask.prompt), "uid": uid}
            kept.append(KeptMask.of(build_annotation(number, image_id, labels.labels[mask.label], mask.rle, extra)))
        self._write(labels.with_masks(kept), image)
        self._last_mask += len(kept)
        self._image_ids[image.name] = image_id
        return kept

    def _choose_image_id(self, name: str) -> int:
        return self._image_ids.get(name, max(self._image_ids.values(), default=0) + 1)

    def _with_label(self, labels: LabelSet, label: str) -> LabelSet:
        """Add a category, unless there is one of this name: under an id that no other name has had in this session."""
        number = self._category_ids.setdefault(label, max(self._category_ids.values(), default=0) + 1)
        return labels.with_label(label, number)

    def _without(self, masks: Sequence[KeptMask]) -> LabelSet:
        return self.labels.without_masks({mask.entry["id"] for mask in masks})

    def _delete(self, masks: Sequence[KeptMask]) -> None:
        self._write(self._without(masks), gone=masks)

    def _restore(self, numbers: Sequence[int]) -> None:
        found = [self._deleted[number] for number in numbers]
        images = self.labels.images
        images = {**images, **{name: entry for _, name, entry in found if name not in images}}
        self._write(replace(self.labels, images=images).with_masks(mask for mask, *_ in found))
        for number in numbers:
            del self._deleted[number]

    def _write(self, labels: LabelSet, image: SourceImage | None = None, gone: Sequence[KeptMask] = ()) -> None:
        """Write a changed set, the image before the file that names it; ``gone``: what can be restored."""
        try:
            if image is not None:
                place_image(image.path, self.locate(image.name), is_labelled=image.name in self.labels.images)
            self.annotations.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.annotations, "".join(labels.write()), durable=True)
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be written, nothing was saved: {error.strerror}") from error
        images = {entry["id"]: (name, entry) for name, entry in self.labels.images.items()}
        self._deleted |= {mask.entry["id"]: (mask, *images[mask.entry["image_id"]]) for mask in gone}
        self.labels = labels
        self._changes += 1
